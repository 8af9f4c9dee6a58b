package coordinator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"bloomery/images"
	"bloomery/internal/pki"
	"bloomery/netboot"
)

// Names of the networks that every rack has.
const (
	ProvisioningNetwork = "provisioning"
	QuarantineNetwork   = "quarantine"
)

// DefaultNode names a coordinator whose configuration gives it no name.
const DefaultNode = "coordinator-1"

const (
	// maxConfig bounds a configuration file, in bytes.
	maxConfig = 1 << 20
	// maxPhoneHomeURLs is more than a rack has coordinators.
	maxPhoneHomeURLs = 16
)

// Config is bloomeryd's configuration, checked.
type Config struct {
	// Data is where the coordinator keeps its database, images and secrets; PKI is the rack's keys.
	Data, PKI string
	// Node is this coordinator's name in the rack.
	Node string
	// Cluster is where the other coordinators reach this one's database; the zero value makes a rack of one coordinator.
	Cluster netip.AddrPort
	Listen  Listen
	// Provisioning is nil when this coordinator does not netboot machines.
	Provisioning *Provisioning
	// AgentImage is the folder of the files that machines boot.
	AgentImage string
	Networks   []Network
	Switches   []Switch
	// Events says how many events are kept; zero values mean the defaults.
	Events Events
	Timing Timing
	// Now is the wall clock by which the coordinator decides and dates; nil means time.Now. Pauses, timeouts and leases go by the monotonic clock
	// and do not ask it. No configuration file sets it: a test that lets a coordinator's clock jump does.
	Now func() time.Time
	// Ready is called once the coordinator serves; nil when nobody wants to know.
	Ready func() error
}

// Listen says where the coordinator listens; an empty address is off.
type Listen struct {
	// API addresses are host:port or unix:/path.
	API       []string `yaml:"api"`
	Boot      string   `yaml:"boot"`
	TFTP      string   `yaml:"tftp"`
	PhoneHome []string `yaml:"phone_home"`
	// Metrics is where /metrics is served in plain HTTP, to whoever can reach it.
	Metrics string `yaml:"metrics"`
}

// Provisioning is the network on which machines boot the agent.
type Provisioning struct {
	Interface string
	Address   netip.Prefix
	Range     netboot.Range
}

// Network is one that a machine's switch port can be in.
type Network struct {
	Name string
	VLAN uint16
	// Prefix, Gateway, DNS and Range are for customers' networks; Range is zero when machines get no address from here.
	Prefix  netip.Prefix
	Gateway netip.Addr
	DNS     []netip.Addr
	Range   netboot.Range
	// PhoneHome are the coordinators' URLs before the token, as machines on the network see them.
	PhoneHome []string
}

// Switch is a top-of-rack switch.
type Switch struct {
	Name         string `yaml:"name"`
	Driver       string `yaml:"driver"`
	Address      string `yaml:"address"`
	CA           string `yaml:"ca"`
	Username     string `yaml:"username"`
	PasswordFile string `yaml:"password_file"`
}

// Timing holds every duration by which the coordinator decides.
type Timing struct {
	// Boot is how long a machine has from power-on to enrolment; Await from the port's move to evidence of the installed system.
	Boot, Await time.Duration
	// Quiet is when an agent that has not been heard makes the coordinator look at the machine's power, Lost when it is booted again.
	Quiet, Lost time.Duration
	// Job bounds a whole job.
	Job time.Duration
	// Tick is how often changes are looked for that nothing told of; Lease how long a coordinator that falls silent keeps what it drives.
	Tick, Lease time.Duration
	// Images is how often the image store is compared with the rack's catalogue when nothing hints at a change.
	Images time.Duration
	// Archive is how often old events are looked for.
	Archive time.Duration
	// Retry is the first pause after an action or a webhook's delivery failed; it doubles.
	Retry time.Duration
}

// DefaultTiming suits real machines.
func DefaultTiming() Timing {
	return Timing{
		Boot: 5 * time.Minute, Await: 10 * time.Minute, Quiet: 45 * time.Second, Lost: 3 * time.Minute,
		Job: 4 * time.Hour, Tick: time.Second, Lease: 3 * time.Second, Images: 10 * time.Second, Archive: 15 * time.Second, Retry: 500 * time.Millisecond,
	}
}

// fileConfig is the file as it is written.
type fileConfig struct {
	Data    string `yaml:"data"`
	PKI     string `yaml:"pki"`
	Node    string `yaml:"node"`
	Cluster struct {
		Address string `yaml:"address"`
	} `yaml:"cluster"`
	Listen       Listen `yaml:"listen"`
	Provisioning *struct {
		Interface string `yaml:"interface"`
		Address   string `yaml:"address"`
		Range     string `yaml:"range"`
	} `yaml:"provisioning"`
	AgentImage string `yaml:"agent_image"`
	Networks   []struct {
		Name      string   `yaml:"name"`
		VLAN      int      `yaml:"vlan"`
		Prefix    string   `yaml:"prefix"`
		Gateway   string   `yaml:"gateway"`
		DNS       []string `yaml:"dns"`
		Range     string   `yaml:"range"`
		PhoneHome textList `yaml:"phone_home"`
	} `yaml:"networks"`
	Switches []Switch `yaml:"switches"`
	Events   struct {
		Keep        *int64 `yaml:"keep"`
		ArchiveKeep string `yaml:"archive_keep"`
	} `yaml:"events"`
}

