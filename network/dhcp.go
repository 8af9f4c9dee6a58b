package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/insomniacslk/dhcp/iana"
)

const (
	defaultClass = "bloomery-agent"
	// retransmit is the wait for an answer before the first repetition; it doubles with each of the sends.
	retransmit = time.Second
	sends      = 3
	// leaseFloor and leaseCeiling bound what a server may say.
	leaseFloor   = 10 * time.Second
	leaseCeiling = 7 * 24 * time.Hour
	maxDNS       = 4
)

// errRefused is wrapped when a server took a lease back (DHCPNAK).
var errRefused = errors.New("the DHCP server refused the address")

// rawDHCP is a dhcpClient on packet sockets, which work before an interface has an address.
type rawDHCP struct{ class string }

func (r rawDHCP) open(l Link) (*nclient4.Client, error) {
	c, err := nclient4.New(l.Name, nclient4.WithHWAddr(l.MAC), nclient4.WithTimeout(retransmit), nclient4.WithRetry(sends))
	if err != nil {
		return nil, fmt.Errorf("open a DHCP socket on %s: %w", l.Name, err)
	}
	return c, nil
}

// options tells the server who asks: the MAC as client identifier (RFC 2132, section 9.14), since that is how machines are known.
func (r rawDHCP) options(l Link) []dhcpv4.Modifier {
	return []dhcpv4.Modifier{
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier(cmp.Or(r.class, defaultClass))),
		dhcpv4.WithOption(dhcpv4.OptClientIdentifier(append([]byte{byte(iana.HWTypeEthernet)}, l.MAC...))),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer),
	}
}

func (r rawDHCP) request(ctx context.Context, l Link) (Lease, error) {
	c, err := r.open(l)
	if err != nil {
		return Lease{}, err
	}
	defer c.Close()
	got, err := c.Request(ctx, r.options(l)...)
	if err != nil {
		return Lease{}, dhcpError(err)
	}
	return leaseOf(l, got.ACK, got.CreationTime)
}

func (r rawDHCP) renew(ctx context.Context, l Link, lease Lease) (Lease, error) {
	c, err := r.open(l)
	if err != nil {
		return Lease{}, err
	}
	defer c.Close()
	// The renewal goes out as a broadcast with ciaddr set, so that any coordinator hears it.
	id := dhcpv4.OptServerIdentifier(lease.Server.AsSlice())
	isReply := func(d *dhcpv4.DHCPv4) { d.OpCode = dhcpv4.OpcodeBootReply }
	ack, err := dhcpv4.New(isReply, dhcpv4.WithHwAddr(l.MAC), dhcpv4.WithYourIP(lease.Address.Addr().AsSlice()), dhcpv4.WithOption(id))
	if err != nil {
		return Lease{}, fmt.Errorf("renew a lease: %w", err)
	}
	got, err := c.Renew(ctx, &nclient4.Lease{Offer: ack, ACK: ack, CreationTime: lease.Obtained}, r.options(l)...)
	if err != nil {
		return Lease{}, dhcpError(err)
	}
	return leaseOf(l, got.ACK, time.Now())
}

func dhcpError(err error) error {
	var nak *nclient4.ErrNak
	switch {
	case errors.Is(err, nclient4.ErrNoResponse):
		return errSilent
	case errors.As(err, &nak):
		return errRefused
	default:
		return err
	}
}

// leaseOf checks what the server said.
func leaseOf(l Link, ack *dhcpv4.DHCPv4, now time.Time) (Lease, error) {
	addr, ok := addrOf(ack.YourIPAddr)
	if !ok || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLoopback() {
		return Lease{}, fmt.Errorf("the DHCP server gave the address %v, which no machine can have", ack.YourIPAddr)
	}
	mask := ack.SubnetMask()
	if mask == nil {
		mask = ack.YourIPAddr.DefaultMask()
	}
	bits, size := mask.Size()
	if size != 32 || bits == 0 {
		return Lease{}, fmt.Errorf("the DHCP server gave the netmask %v, which is none", mask)
	}
	seconds := min(max(ack.IPAddressLeaseTime(time.Hour), leaseFloor), leaseCeiling)
	lease := Lease{Interface: l.Name, MAC: l.MAC, Address: netip.PrefixFrom(addr, bits), Obtained: now, Expires: now.Add(seconds)}
	lease.Server, _ = addrOf(ack.ServerIdentifier())
	if routers := ack.Router(); len(routers) > 0 {
		lease.Gateway, _ = addrOf(routers[0])
	}
	for _, ip := range ack.DNS() {
		if a, ok := addrOf(ip); ok && len(lease.DNS) < maxDNS {
			lease.DNS = append(lease.DNS, a)
		}
	}
	return lease, nil
}

func addrOf(ip net.IP) (netip.Addr, bool) {
	a, ok := netip.AddrFromSlice(ip)
	return a.Unmap(), ok && a.Unmap().Is4()
}
