package faults

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
)

// relay carries the machines' DHCP to every coordinator and the first answer back, as a relay agent does (RFC 2131, section 4.1 and RFC 1542).
type relay struct {
	w       *world
	conn    net.PacketConn
	mu      sync.Mutex
	waiting map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4
	leased  map[string]netip.Addr
}

func (w *world) startRelay() (*relay, error) {
	conn, err := new(net.ListenConfig).ListenPacket(w.ctx, "udp4", netip.AddrPortFrom(hub, 67).String())
	if err != nil {
		return nil, err
	}
	r := &relay{w: w, conn: conn, waiting: map[dhcpv4.TransactionID]chan *dhcpv4.DHCPv4{}, leased: map[string]netip.Addr{}}
	w.running.Go(func() {
		<-w.ctx.Done()
		_ = conn.Close() // ends the reader
	})
	w.running.Go(r.read)
	return r, nil
}

func (r *relay) read() {
	buffer := make([]byte, 1500)
	for r.w.ctx.Err() == nil {
		n, from, err := r.conn.ReadFrom(buffer)
		if err != nil {
			continue
		}
		answer, err := dhcpv4.FromBytes(buffer[:n])
		if err != nil {
			r.w.note("DHCP answer from %s: %v", from, err)
			continue
		}
		r.mu.Lock()
		waiter := r.waiting[answer.TransactionID]
		r.mu.Unlock()
		if waiter != nil {
			select {
			case waiter <- answer:
			default:
			}
		}
	}
}

// lease asks as UEFI's HTTP boot does until a coordinator leases an address. Every answer to a machine must name the same one.
func (r *relay) lease(ctx context.Context, m *machine) (netip.Addr, error) {
	for ctx.Err() == nil {
		offer := r.ask(ctx, m, dhcpv4.MessageTypeDiscover)
		if offer == nil {
			continue
		}
		ack := r.ask(ctx, m, dhcpv4.MessageTypeRequest,
			dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(offer.YourIPAddr)), dhcpv4.WithOption(dhcpv4.OptServerIdentifier(offer.ServerIdentifier())))
		if ack != nil && ack.MessageType() == dhcpv4.MessageTypeAck {
			address, _ := netip.AddrFromSlice(ack.YourIPAddr.To4())
			return address, nil
		}
	}
	return netip.Addr{}, errNoLease
}

func (r *relay) ask(ctx context.Context, m *machine, kind dhcpv4.MessageType, more ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	request, err := dhcpv4.New(append([]dhcpv4.Modifier{
		dhcpv4.WithHwAddr(m.mac), dhcpv4.WithMessageType(kind), dhcpv4.WithRelay(hub.AsSlice()),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("HTTPClient:Arch:00016:UNDI:003001")), dhcpv4.WithOption(dhcpv4.OptClientArch(iana.EFI_X86_64_HTTP)),
	}, more...)...)
	if err != nil {
		r.w.note("make a DHCP request: %v", err)
		return nil
	}
	answers := make(chan *dhcpv4.DHCPv4, len(r.w.nodes))
	r.mu.Lock()
	r.waiting[request.TransactionID] = answers
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.waiting, request.TransactionID)
	}()
	for _, n := range r.w.nodes {
		// A coordinator that cannot be reached is what the test is about.
		_, _ = r.conn.WriteTo(request.ToBytes(), &net.UDPAddr{IP: n.address.AsSlice(), Port: 67})
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(time.Second): // firmware waits for longer
		return nil
	case answer := <-answers:
		if answer.MessageType() != dhcpv4.MessageTypeNak {
			r.sameAsBefore(m, answer)
		}
		return answer
	}
}

func (r *relay) sameAsBefore(m *machine, answer *dhcpv4.DHCPv4) {
	address, _ := netip.AddrFromSlice(answer.YourIPAddr.To4())
	r.mu.Lock()
	defer r.mu.Unlock()
	if before, ok := r.leased[m.name]; ok && before != address {
		r.w.note("machine %s was leased %s and later %s by %s", m.name, before, address, answer.ServerIdentifier())
	}
	for other, taken := range r.leased {
		if taken == address && other != m.name {
			r.w.note("machines %s and %s were both leased %s", other, m.name, address)
		}
	}
	r.leased[m.name] = address
}
