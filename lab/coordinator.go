package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"bloomery/lab/netns"
)

// stopTimeout is how long an orderly end may take before it becomes a kill.
const stopTimeout = 10 * time.Second

// coordinatorFile is bloomeryd.yaml as far as the lab writes it.
type coordinatorFile struct {
	Data         string                  `yaml:"data"`
	PKI          string                  `yaml:"pki"`
	Listen       coordinatorListen       `yaml:"listen"`
	Provisioning coordinatorProvisioning `yaml:"provisioning"`
	AgentImage   string                  `yaml:"agent_image"`
	Networks     []coordinatorNetwork    `yaml:"networks"`
	Switches     []coordinatorSwitch     `yaml:"switches"`
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
	PhoneHome string   `yaml:"phone_home,omitempty"`
}

type coordinatorSwitch struct {
	Name         string `yaml:"name"`
	Driver       string `yaml:"driver"`
	Address      string `yaml:"address"`
	CA           string `yaml:"ca"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
}

// coordinatorConfig is the rack as bloomeryd is told of it.
func coordinatorConfig(l layout, c Config) coordinatorFile {
	host := c.Provisioning.Address.Addr().String()
	f := coordinatorFile{
		Data: l.coordinator(), PKI: l.rack(), AgentImage: l.agentImage(),
		Listen:       coordinatorListen{API: []string{"unix:" + l.api(), net.JoinHostPort(host, "8443")}, Boot: net.JoinHostPort(host, "80"), TFTP: net.JoinHostPort(host, "69")},
		Provisioning: coordinatorProvisioning{Interface: "prov0", Address: c.Provisioning.Address.String(), Range: c.Provisioning.Range},
		Switches: []coordinatorSwitch{{
			Name: c.Switch.Name, Driver: "gnmi", Address: c.Switch.Address, CA: l.switchCA(), Username: c.Switch.Username, PasswordFile: l.switchPassword(),
		}},
	}
	for _, n := range c.Networks {
		net := coordinatorNetwork{Name: n.Name, VLAN: n.VLAN}
		if n.Prefix.IsValid() {
			gw := n.Gateway.String()
			net.Prefix, net.Gateway, net.DNS, net.Range, net.PhoneHome = n.Prefix.String(), gw, []string{gw}, n.Range, "http://"+gw+"/phone-home/"
			f.Listen.PhoneHome = append(f.Listen.PhoneHome, gw+":80")
		}
		f.Networks = append(f.Networks, net)
	}
	return f
}

func writeCoordinatorConfig(l layout, c Config) error {
	text, err := yaml.Marshal(coordinatorConfig(l, c))
	if err != nil {
		return fmt.Errorf("writing the coordinator's configuration: %w", err)
	}
	if err := os.WriteFile(l.coordinatorConfig(), text, 0o600); err != nil {
		return fmt.Errorf("writing the coordinator's configuration: %w", err)
	}
	return nil
}

// startCoordinator starts bloomeryd in its namespace, writes its process down and waits for its socket.
func startCoordinator(ctx context.Context, l layout, c Config, st *state) error {
	if st.Bloomeryd == "" {
		return errors.New("the rack was brought up without a coordinator")
	}
	if err := os.Remove(l.api()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("starting the coordinator: %w", err)
	}
	var cmd *exec.Cmd
	err := netns.Do(coordinatorNamespace(c.Name), func() (err error) {
		cmd, err = daemon(l, c.Name, "bloomeryd", st.Bloomeryd, "--config", l.coordinatorConfig())
		return err
	})
	if err != nil {
		return fmt.Errorf("starting the coordinator: %w", err)
	}
	if st.Coordinator, err = identify(cmd.Process.Pid); err != nil {
		return fmt.Errorf("starting the coordinator: %w; its log says: %s", err, lastLines(l.log("bloomeryd")))
	}
	if err := l.save(*st); err != nil {
		return err
	}
	if err := waitSocket(ctx, l.api(), st.Coordinator); err != nil {
		return fmt.Errorf("starting the coordinator: %w; its log says: %s", err, lastLines(l.log("bloomeryd")))
	}
	return nil
}

// KillCoordinator kills bloomeryd as a crash would (SIGKILL) and waits until it is gone.
func KillCoordinator(ctx context.Context, stateDir string) error {
	l, _, err := openRack(stateDir)
	if err != nil {
		return err
	}
	st, err := l.load()
	if err != nil {
		return err
	}
	return st.Coordinator.kill(ctx)
}

// RestartCoordinator starts bloomeryd again, ending it in good order first if it runs.
func RestartCoordinator(ctx context.Context, stateDir string) error {
	l, c, err := openRack(stateDir)
	if err != nil {
		return err
	}
	st, err := l.load()
	if err != nil {
		return err
	}
	if err := stopProcess(ctx, st.Coordinator); err != nil {
		return fmt.Errorf("ending the coordinator: %w", err)
	}
	return startCoordinator(ctx, l, c, &st)
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

// GetStatus tells how the rack in a state directory is. A rack whose supervisor has died is no error.
func GetStatus(ctx context.Context, stateDir string) (Status, error) {
	l, c, err := openRack(stateDir)
	if err != nil {
		return Status{}, err
	}
	s := Status{Rack: c.Name, StateDir: l.dir, Accel: c.Accel, ClientConfig: filepath.Join(l.rack(), "config.yaml"), APISocket: l.api()}
	if st, err := l.load(); err == nil {
		s.SupervisorUp, s.CoordinatorUp = st.Supervisor.alive(), st.Coordinator.alive()
		if s.CoordinatorUp {
			s.CoordinatorPID = st.Coordinator.PID
		}
	}
	if s.SupervisorUp {
		sup, err := NewClient(l.dir).Status(ctx)
		if err != nil {
			return s, err
		}
		s.Supervisor = &sup
	}
	return s, nil
}

// SSHOptions are for SSHCommand.
type SSHOptions struct {
	// Address is the installed machine's on its customer's network.
	Address string
	// Network is the customer's; empty means the rack's first.
	Network string
	// User is "root" when empty, Identity a private key's file, or empty for ssh's own choice.
	User, Identity string
	// Command is run on the machine; empty opens a login.
	Command []string
}

// SSHCommand is the command line that logs in to an installed machine from the customer's network. Host
// keys are not kept: the lab's machines are installed anew all the time.
func SSHCommand(stateDir string, o SSHOptions) ([]string, error) {
	c, err := LoadEffective(stateDir)
	if err != nil {
		return nil, err
	}
	customers := c.customers()
	if len(customers) == 0 {
		return nil, errors.New("the rack has no customer network")
	}
	network := customers[0]
	if o.Network != "" {
		var ok bool
		if network, ok = c.network(o.Network); !ok || !network.Prefix.IsValid() {
			return nil, fmt.Errorf("the rack has no customer network %q", o.Network)
		}
	}
	if net.ParseIP(o.Address) == nil {
		return nil, fmt.Errorf("address %q: want the machine's IP address on network %s", o.Address, network.Name)
	}
	user := o.User
	if user == "" {
		user = "root"
	}
	if strings.HasPrefix(user, "-") {
		return nil, fmt.Errorf("user %q must not begin with a hyphen", user)
	}
	argv := []string{
		"ip", "netns", "exec", customerNamespace(c.Name, network.Name), "ssh",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=5",
	}
	if o.Identity != "" {
		argv = append(argv, "-o", "IdentitiesOnly=yes", "-i", o.Identity)
	}
	argv = append(argv, "-l", user, o.Address)
	if len(o.Command) > 0 {
		argv = append(append(argv, "--"), o.Command...)
	}
	return argv, nil
}