// textList is one text or a list of them.
type textList []string

// UnmarshalYAML implements yaml.Unmarshaler. An empty text is an empty list.
func (l *textList) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.SequenceNode {
		return n.Decode((*[]string)(l))
	}
	var text string
	if err := n.Decode(&text); err != nil {
		return err
	}
	if *l = nil; text != "" {
		*l = textList{text}
	}
	return nil
}

// LoadConfig reads and checks a configuration file.
func LoadConfig(path string) (Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil {
		return Config{}, fmt.Errorf("read the configuration: %w", err)
	}
	c, err := ParseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// ParseConfig decodes a configuration strictly: an unknown field is an error.
func ParseConfig(data []byte) (Config, error) {
	var raw fileConfig
	if len(data) > maxConfig {
		return Config{}, fmt.Errorf("more than %d bytes", maxConfig)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(&raw); err != nil {
		return Config{}, fmt.Errorf("decode: %w", err)
	}
	if err := decoder.Decode(new(fileConfig)); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("holds more than one document")
	}
	c := Config{Data: raw.Data, PKI: raw.PKI, Listen: raw.Listen, AgentImage: raw.AgentImage, Switches: raw.Switches, Timing: DefaultTiming()}
	if !filepath.IsAbs(c.Data) {
		return Config{}, fmt.Errorf("data: %q: want an absolute path", c.Data)
	}
	if c.PKI == "" {
		c.PKI = filepath.Join(c.Data, "pki")
	}
	if err := c.setNode(raw); err != nil {
		return Config{}, err
	}
	if len(c.Listen.API) == 0 {
		return Config{}, errors.New("listen.api: name at least one address")
	}
	for _, a := range c.Listen.API {
		if err := checkListen(a, true); err != nil {
			return Config{}, fmt.Errorf("listen.api: %w", err)
		}
	}
	for _, a := range append([]string{c.Listen.Boot, c.Listen.TFTP, c.Listen.Metrics}, c.Listen.PhoneHome...) {
		if a == "" {
			continue
		}
		if err := checkListen(a, false); err != nil {
			return Config{}, fmt.Errorf("listen: %w", err)
		}
	}
	if err := c.setProvisioning(raw); err != nil {
		return Config{}, fmt.Errorf("provisioning: %w", err)
	}
	if err := c.setNetworks(raw); err != nil {
		return Config{}, fmt.Errorf("networks: %w", err)
	}
	if err := c.setEvents(raw); err != nil {
		return Config{}, fmt.Errorf("events: %w", err)
	}
	if err := c.checkSwitches(); err != nil {
		return Config{}, fmt.Errorf("switches: %w", err)
	}
	return c, nil
}

func (c *Config) setNode(raw fileConfig) error {
	c.Node = raw.Node
	if c.Node == "" {
		c.Node = DefaultNode
	}
	if err := pki.ValidName(c.Node); err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if raw.Cluster.Address == "" {
		return nil
	}
	address, err := netip.ParseAddrPort(raw.Cluster.Address)
	if err != nil || address.Addr().IsUnspecified() || address.Port() == 0 || address.Addr().Zone() != "" {
		return fmt.Errorf("cluster.address: %q: want the IP address and port at which the other coordinators reach this one", raw.Cluster.Address)
	}
	c.Cluster = netip.AddrPortFrom(address.Addr().Unmap(), address.Port())
	return nil
}

// Bounds of how many events stay in the database: below are too few for a job's record, above is too much memory.
const (
	minKeepEvents = 1000
	maxKeepEvents = 1_000_000
)

func (c *Config) setEvents(raw fileConfig) error {
	c.Events = Events{Keep: DefaultKeepEvents, ArchiveKeep: DefaultArchiveKeep}
	if keep := raw.Events.Keep; keep != nil {
		if *keep < minKeepEvents || *keep > maxKeepEvents {
			return fmt.Errorf("keep: %d: want %d to %d", *keep, minKeepEvents, maxKeepEvents)
		}
		c.Events.Keep = *keep
	}
	if raw.Events.ArchiveKeep != "" {
		d, err := time.ParseDuration(raw.Events.ArchiveKeep)
		if err != nil || d < 24*time.Hour {
			return fmt.Errorf("archive_keep: %q: want a duration of at least 24h", raw.Events.ArchiveKeep)
		}
		c.Events.ArchiveKeep = d
	}
	return nil
}

func checkListen(address string, unix bool) error {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		if unix && filepath.IsAbs(path) {
			return nil
		}
		return fmt.Errorf("%q: want host:port%s", address, map[bool]string{true: " or unix:/absolute/path"}[unix])
	}
	if _, err := netip.ParseAddrPort(address); err != nil {
		return fmt.Errorf("%q: want an IP address and a port: %w", address, err)
	}
	return nil
}

