package coordinator

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"bloomery/internal/pki"
)

// Describe says, line by line, what a coordinator of this configuration does.
func (c *Config) Describe() []string {
	lines := []string{
		"is coordinator " + c.Node + " of the rack",
		"keeps its data in " + c.Data,
		"reads the rack's keys from " + c.PKI,
		"serves the API on " + strings.Join(c.Listen.API, ", "),
	}
	if c.Cluster.IsValid() {
		lines = append(lines, "shares the rack's database with other coordinators on "+c.Cluster.String())
	} else {
		lines = append(lines, "has the rack's database alone: there is no cluster.address")
	}
	if p := c.Provisioning; p != nil {
		lines = append(lines, fmt.Sprintf("answers DHCP on %s as %s and leases %s to machines that are expected", p.Interface, p.Address, p.Range))
		if c.Listen.Boot != "" {
			lines = append(lines, "serves "+c.AgentImage+" by HTTP boot on "+c.Listen.Boot)
		}
		if c.Listen.TFTP != "" {
			lines = append(lines, "serves "+c.AgentImage+" by TFTP on "+c.Listen.TFTP)
		}
	} else {
		lines = append(lines, "netboots no machine: there is no provisioning")
	}
	if len(c.Listen.PhoneHome) > 0 {
		lines = append(lines, "hears installed systems phone home on "+strings.Join(c.Listen.PhoneHome, ", "))
	}
	if c.Listen.Metrics != "" {
		lines = append(lines, "shows its metrics, without asking who looks, on "+c.Listen.Metrics)
	}
	for _, n := range c.Networks {
		line := fmt.Sprintf("network %s is VLAN %d", n.Name, n.VLAN)
		if n.Prefix.IsValid() {
			line += ", " + n.Prefix.String()
		}
		if n.Range.First.IsValid() {
			line += ", machines get " + n.Range.String()
		}
		lines = append(lines, line)
	}
	for _, s := range c.Switches {
		lines = append(lines, fmt.Sprintf("moves ports of switch %s by %s at %s", s.Name, s.Driver, s.Address))
	}
	if len(c.Switches) == 0 {
		lines = append(lines, "moves no switch ports: there are no switches")
	}
	return lines
}

// Problems looks at this host for what the configuration needs and is not there.
func (c *Config) Problems() []error {
	var all []error
	add := func(err error) {
		if err != nil {
			all = append(all, err)
		}
	}
	_, err := pki.LoadAuthority(c.PKI)
	add(err)
	if _, err := c.imageKey(); err != nil {
		add(fmt.Errorf("load the key that images are signed by: %w", err))
	}
	info, err := os.Stat(c.Data)
	switch {
	case err == nil && !info.IsDir():
		add(fmt.Errorf("data: %s is no folder", c.Data))
	case err != nil && !errors.Is(err, os.ErrNotExist):
		add(fmt.Errorf("data: %w", err))
	}
	if p := c.Provisioning; p != nil {
		add(hasAddress(p.Interface, p.Address.Addr()))
		if _, err := os.Stat(c.AgentImage); err != nil {
			add(fmt.Errorf("agent_image: %w; make one with \"bloomery agent-image assemble\"", err))
		}
	}
	for _, s := range c.Switches {
		for _, file := range []struct{ field, path string }{{"ca", s.CA}, {"password_file", s.PasswordFile}} {
			if file.path == "" {
				continue
			}
			if _, err := os.Stat(file.path); err != nil {
				add(fmt.Errorf("switch %s: %s: %w", s.Name, file.field, err))
			}
		}
	}
	return all
}

func hasAddress(name string, want netip.Addr) error {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("provisioning.interface: %s: %w", name, err)
	}
	addresses, err := i.Addrs()
	if err != nil {
		return fmt.Errorf("provisioning.interface: %s: %w", name, err)
	}
	var have []string
	for _, a := range addresses {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr() == want {
			return nil
		}
		have = append(have, a.String())
	}
	return fmt.Errorf("provisioning.address: %s is not on %s, which has %v", want, name, have)
}
