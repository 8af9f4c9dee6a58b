// Package network gives the in-memory agent its network: links, DHCPv4 leases, neighbours by LLDP, and a first clock.
// Moving switch ports is the business of its subpackage switchport.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// Link is one network interface at a moment.
type Link struct {
	Index   int
	Name    string
	MAC     net.HardwareAddr
	Up      bool // administratively
	Carrier bool
	Gone    bool // the last word about an interface that was removed
}

// Lease is an address that a DHCP server gave to one interface.
type Lease struct {
	Interface string
	MAC       net.HardwareAddr
	Address   netip.Prefix
	Gateway   netip.Addr // invalid if the server named none
	DNS       []netip.Addr
	Server    netip.Addr // the server's identifier
	Obtained  time.Time
	Expires   time.Time
}

// EventKind is what happened to an interface.
type EventKind string

// The kinds of events.
const (
	LinkUp     EventKind = "link-up"     // carrier is there; DHCP starts
	LinkDown   EventKind = "link-down"   // carrier is lost or the interface is gone
	NoCarrier  EventKind = "no-carrier"  // no interface has had carrier for Config.CarrierWait
	DHCPSilent EventKind = "dhcp-silent" // no server answered so far: the machine is unknown, or the port in a wrong network
	DHCPFailed EventKind = "dhcp-failed" // Err says why; it is tried again
	Leased     EventKind = "leased"      // a new address
	LeaseLost  EventKind = "lease-lost"  // the address expired, or its link went down, and was removed
)

// Event is one change, for the console and the log.
type Event struct {
	Kind      EventKind
	Interface string
	Lease     Lease // of Leased and LeaseLost
	Tries     int   // of DHCPSilent and DHCPFailed
	Err       error // of DHCPFailed
}

// String is a line for the console.
func (e Event) String() string {
	switch e.Kind {
	case NoCarrier:
		return "no network interface has a link: check the cables"
	case LinkUp:
		return e.Interface + ": link is up, asking for an address"
	case LinkDown:
		return e.Interface + ": link is down"
	case DHCPSilent:
		return fmt.Sprintf("%s: no DHCP server answers (%d tries): is this machine expected, is its port in the provisioning network?", e.Interface, e.Tries)
	case DHCPFailed:
		return fmt.Sprintf("%s: DHCP failed (%d tries): %v", e.Interface, e.Tries, e.Err)
	case Leased:
		return fmt.Sprintf("%s: address %s from %s", e.Interface, e.Lease.Address, e.Lease.Server)
	default:
		return fmt.Sprintf("%s: address %s is lost", e.Interface, e.Lease.Address)
	}
}

// Config says what Links does. The zero value of a field means its default.
type Config struct {
	Log         *slog.Logger    // required
	CarrierWait time.Duration   // after which NoCarrier is said; 10 s
	VendorClass string          // DHCP option 60; "bloomery-agent"
	Accept      func(Link) bool // which interfaces; physical ones (those with a device in /sys/class/net)
	Notify      func(Event)     // called from Run's goroutines one at a time; must not block
}

// Links brings up the interfaces and keeps their addresses. Make one with New, give Run a goroutine, wait with First.
type Links struct {
	cfg    Config
	kernel kernel
	dhcp   dhcpClient

	mu     sync.Mutex
	leases map[string]Lease
	change chan struct{} // closed and replaced when leases change
	notify sync.Mutex
}

// kernel is what Links needs of netlink.
type kernel interface {
	// watch sends the present links and then every change until ctx ends, and closes the channel.
	watch(ctx context.Context) (<-chan Link, error)
	setUp(l Link) error
	configure(l Link, lease Lease) error
	deconfigure(l Link, lease Lease) error
}

// New makes Links of the running kernel; nothing happens before Run.
func New(cfg Config) *Links {
	return newLinks(cfg, netlinkKernel{}, rawDHCP{class: cfg.VendorClass})
}

func newLinks(cfg Config, k kernel, d dhcpClient) *Links {
	if cfg.CarrierWait <= 0 {
		cfg.CarrierWait = 10 * time.Second
	}
	if cfg.Accept == nil {
		cfg.Accept = physical
	}
	return &Links{cfg: cfg, kernel: k, dhcp: d, leases: map[string]Lease{}, change: make(chan struct{})}
}

