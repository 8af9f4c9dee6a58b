package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"bloomery/lab/netns"
)

// stopTimeout is how long an orderly end may take before it becomes a kill.
const stopTimeout = 10 * time.Second

// coordinatorFile is bloomeryd.yaml as far as the lab writes it.
type coordinatorFile struct {
	Node         string                  `yaml:"node"`
	Cluster      *coordinatorCluster     `yaml:"cluster,omitempty"`
	Data         string                  `yaml:"data"`
	PKI          string                  `yaml:"pki"`
	Listen       coordinatorListen       `yaml:"listen"`
	Provisioning coordinatorProvisioning `yaml:"provisioning"`
	AgentImage   string                  `yaml:"agent_image"`
	Networks     []coordinatorNetwork    `yaml:"networks"`
	Switches     []coordinatorSwitch     `yaml:"switches"`
}

type coordinatorCluster struct {
	Address string `yaml:"address"`
}

type coordinatorListen struct {
	API       []string `yaml:"api"`
	Boot      string   `yaml:"boot"`
	TFTP      string   `yaml:"tftp"`
	PhoneHome []string `yaml:"phone_home"`
}

type coordinatorProvisioning struct {
	Interface string `yaml:"interface"`
	Address   string `yaml:"address"`
	Range     string `yaml:"range"`
}

type coordinatorNetwork struct {
	Name      string   `yaml:"name"`
	VLAN      int      `yaml:"vlan"`
	Prefix    string   `yaml:"prefix,omitempty"`
	Gateway   string   `yaml:"gateway,omitempty"`
	DNS       []string `yaml:"dns,omitempty"`
	Range     string   `yaml:"range,omitempty"`
	PhoneHome []string `yaml:"phone_home,omitempty"`
}

type coordinatorSwitch struct {
	Name         string `yaml:"name"`
	Driver       string `yaml:"driver"`
	Address      string `yaml:"address"`
	CA           string `yaml:"ca"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
}

// coordinatorConfig is the rack as one of its coordinators is told of it. Networks and switches are the same for all.
func coordinatorConfig(l layout, p place) coordinatorFile {
	c, host := p.config, p.provisioning().Addr().String()
	f := coordinatorFile{
		Node: p.name(), Data: l.coordinator(p), PKI: l.keys(p), AgentImage: l.agentImage(),
		Listen:       coordinatorListen{API: []string{"unix:" + l.api(p)}, Boot: net.JoinHostPort(host, "80"), TFTP: net.JoinHostPort(host, "69")},
		Provisioning: coordinatorProvisioning{Interface: "prov0", Address: p.provisioning().String(), Range: c.Provisioning.Range},
		Switches: []coordinatorSwitch{{
			Name: c.Switch.Name, Driver: "gnmi", Address: c.Switch.Address, CA: l.switchCA(), Username: c.Switch.Username, PasswordFile: l.switchPassword(),
		}},
	}
	if c.Coordinators > 1 {
		// Out of band first: that is where coordinators call each other.
		f.Cluster = &coordinatorCluster{p.cluster()}
		f.Listen.API = append(f.Listen.API, apiAddress(p.outOfBand()))
	}
	f.Listen.API = append(f.Listen.API, apiAddress(p.provisioning()))
	for _, n := range c.Networks {
		net := coordinatorNetwork{Name: n.Name, VLAN: n.VLAN}
		if n.Prefix.IsValid() {
			net.Prefix, net.Gateway, net.Range = n.Prefix.String(), n.Gateway.String(), n.Range
			f.Listen.PhoneHome = append(f.Listen.PhoneHome, p.gateway(n).Addr().String()+":80")
			for _, other := range c.places() {
				address := other.gateway(n).Addr().String()
				net.DNS = append(net.DNS, address)
				net.PhoneHome = append(net.PhoneHome, "http://"+address+"/phone-home/")
			}
		}
		f.Networks = append(f.Networks, net)
	}
	return f
}

// apiAddress is where a coordinator's API listens on one of its networks.
func apiAddress(a netip.Prefix) string {
	return net.JoinHostPort(a.Addr().String(), strconv.Itoa(apiPort))
}

func writeCoordinatorConfig(l layout, p place) error {
	text, err := yaml.Marshal(coordinatorConfig(l, p))
	if err != nil {
		return fmt.Errorf("writing coordinator %s's configuration: %w", p.name(), err)
	}
	if err := os.WriteFile(l.coordinatorConfig(p), text, 0o600); err != nil {
		return fmt.Errorf("writing coordinator %s's configuration: %w", p.name(), err)
	}
	return nil
}

// startCoordinator starts bloomeryd in its namespace, writes its process down and waits for its socket.
func startCoordinator(ctx context.Context, l layout, p place, st *state) error {
	fail := func(err error) error {
		return fmt.Errorf("starting coordinator %s: %w; its log says: %s", p.name(), err, lastLines(l.log(l.coordinatorLog(p))))
	}
	if st.Bloomeryd == "" {
		return errors.New("the rack was brought up without a coordinator")
	}
	if err := os.Remove(l.api(p)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fail(err)
	}
	var cmd *exec.Cmd
	err := netns.Do(p.namespace(), func() (err error) {
		cmd, err = daemon(l, p.config.Name, l.coordinatorLog(p), st.Bloomeryd, "--config", l.coordinatorConfig(p))
		return err
	})
	if err != nil {
		return fail(err)
	}
	started, err := identify(cmd.Process.Pid)
	if err != nil {
		return fail(err)
	}
	if st.Coordinators == nil {
		st.Coordinators = map[string]process{}
	}
	st.Coordinators[p.name()] = started
	if err := l.save(*st); err != nil {
		return err
	}
	if err := waitSocket(ctx, l.api(p), started); err != nil {
		return fail(err)
	}
	return nil
}

// KillCoordinator kills a bloomeryd as a crash would (SIGKILL) and waits until it is gone. An empty name is the first.
func KillCoordinator(ctx context.Context, stateDir, name string) error {
	l, c, err := openRack(stateDir)
	if err != nil {
		return err
	}
	p, err := c.place(name)
	if err != nil {
		return err
	}
	st, err := l.load()
	if err != nil {
		return err
	}
	return st.Coordinators[p.name()].kill(ctx)
}

// RestartCoordinator starts a bloomeryd again, ending it in good order first if it runs. An empty name is the first.
func RestartCoordinator(ctx context.Context, stateDir, name string) error {
	l, c, err := openRack(stateDir)
	if err != nil {
		return err
	}
	p, err := c.place(name)
	if err != nil {
		return err
	}
	st, err := l.load()
	if err != nil {
		return err
	}
	if err := stopProcess(ctx, st.Coordinators[p.name()]); err != nil {
		return fmt.Errorf("ending coordinator %s: %w", p.name(), err)
	}
	return startCoordinator(ctx, l, p, &st)
}

// stopProcess asks a process to end and kills it if it does not.
func stopProcess(ctx context.Context, p process) error {
	if !p.alive() {
		return nil
	}
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	waitCtx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if p.wait(waitCtx) == nil {
		return nil
	}
	return p.kill(ctx)
}
