// Package lab is the virtual rack: QEMU machines with a BMC each, behind a user-space switch, in
// network namespaces of their own, so that Bloomery can be tried and tested without hardware.
package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"

	"go.yaml.in/yaml/v3"
)

// maxConfigBytes bounds a rack description; a rack of 64 machines has about 40 KiB.
const maxConfigBytes = 1 << 20

// Config describes a rack (rack.yaml). Fields left out get the values of Default.
type Config struct {
	// Name is part of namespaces' and files' names: lower-case letters, digits and hyphens, at most 24.
	Name string `yaml:"name"`
	// Accel is QEMU's accelerator: "tcg" (default) or "kvm". KVM must have been seen to boot a machine on this host.
	Accel string `yaml:"accel,omitempty"`
	// Coordinators is how many the rack has, 1 (default) or 3.
	Coordinators int `yaml:"coordinators,omitempty"`
	// Switch is the rack's one switch.
	Switch Switch `yaml:"switch"`
	// Provisioning is the network that agents boot in.
	Provisioning Provisioning `yaml:"provisioning"`
	// Networks are all VLANs; "provisioning" and "quarantine" must be among them.
	Networks []Network `yaml:"networks"`
	Machines []Machine `yaml:"machines"`
}

// Switch is the top-of-rack switch and its gNMI server.
type Switch struct {
	Name string `yaml:"name"`
	// Address is the gNMI server's "IP:port" on the out-of-band network.
	Address string `yaml:"address"`
	// Username and Password log in to gNMI; an empty password is made up by Up.
	Username string `yaml:"username"`
	Password string `yaml:"password,omitempty"`
}

// Provisioning is the coordinators' side of the provisioning network.
type Provisioning struct {
	// Address is the first coordinator's, with prefix length, e.g. 10.66.0.1/24. The others have the addresses after it.
	Address netip.Prefix `yaml:"address"`
	// Range is what agents lease, "first-last".
	Range string `yaml:"range"`
}

// Network is a VLAN and, for a customer's network, how addresses are given in it.
type Network struct {
	Name string `yaml:"name"`
	// VLAN is 1 to 4094.
	VLAN int `yaml:"vlan"`
	// Prefix is empty for networks that Bloomery gives no addresses in. The customer's own machine, from
	// which SSHCommand connects, has Customer in it.
	Prefix netip.Prefix `yaml:"prefix"`
	// Gateway is the first coordinator's address; the others have those after it.
	Gateway netip.Addr `yaml:"gateway"`
	// Range is what installed machines are given, "first-last".
	Range    string     `yaml:"range,omitempty"`
	Customer netip.Addr `yaml:"customer"`
}

// Machine is a server.
type Machine struct {
	Name      string `yaml:"name"`
	CPUs      int    `yaml:"cpus,omitempty"`
	MemoryMiB int    `yaml:"memory,omitempty"`
	Disks     []Disk `yaml:"disks"`
	NICs      []NIC  `yaml:"nics"`
	BMC       BMC    `yaml:"bmc"`
	// UUID, Serial and Product are what SMBIOS says (DSP0134 type 1).
	UUID string `yaml:"uuid,omitempty"`
	// TPM puts a TPM 2.0 in, whose state outlives power cycles.
	TPM     bool   `yaml:"tpm,omitempty"`
	Serial  string `yaml:"serial,omitempty"`
	Product string `yaml:"product,omitempty"`
}

// Disk is a sparse file on the host.
type Disk struct {
	// Bus is "nvme", "virtio" or "scsi".
	Bus  string `yaml:"bus"`
	Size Size   `yaml:"size"`
	// Serial has at most 20 characters (NVMe 1.4 Identify Controller, bytes 4 to 23).
	Serial string `yaml:"serial"`
	// WWN is 16 hexadecimal digits: an EUI-64 of an NVMe disk, a NAA name of a SCSI one.
	WWN string `yaml:"wwn,omitempty"`
	// Sector is how many bytes a sector has, 512 (default) or 4096.
	Sector int `yaml:"sector,omitempty"`
}

// NIC is a network card and the switch port that it is cabled to.
type NIC struct {
	MAC  string `yaml:"mac"`
	Port string `yaml:"port"`
}

// BMC is a machine's management controller.
type BMC struct {
	// Address is "IP:port" on the out-of-band network.
	Address  string `yaml:"address"`
	Username string `yaml:"username,omitempty"`
	// Password is made up by Up when it is empty.
	Password string `yaml:"password,omitempty"`
}

// ParseConfig reads a rack description strictly, fills in defaults and validates it.
func ParseConfig(text []byte) (Config, error) {
	if len(text) > maxConfigBytes {
		return Config{}, fmt.Errorf("rack description has %d bytes, more than %d", len(text), maxConfigBytes)
	}
	var c Config
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&c); err != nil {
		if errors.Is(err, io.EOF) {
			err = errors.New("it is empty")
		}
		return Config{}, fmt.Errorf("rack description: %w", err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("rack description: more than one YAML document")
	}
	c.fill()
	return c, c.Validate()
}

// LoadConfig reads a rack description from a file.
func LoadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("reading the rack description: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return Config{}, fmt.Errorf("reading the rack description %s: %w", path, err)
	}
	c, err := ParseConfig(text)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Marshal is the description as YAML. It holds passwords: write it for root only.
func (c Config) Marshal() ([]byte, error) {
	text, err := yaml.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("writing the rack description: %w", err)
	}
	return text, nil
}

// Machine finds a machine by name.
func (c Config) Machine(name string) (Machine, bool) {
	for _, m := range c.Machines {
		if m.Name == name {
			return m, true
		}
	}
	return Machine{}, false
}

// network finds a network by name.
func (c Config) network(name string) (Network, bool) {
	for _, n := range c.Networks {
		if n.Name == name {
			return n, true
		}
	}
	return Network{}, false
}

// customers are the networks that Bloomery gives addresses in.
func (c Config) customers() []Network {
	var out []Network
	for _, n := range c.Networks {
		if n.Prefix.IsValid() {
			out = append(out, n)
		}
	}
	return out
}