func (c *Config) setProvisioning(raw fileConfig) error {
	if raw.Provisioning == nil {
		return nil
	}
	p := &Provisioning{Interface: raw.Provisioning.Interface}
	var err error
	if p.Interface == "" {
		return errors.New("interface: name the network interface")
	}
	if p.Address, err = netip.ParsePrefix(raw.Provisioning.Address); err != nil {
		return fmt.Errorf("address: %w", err)
	}
	if p.Range, err = parseRange(raw.Provisioning.Range, p.Address, p.Address.Addr()); err != nil {
		return err
	}
	if !filepath.IsAbs(c.AgentImage) {
		return fmt.Errorf("agent_image: %q: want the absolute path of the folder that machines boot from", c.AgentImage)
	}
	c.Provisioning = p
	return nil
}

func parseRange(text string, inside netip.Prefix, not ...netip.Addr) (netboot.Range, error) {
	r, err := netboot.ParseRange(text)
	if err != nil {
		return r, err
	}
	if !inside.Contains(r.First) || !inside.Contains(r.Last) {
		return r, fmt.Errorf("range %s: not inside %s", text, inside.Masked())
	}
	for _, a := range not {
		if a.IsValid() && r.Contains(a) {
			return r, fmt.Errorf("range %s: holds %s, which is taken", text, a)
		}
	}
	return r, nil
}

func (c *Config) setNetworks(raw fileConfig) error {
	names, vlans := map[string]bool{}, map[int]bool{}
	for _, n := range raw.Networks {
		if err := pki.ValidName(n.Name); err != nil {
			return fmt.Errorf("name: %w", err)
		}
		if names[n.Name] || vlans[n.VLAN] {
			return fmt.Errorf("%s: its name or VLAN %d is there twice", n.Name, n.VLAN)
		}
		names[n.Name], vlans[n.VLAN] = true, true
		if n.VLAN < 1 || n.VLAN > 4094 {
			return fmt.Errorf("%s: vlan %d: want 1 to 4094", n.Name, n.VLAN)
		}
		net := Network{Name: n.Name, VLAN: uint16(n.VLAN), PhoneHome: n.PhoneHome}
		var err error
		if n.Prefix != "" {
			if net.Prefix, err = netip.ParsePrefix(n.Prefix); err != nil {
				return fmt.Errorf("%s: prefix: %w", n.Name, err)
			}
		}
		if n.Gateway != "" {
			if net.Gateway, err = netip.ParseAddr(n.Gateway); err != nil {
				return fmt.Errorf("%s: gateway: %w", n.Name, err)
			}
		}
		for _, d := range n.DNS {
			a, err := netip.ParseAddr(d)
			if err != nil {
				return fmt.Errorf("%s: dns: %w", n.Name, err)
			}
			net.DNS = append(net.DNS, a)
		}
		if n.Range != "" {
			if net.Range, err = parseRange(n.Range, net.Prefix, net.Gateway); err != nil {
				return fmt.Errorf("%s: %w", n.Name, err)
			}
		}
		if len(n.PhoneHome) > maxPhoneHomeURLs {
			return fmt.Errorf("%s: phone_home: %d URLs are more than %d", n.Name, len(n.PhoneHome), maxPhoneHomeURLs)
		}
		for _, text := range n.PhoneHome {
			u, err := url.Parse(text)
			if err != nil || u.Scheme != "http" || u.Host == "" || !strings.HasSuffix(u.Path, "/") || !net.Prefix.IsValid() {
				return fmt.Errorf("%s: phone_home %q: want http://address/phone-home/ and a prefix", n.Name, text)
			}
		}
		c.Networks = append(c.Networks, net)
	}
	if !names[ProvisioningNetwork] {
		return fmt.Errorf("there must be one named %s", ProvisioningNetwork)
	}
	return nil
}

func (c *Config) checkSwitches() error {
	names := map[string]bool{}
	for _, s := range c.Switches {
		switch {
		case s.Name == "" || names[s.Name]:
			return fmt.Errorf("name %q: want a name of its own for each", s.Name)
		case s.Driver != "gnmi":
			return fmt.Errorf("%s: driver %q: want gnmi", s.Name, s.Driver)
		case s.Address == "":
			return fmt.Errorf("%s: address: missing", s.Name)
		}
		names[s.Name] = true
	}
	return nil
}

func (c *Config) network(name string) (Network, bool) {
	for _, n := range c.Networks {
		if n.Name == name {
			return n, true
		}
	}
	return Network{}, false
}

// imageKey loads the key that the rack's images must be signed by.
func (c *Config) imageKey() (images.PublicKey, error) {
	return images.LoadPublicKey(filepath.Join(c.PKI, "image.pub"))
}
