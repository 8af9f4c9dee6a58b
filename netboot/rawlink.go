package netboot

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/mdlayher/packet"
	"golang.org/x/sys/unix"
)

const etherTypeIPv4 = 0x0800

// rawLink is the LinkSender of an Ethernet interface, by a packet socket.
type rawLink struct {
	conn *packet.Conn
	mac  net.HardwareAddr
	from netip.Addr
}

// newRawLink opens a packet socket that only sends: protocol 0 receives nothing.
func newRawLink(ifi *net.Interface, from netip.Addr) (*rawLink, error) {
	conn, err := packet.Listen(ifi, packet.Raw, 0, nil)
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s: %w", ifi.Name, err)
	}
	return &rawLink{conn: conn, mac: ifi.HardwareAddr, from: from}, nil
}

// Close closes the socket.
func (l *rawLink) Close() error { return l.conn.Close() }

// Send implements LinkSender.
func (l *rawLink) Send(to net.HardwareAddr, ip netip.Addr, port uint16, payload []byte) error {
	frame := dhcpFrame(l.mac, to, netip.AddrPortFrom(l.from, dhcpServerPort), netip.AddrPortFrom(ip, port), payload)
	_, err := l.conn.WriteTo(frame, &packet.Addr{HardwareAddr: to})
	return err
}

// dhcpFrame is an Ethernet II frame with IPv4 (RFC 791, section 3.1) and UDP
// (RFC 768) around the payload.
func dhcpFrame(src, dst net.HardwareAddr, from, to netip.AddrPort, payload []byte) []byte {
	const ethernet, ipv4, udp = 14, 20, 8
	f := make([]byte, ethernet+ipv4+udp, ethernet+ipv4+udp+len(payload))
	copy(f[0:6], dst)
	copy(f[6:12], src)
	binary.BigEndian.PutUint16(f[12:], etherTypeIPv4)

	ip := f[ethernet : ethernet+ipv4]
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(ipv4+udp+len(payload)))
	ip[8], ip[9] = 64, unix.IPPROTO_UDP
	copy(ip[12:16], from.Addr().AsSlice())
	copy(ip[16:20], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(ip[10:], ^onesSum(0, ip))

	head := f[ethernet+ipv4:]
	binary.BigEndian.PutUint16(head[0:], from.Port())
	binary.BigEndian.PutUint16(head[2:], to.Port())
	binary.BigEndian.PutUint16(head[4:], uint16(udp+len(payload)))
	sum := onesSum(0, ip[12:20])
	sum = onesSum(sum, []byte{0, unix.IPPROTO_UDP, head[4], head[5]})
	sum = onesSum(onesSum(sum, head), payload)
	if sum = ^sum; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(head[6:], sum)
	return append(f, payload...)
}

// onesSum adds 16-bit words in ones' complement (RFC 1071) to sum.
func onesSum(sum uint16, b []byte) uint16 {
	total := uint32(sum)
	for ; len(b) >= 2; b = b[2:] {
		total += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint32(b[0]) << 8
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}

// ListenDHCP opens a UDP socket that hears and sends broadcasts on one
// interface only. It needs CAP_NET_BIND_SERVICE and CAP_NET_RAW.
func ListenDHCP(ctx context.Context, ifname, address string) (net.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			if failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1); failed != nil {
				return
			}
			if failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); failed != nil {
				return
			}
			failed = unix.BindToDevice(int(fd), ifname)
		})
		if err != nil {
			return err
		}
		return failed
	}}
	conn, err := lc.ListenPacket(ctx, "udp4", address)
	if err != nil {
		return nil, fmt.Errorf("listen on %s of %s: %w", address, ifname, err)
	}
	return conn, nil
}