// physical tells whether hardware is behind an interface: not lo, bridges, bonds or tunnels.
func physical(l Link) bool {
	_, err := os.Stat(filepath.Join("/sys/class/net", l.Name, "device"))
	return err == nil
}

// Leases gives the present addresses, oldest first.
func (n *Links) Leases() []Lease {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := make([]Lease, 0, len(n.leases))
	for _, l := range n.leases {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b Lease) int { return a.Obtained.Compare(b.Obtained) })
	return list
}

// First waits until there is an address and gives the oldest. It needs Run in another goroutine.
func (n *Links) First(ctx context.Context) (Lease, error) {
	for {
		n.mu.Lock()
		changed := n.change
		n.mu.Unlock()
		if list := n.Leases(); len(list) > 0 {
			return list[0], nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return Lease{}, fmt.Errorf("wait for a network address: %w", ctx.Err())
		}
	}
}

// Run brings up every accepted interface, now and whenever one appears, asks for an address on each that has carrier,
// all at the same time, and keeps the addresses fresh. It goes on until ctx ends, and then leaves the addresses as they
// are: the agent's last words still need them. Everything it started has ended when it returns.
func (n *Links) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	updates, err := n.kernel.watch(ctx)
	if err != nil {
		return fmt.Errorf("watch the network links: %w", err)
	}
	workers := map[string]*worker{}
	defer func() {
		cancel()
		for _, w := range workers {
			<-w.done
		}
		for range updates { // until the watcher has ended
		}
	}()
	noCarrier := time.NewTimer(n.cfg.CarrierWait)
	defer noCarrier.Stop()
	for {
		select {
		case <-noCarrier.C:
			if len(workers) == 0 {
				n.tell(Event{Kind: NoCarrier})
			}
		case l, ok := <-updates:
			if !ok {
				if ctx.Err() != nil {
					return nil
				}
				return errors.New("watch the network links: the kernel ended the subscription")
			}
			n.follow(ctx, l, workers)
			if len(workers) == 0 {
				noCarrier.Reset(n.cfg.CarrierWait)
			}
		}
	}
}

// worker is the goroutine that asks for one interface's address.
type worker struct {
	mac    string
	cancel context.CancelFunc
	done   chan struct{}
}

// follow makes the workers fit a link's new state.
func (n *Links) follow(ctx context.Context, l Link, workers map[string]*worker) {
	w := workers[l.Name]
	if w != nil && (l.Gone || !l.Carrier || l.MAC.String() != w.mac) {
		w.cancel()
		<-w.done
		delete(workers, l.Name)
		w = nil
		n.tell(Event{Kind: LinkDown, Interface: l.Name})
		n.drop(l)
	}
	if l.Gone || !n.cfg.Accept(l) || len(l.MAC) != 6 {
		return
	}
	if !l.Up {
		if err := n.kernel.setUp(l); err != nil {
			n.cfg.Log.Warn("interface not brought up", "interface", l.Name, "error", err)
		}
		return // the kernel sends another update
	}
	if l.Carrier && w == nil {
		n.tell(Event{Kind: LinkUp, Interface: l.Name})
		ctx, cancel := context.WithCancel(ctx)
		w = &worker{mac: l.MAC.String(), cancel: cancel, done: make(chan struct{})}
		workers[l.Name] = w
		go func() {
			defer close(w.done)
			n.keepAddress(ctx, l)
		}()
	}
}

func (n *Links) tell(e Event) {
	n.cfg.Log.Info("network", "event", string(e.Kind), "interface", e.Interface, "message", e.String())
	if n.cfg.Notify != nil {
		n.notify.Lock()
		defer n.notify.Unlock()
		n.cfg.Notify(e)
	}
}

func (n *Links) set(lease Lease) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leases[lease.Interface] = lease
	close(n.change)
	n.change = make(chan struct{})
}

// drop forgets an interface's address, if it has one.
func (n *Links) drop(l Link) {
	n.mu.Lock()
	lease, ok := n.leases[l.Name]
	delete(n.leases, l.Name)
	n.mu.Unlock()
	if !ok {
		return
	}
	if !l.Gone {
		if err := n.kernel.deconfigure(l, lease); err != nil {
			n.cfg.Log.Warn("address not removed", "interface", l.Name, "address", lease.Address.String(), "error", err)
		}
	}
	n.tell(Event{Kind: LeaseLost, Interface: l.Name, Lease: lease})
}
