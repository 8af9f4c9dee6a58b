package netboot

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
)

// Directory is what the servers ask the coordinator. Both calls must honour
// their context's deadline; neither is called for more than a bounded number of
// packets at a time.
type Directory interface {
	// Lookup says what is known of a MAC address. It changes nothing. An
	// unknown MAC address is a Host with Known false, not an error.
	Lookup(ctx context.Context, mac net.HardwareAddr) (Host, error)
	// Lease allocates the address of a machine that is wanted, or returns the
	// one that it has: asking twice gives the same answer, from every
	// coordinator.
	Lease(ctx context.Context, mac net.HardwareAddr) (netip.Addr, error)
}

// Allowed says which machine an address is leased to, and whether that machine
// is expected to boot the agent: only then may it fetch files.
type Allowed func(ctx context.Context, from netip.Addr) (machine string, ok bool)

// Range is an inclusive range of IPv4 addresses that leases are taken from.
type Range struct {
	First, Last netip.Addr
}

// ParseRange reads "10.66.0.100-10.66.0.199".
func ParseRange(s string) (Range, error) {
	first, last, ok := strings.Cut(s, "-")
	if !ok {
		return Range{}, fmt.Errorf("range %q: want FIRST-LAST, such as 10.66.0.100-10.66.0.199", s)
	}
	var r Range
	var err error
	if r.First, err = netip.ParseAddr(strings.TrimSpace(first)); err != nil {
		return Range{}, fmt.Errorf("range %q: first address: %w", s, err)
	}
	if r.Last, err = netip.ParseAddr(strings.TrimSpace(last)); err != nil {
		return Range{}, fmt.Errorf("range %q: last address: %w", s, err)
	}
	if err := r.validate(); err != nil {
		return Range{}, err
	}
	return r, nil
}

// Contains says whether a lies in the range.
func (r Range) Contains(a netip.Addr) bool {
	return a.Is4() && a.Compare(r.First) >= 0 && a.Compare(r.Last) <= 0
}

// String is what ParseRange reads.
func (r Range) String() string { return r.First.String() + "-" + r.Last.String() }

func (r Range) validate() error {
	switch {
	case !r.First.Is4() || !r.Last.Is4():
		return fmt.Errorf("range %s: want two IPv4 addresses", r)
	case r.Last.Less(r.First):
		return fmt.Errorf("range %s: the last address comes before the first", r)
	}
	return nil
}

// inside says that the range holds host addresses of the network only, and not
// the server's own address.
func (r Range) inside(network netip.Prefix) error {
	if err := r.validate(); err != nil {
		return err
	}
	if !network.Contains(r.First) || !network.Contains(r.Last) {
		return fmt.Errorf("range %s: not inside the network %s", r, network.Masked())
	}
	if r.Contains(network.Addr()) {
		return fmt.Errorf("range %s: holds the server's own address %s", r, network.Addr())
	}
	if base := network.Masked().Addr(); r.Contains(base) {
		return fmt.Errorf("range %s: holds the network's own address %s", r, base)
	}
	if all := broadcastOf(network); r.Contains(all) {
		return fmt.Errorf("range %s: holds the broadcast address %s", r, all)
	}
	return nil
}

func broadcastOf(network netip.Prefix) netip.Addr {
	a := network.Addr().As4()
	mask := net.CIDRMask(network.Bits(), 32)
	for i := range a {
		a[i] |= ^mask[i]
	}
	return netip.AddrFrom4(a)
}

// macKey is a MAC address as a map key.
func macKey(mac net.HardwareAddr) (k [6]byte) {
	copy(k[:], mac)
	return k
}
