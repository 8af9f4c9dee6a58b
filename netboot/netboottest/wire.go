// Package netboottest is an Ethernet segment in memory with DHCP clients that behave as firmware does, for tests and benchmarks of boot servers.
package netboottest

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// queued is how many packets a socket holds; more are lost, as by a network card.
const queued = 4096

// Wire is the segment. What a client sends reaches every server, a server's answer the client whose MAC address it carries.
type Wire struct {
	mu      sync.Mutex
	servers map[*serverConn]bool
	clients map[string]chan *dhcpv4.DHCPv4
	lost    int
}

// NewWire makes a segment that nothing is plugged into.
func NewWire() *Wire {
	return &Wire{servers: map[*serverConn]bool{}, clients: map[string]chan *dhcpv4.DHCPv4{}}
}

// Server plugs a server in: its UDP socket. Close pulls the plug.
func (w *Wire) Server() net.PacketConn {
	c := &serverConn{wire: w, packets: make(chan []byte, queued), closed: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.servers[c] = true
	return c
}

// Lost is how many packets found a full socket.
func (w *Wire) Lost() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost
}

// send is what a client puts on the wire.
func (w *Wire) send(packet []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.servers {
		select {
		case c.packets <- packet:
		default:
			w.lost++
		}
	}
}

// deliver is what a server puts on the wire.
func (w *Wire) deliver(packet []byte) error {
	p, err := dhcpv4.FromBytes(packet)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if inbox := w.clients[p.ClientHWAddr.String()]; inbox != nil {
		select {
		case inbox <- p:
		default:
			w.lost++
		}
	}
	return nil
}

type serverConn struct {
	wire    *Wire
	packets chan []byte
	once    sync.Once
	closed  chan struct{}
}

func (c *serverConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-c.closed:
		return 0, nil, net.ErrClosed
	case p := <-c.packets:
		return copy(b, p), &net.UDPAddr{IP: net.IPv4zero, Port: 68}, nil
	}
}

func (c *serverConn) WriteTo(b []byte, _ net.Addr) (int, error) { return len(b), c.wire.deliver(b) }

// Send makes the socket a netboot.LinkSender too.
func (c *serverConn) Send(_ net.HardwareAddr, _ netip.Addr, _ uint16, payload []byte) error {
	return c.wire.deliver(payload)
}

func (c *serverConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.wire.mu.Lock()
		defer c.wire.mu.Unlock()
		delete(c.wire.servers, c)
	})
	return nil
}

func (c *serverConn) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4zero, Port: 67} }

// Deadlines are not used by the servers.
func (c *serverConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *serverConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *serverConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }
