package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"bloomery/lab/netns"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// AddTapPort makes a port whose far end is a tap interface in a network namespace, up, with the address unless it is the zero
// Prefix. The interface is not persistent: it goes with the switch, or with the process however that ends.
func (s *Switch) AddTapPort(name, namespace, iface string, addr netip.Prefix, v VLAN) error {
	if iface == "" || len(iface) >= unix.IFNAMSIZ {
		return fmt.Errorf("port %s: interface name %q: want 1 to %d characters", name, iface, unix.IFNAMSIZ-1)
	}
	var file *os.File
	err := netns.Do(namespace, func() error {
		var err error
		if file, err = openTap(iface); err != nil {
			return err
		}
		return setUp(iface, addr)
	})
	if err != nil {
		if file != nil {
			err = errors.Join(err, file.Close())
		}
		return fmt.Errorf("port %s: tap %s in network namespace %s: %w", name, iface, namespace, err)
	}
	t := &tapPort{sw: s, link: &link{kind: "tap", far: namespace + "/" + iface}, file: file}
	if err := s.plug(name, v, t.link, t, t.serve); err != nil {
		return errors.Join(err, file.Close())
	}
	return nil
}

// openTap makes the interface in the calling thread's namespace.
func openTap(iface string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	req, err := unix.NewIfreq(iface)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	// TUN_EXCL: an interface of that name must not be taken over.
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return nil, errors.Join(fmt.Errorf("make interface: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "tap "+iface), nil
}

func setUp(iface string, prefix netip.Prefix) error {
	l, err := netlink.LinkByName(iface)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	if prefix.IsValid() {
		addr := &netlink.Addr{IPNet: &net.IPNet{
			IP:   prefix.Addr().AsSlice(),
			Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen()),
		}}
		if err := netlink.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("add %s: %w", prefix, err)
		}
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

type tapPort struct {
	sw   *Switch
	link *link
	file *os.File
}

func (t *tapPort) serve() {
	out := newOutbox(t.sw.queue)
	t.sw.carrier(t.link, out)
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		t.write(out)
	}()
	r := &receiver{sw: t.sw, link: t.link}
	buf := make([]byte, maxFrame+1) // one more, so that a frame cut short is seen as too long
	for {
		n, err := t.file.Read(buf)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				t.sw.log.Warn("tap ended", "tap", t.link.far, "error", err)
			}
			break
		}
		r.frame(buf[:n])
	}
	out.close()
	<-writer
	t.sw.carrier(t.link, nil)
}

func (t *tapPort) write(out *outbox) {
	var spare []byte
	for {
		batch, ok := out.take(spare)
		if !ok {
			return
		}
		for rest := batch; len(rest) > 0; {
			n := int(binary.BigEndian.Uint32(rest))
			frame := rest[lengthPrefix : lengthPrefix+n]
			rest = rest[lengthPrefix+n:]
			if _, err := t.file.Write(frame); errors.Is(err, os.ErrClosed) {
				return
			}
			// EIO: someone set the interface down; frames are lost as on any interface that is down
		}
		spare = batch
	}
}

// Close implements io.Closer for the switch; the kernel removes the interface.
func (t *tapPort) Close() error { return t.file.Close() }
