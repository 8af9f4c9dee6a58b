package netns

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Listen opens a TCP listener ("tcp", "tcp4", "tcp6") inside the namespace. Addr is "IP:port" or ":port": a host name
// would be resolved on a thread outside of the namespace, so it is refused. The listener is used like any other.
func Listen(ctx context.Context, name, network, addr string) (net.Listener, error) {
	if err := numeric(addr); err != nil {
		return nil, fmt.Errorf("listen in network namespace %s: %w", name, err)
	}
	var l net.Listener
	err := Do(name, func() error {
		var lc net.ListenConfig
		var err error
		l, err = lc.Listen(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s %s in network namespace %s: %w", network, addr, name, err)
	}
	return l, nil
}

// ListenPacket is Listen for datagrams ("udp", "udp4", "udp6").
func ListenPacket(ctx context.Context, name, network, addr string) (net.PacketConn, error) {
	if err := numeric(addr); err != nil {
		return nil, fmt.Errorf("listen in network namespace %s: %w", name, err)
	}
	var c net.PacketConn
	err := Do(name, func() error {
		var lc net.ListenConfig
		var err error
		c, err = lc.ListenPacket(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s %s in network namespace %s: %w", network, addr, name, err)
	}
	return c, nil
}

// Dial connects from inside the namespace to a numeric address.
func Dial(ctx context.Context, name, network, addr string) (net.Conn, error) {
	if err := numeric(addr); err != nil {
		return nil, fmt.Errorf("dial in network namespace %s: %w", name, err)
	}
	var c net.Conn
	err := Do(name, func() error {
		var d net.Dialer
		var err error
		c, err = d.DialContext(ctx, network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial %s %s in network namespace %s: %w", network, addr, name, err)
	}
	return c, nil
}

// AddAddress gives an interface in the namespace a further address and brings the interface up.
func AddAddress(name, iface string, prefix netip.Prefix) error {
	if !prefix.IsValid() {
		return fmt.Errorf("add address to %s in network namespace %s: no valid prefix given", iface, name)
	}
	err := Do(name, func() error {
		link, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{
			IP:   prefix.Addr().AsSlice(),
			Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return err
		}
		return netlink.LinkSetUp(link)
	})
	if err != nil {
		return fmt.Errorf("add %s to %s in network namespace %s: %w", prefix, iface, name, err)
	}
	return nil
}

func numeric(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("address %q: want IP:port: %w", addr, err)
	}
	if host == "" {
		return nil
	}
	if _, err := netip.ParseAddr(host); err != nil {
		return fmt.Errorf("address %q: want an IP address, not a name: %w", addr, err)
	}
	return nil
}
