package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routeMetric is the metric of the first interface's default route; those with a higher index have higher ones.
const routeMetric = 100

// netlinkKernel is the running kernel.
type netlinkKernel struct{}

func (netlinkKernel) watch(ctx context.Context) (<-chan Link, error) {
	updates := make(chan netlink.LinkUpdate, 64)
	done := make(chan struct{})
	var failed atomic.Bool
	err := netlink.LinkSubscribeWithOptions(updates, done, netlink.LinkSubscribeOptions{
		ListExisting:  true,
		ErrorCallback: func(error) { failed.Store(true) },
	})
	if err != nil {
		close(done)
		return nil, err
	}
	links := make(chan Link)
	go func() {
		defer close(links)
		defer func() {
			close(done)
			for range updates {
			}
		}()
		for {
			select {
			case u, ok := <-updates:
				if !ok {
					return
				}
				select {
				case links <- linkOf(u):
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return links, nil
}

func linkOf(u netlink.LinkUpdate) Link {
	a := u.Attrs()
	return Link{
		Index: a.Index, Name: a.Name, MAC: a.HardwareAddr,
		Up:      a.Flags&net.FlagUp != 0,
		Carrier: a.RawFlags&unix.IFF_LOWER_UP != 0,
		Gone:    u.Header.Type == unix.RTM_DELLINK,
	}
}

func (netlinkKernel) setUp(l Link) error {
	return netlink.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.Index, Name: l.Name}})
}

func (netlinkKernel) configure(l Link, lease Lease) error {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.Index, Name: l.Name}}
	if err := netlink.AddrReplace(link, address(lease)); err != nil {
		return fmt.Errorf("set the address %s on %s: %w", lease.Address, l.Name, err)
	}
	if !lease.Gateway.IsValid() {
		return nil
	}
	if err := netlink.RouteReplace(route(l, lease)); err != nil {
		return fmt.Errorf("set the route through %s on %s: %w", lease.Gateway, l.Name, err)
	}
	return nil
}

func (netlinkKernel) deconfigure(l Link, lease Lease) error {
	link := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: l.Index, Name: l.Name}}
	err := netlink.AddrDel(link, address(lease))
	if errors.Is(err, unix.EADDRNOTAVAIL) {
		return nil // the kernel removed it when its time was over
	}
	return err
}

func address(lease Lease) *netlink.Addr {
	ip := net.IP(lease.Address.Addr().AsSlice())
	valid := int(max(time.Until(lease.Expires)/time.Second, 1))
	return &netlink.Addr{
		IPNet:    &net.IPNet{IP: ip, Mask: net.CIDRMask(lease.Address.Bits(), 32)},
		ValidLft: valid, PreferedLft: valid,
	}
}

func route(l Link, lease Lease) *netlink.Route {
	r := &netlink.Route{
		LinkIndex: l.Index, Gw: lease.Gateway.AsSlice(), Src: lease.Address.Addr().AsSlice(), Priority: routeMetric + l.Index,
		Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
	}
	if !lease.Address.Contains(lease.Gateway) {
		r.Flags = int(netlink.FLAG_ONLINK)
	}
	return r
}
