package faults

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"bloomery/lab/netns"
)

const (
	apiPort       = 8443
	clusterPort   = 9000
	phoneHomePort = 8080
	// diskSize is each coordinator's, in bytes.
	diskSize = 768 << 20
)

// Addresses of the world: everything but the coordinators is at the hub, which is reached through one bridge.
var (
	network        = netip.MustParsePrefix("10.99.0.0/16")
	hub            = netip.MustParseAddr("10.99.0.254")
	leases         = netip.MustParsePrefix("10.99.1.0/24")
	controllers    = netip.MustParsePrefix("10.99.2.0/24")
	customer       = netip.MustParsePrefix("10.98.0.0/16")
	nowhere, _     = net.ParseMAC("02:00:00:00:de:ad")
	localAddresses = []netip.Prefix{leases, controllers, customer}
)

// world is a rack: coordinators in namespaces, and all that they talk to in the test's own process.
type world struct {
	t        *testing.T
	ctx      context.Context
	dir      string
	record   *recorder
	nodes    []*node
	devices  *devices
	machines []*machine
	relay    *relay
	operator *operator
	running  sync.WaitGroup
	// stopAsking ends the asking for new jobs, and the reporters; jobs that run go on.
	stopAsking chan struct{}
	stop       sync.Once
	asking     sync.WaitGroup

	mu         sync.Mutex
	unexpected []string
}

// note keeps what a client saw that must not be and that the history has no words for.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := fmt.Sprintf(format, args...)
	w.unexpected = append(w.unexpected, text)
	w.t.Log(text)
}

// pause waits, and says false when the world ends.
func (w *world) pause(d time.Duration) bool { return pause(w.ctx, d) }

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func prefixNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// layHub makes the bridge, and lets the test's process use every address of the machines.
func layHub() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkAdd(bridge), netlink.LinkSetUp(bridge)); err != nil {
		return fmt.Errorf("make the bridge: %w", err)
	}
	if err := netlink.AddrAdd(bridge, &netlink.Addr{IPNet: &net.IPNet{IP: hub.AsSlice(), Mask: prefixNet(network).Mask}}); err != nil {
		return fmt.Errorf("give the hub its address: %w", err)
	}
	for _, p := range localAddresses {
		// As "ip route add local PREFIX dev lo": each address of it is the host's.
		route := &netlink.Route{Dst: prefixNet(p), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
		if err := netlink.RouteAdd(route); err != nil {
			return fmt.Errorf("route %s to the hub: %w", p, err)
		}
	}
	return nil
}

// layNode makes a coordinator's namespace, wire and disk.
func (w *world) layNode(i int) (*node, error) {
	n := &node{w: w, name: fmt.Sprintf("c%d", i), address: netip.AddrFrom4([4]byte{10, 99, 0, byte(i)})}
	n.dir = filepath.Join(w.dir, n.name)
	n.config = filepath.Join(w.dir, n.name+".yaml")
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", n.dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", diskSize)); err != nil {
		return nil, fmt.Errorf("make the disk of %s: %w", n.name, err)
	}
	if err := netns.Create(n.name); err != nil {
		return nil, err
	}
	var err error
	if n.log, err = os.OpenFile(filepath.Join(w.dir, n.name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return nil, err
	}
	path, err := netns.Path(n.name)
	if err != nil {
		return nil, err
	}
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = ns.Close() }() // opened for reading only
	wire := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v-" + n.name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := netlink.LinkAdd(wire); err != nil {
		return nil, fmt.Errorf("make the wire of %s: %w", n.name, err)
	}
	bridge, err := netlink.LinkByName("br0")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(netlink.LinkSetMaster(wire, bridge), netlink.LinkSetUp(wire)); err != nil {
		return nil, fmt.Errorf("plug the wire of %s: %w", n.name, err)
	}
	if err := netns.AddAddress(n.name, "eth0", netip.PrefixFrom(n.address, network.Bits())); err != nil {
		return nil, err
	}
	err = netns.Do(n.name, func() error {
		all := []error{netlink.RouteAdd(&netlink.Route{Gw: hub.AsSlice()})}
		for _, p := range localAddresses {
			// Through the hub's address, so that one cut loses all that is sent there.
			all = append(all, netlink.RouteAdd(&netlink.Route{Dst: prefixNet(p), Gw: hub.AsSlice()}))
		}
		return errors.Join(all...)
	})
	if err != nil {
		return nil, fmt.Errorf("route out of %s: %w", n.name, err)
	}
	return n, nil
}

// cut loses all packets that an address's namespace sends to another address, silently, as a bad cable does: they go to a MAC address that
// nobody has. The empty namespace is the hub's. It returns what mends it.
func cut(namespace, iface string, to netip.Addr) (mend func() error, err error) {
	in := func(do func(link netlink.Link) error) error {
		here := func() error {
			link, err := netlink.LinkByName(iface)
			if err != nil {
				return err
			}
			return do(link)
		}
		if namespace == "" {
			return here()
		}
		return netns.Do(namespace, here)
	}
	neighbour := func(link netlink.Link, state int, mac net.HardwareAddr) *netlink.Neigh {
		return &netlink.Neigh{LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V4, State: state, IP: to.AsSlice(), HardwareAddr: mac}
	}
	err = in(func(link netlink.Link) error {
		return netlink.NeighSet(neighbour(link, netlink.NUD_PERMANENT, nowhere))
	})
	if err != nil {
		return nil, fmt.Errorf("cut %s from %s: %w", to, namespace, err)
	}
	return func() error {
		return in(func(link netlink.Link) error {
			err := netlink.NeighDel(neighbour(link, netlink.NUD_PERMANENT, nil))
			if errors.Is(err, unix.ENOENT) {
				return nil
			}
			return err
		})
	}, nil
}

// cutNode loses what a coordinator sends to the other coordinators and the hub, or what they send to it.
func (w *world) cutNode(n *node, out, in bool) (mend func() error, err error) {
	var mends []func() error
	mendAll := func() error {
		var all []error
		for _, m := range mends {
			all = append(all, m())
		}
		return errors.Join(all...)
	}
	one := func(namespace, iface string, to netip.Addr) {
		m, cutErr := cut(namespace, iface, to)
		if err = errors.Join(err, cutErr); cutErr == nil {
			mends = append(mends, m)
		}
	}
	if out {
		one(n.name, "eth0", hub)
	}
	if in {
		one("", "br0", n.address)
	}
	for _, other := range w.nodes {
		if other == n {
			continue
		}
		if out {
			one(n.name, "eth0", other.address)
		}
		if in {
			one(other.name, "eth0", n.address)
		}
	}
	if err != nil {
		return nil, errors.Join(err, mendAll())
	}
	return mendAll, nil
}

// tail is the end of a coordinator's log, for a failure's message.
func (n *node) tail(lines int) string {
	data, err := os.ReadFile(n.log.Name())
	if err != nil {
		return err.Error()
	}
	all := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(all[max(0, len(all)-lines):], []byte("\n")))
}

// misbehaviour is what a coordinator's log has of races that the detector found and of panics; empty when there is none.
func (n *node) misbehaviour() string {
	data, err := os.ReadFile(n.log.Name())
	if err != nil {
		return err.Error()
	}
	for _, sign := range []string{"WARNING: DATA RACE", "\npanic: ", "\nfatal error: "} {
		if i := bytes.Index(data, []byte(sign)); i >= 0 {
			return string(data[i:min(len(data), i+4000)])
		}
	}
	return ""
}
