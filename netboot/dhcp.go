package netboot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

const (
	// maxDHCPPacket is one Ethernet payload: nothing that a client sends is larger.
	maxDHCPPacket = 1500
	// dhcpWorkers bounds how many packets are being answered at a time, dhcpQueue how many wait for that: a rack that is switched on at once
	// sends one for each machine.
	dhcpWorkers = 32
	dhcpQueue   = 1024
	// dhcpTimeout is below the 4 s after which a client asks again (RFC 2131,
	// section 4.1): a later answer would find the client elsewhere.
	dhcpTimeout = 3 * time.Second

	dhcpServerPort = 67
	dhcpClientPort = 68

	// DefaultLeaseTime is short, so that a machine which moves on to another
	// network does not keep its provisioning address for long.
	DefaultLeaseTime = 10 * time.Minute
)

// DHCPConfig is what a DHCP server needs to know.
type DHCPConfig struct {
	// Address is the server's own address and the network's mask.
	Address netip.Prefix
	// Range is where leases come from; an address outside is never offered.
	Range Range
	// BootURL is what comes before the file's name in the URL of an HTTP boot,
	// such as "http://10.66.0.1/boot/". Its host is an address unless DNS is
	// set. "" leaves HTTP boot firmware without an answer.
	BootURL string
	// TFTP says that a TFTP server runs on Address, port 69. PXE firmware gets
	// no answer without.
	TFTP bool
	// Router and DNS are sent if they are set. The provisioning network is
	// isolated by default and has neither.
	Router netip.Addr
	DNS    []netip.Addr
	// LeaseTime is DefaultLeaseTime if zero; at least a minute otherwise.
	LeaseTime time.Duration

	Directory Directory
	// Observer may be nil.
	Observer Observer
	Logger   *slog.Logger
	// Link sends to clients that have no address yet and do not ask for a
	// broadcast. With nil they get a broadcast, which RFC 2131 allows too.
	Link LinkSender
}

// LinkSender puts a UDP datagram into a frame for a MAC address, without asking
// ARP for it: a client answers no ARP before it has its address.
type LinkSender interface {
	Send(to net.HardwareAddr, ip netip.Addr, port uint16, payload []byte) error
}

// DHCPStats counts packets since the server was made.
type DHCPStats struct {
	// Received is every packet read, Malformed those that are no DHCP request,
	// Limited those above the packet rate, for which the queue had no room, or
	// that waited so long that the client has gone on.
	Received, Malformed, Limited uint64
	// Silent, Refused, Leased and Booted count the answers by Action.
	Silent, Refused, Leased, Booted uint64
	// Failed counts requests that the Directory or the network failed.
	Failed uint64
}

type dhcpCounters struct {
	received, malformed, limited, silent, refused, leased, booted, failed atomic.Uint64
}

// DHCPServer answers the DHCP requests of machines that are expected to boot.
type DHCPServer struct {
	cfg     DHCPConfig
	events  *observer
	limit   *packetLimit
	counter dhcpCounters
}

// NewDHCPServer checks the configuration; the error names the field.
func NewDHCPServer(cfg DHCPConfig) (*DHCPServer, error) {
	if cfg.LeaseTime == 0 {
		cfg.LeaseTime = DefaultLeaseTime
	}
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("dhcp server: %w", err)
	}
	return &DHCPServer{cfg: cfg, events: newObserver(cfg.Observer), limit: newPacketLimit()}, nil
}

func (c DHCPConfig) validate() error {
	switch {
	case !c.Address.IsValid() || !c.Address.Addr().Is4():
		return errors.New("address: want an IPv4 address and prefix length, such as 10.66.0.1/24")
	case c.Directory == nil:
		return errors.New("directory: want one")
	case c.Logger == nil:
		return errors.New("logger: want one")
	case c.LeaseTime < time.Minute || c.LeaseTime > 24*time.Hour:
		return fmt.Errorf("lease time %s: want 1m to 24h", c.LeaseTime)
	case c.Router.IsValid() && !c.Address.Contains(c.Router):
		return fmt.Errorf("router %s: not inside the network %s", c.Router, c.Address.Masked())
	}
	for _, a := range c.DNS {
		if !a.Is4() {
			return fmt.Errorf("dns %s: want IPv4 addresses", a)
		}
	}
	if err := c.Range.inside(c.Address); err != nil {
		return fmt.Errorf("range: %w", err)
	}
	if err := checkBootURL(c.BootURL, len(c.DNS) > 0); err != nil {
		return fmt.Errorf("boot URL: %w", err)
	}
	return nil
}

// Stats is a snapshot of the counters.
func (s *DHCPServer) Stats() DHCPStats {
	c := &s.counter
	return DHCPStats{
		Received: c.received.Load(), Malformed: c.malformed.Load(), Limited: c.limited.Load(),
		Silent: c.silent.Load(), Refused: c.refused.Load(), Leased: c.leased.Load(), Booted: c.booted.Load(),
		Failed: c.failed.Load(),
	}
}

// Serve answers the packets read from conn until ctx ends, which is no error.
// It closes conn and returns when every answer under way is done.
func (s *DHCPServer) Serve(ctx context.Context, conn net.PacketConn) error {
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	queue := make(chan received, dhcpQueue)
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(queue)
	for range dhcpWorkers {
		workers.Go(func() {
			for request := range queue {
				s.serve(ctx, conn, request)
			}
		})
	}
	buf := make([]byte, maxDHCPPacket+1)
	for {
		n, _, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if isTransient(err) {
				pause(ctx)
				continue
			}
			return fmt.Errorf("dhcp server: read: %w", err)
		}
		request, ok := s.accept(buf[:n])
		if !ok {
			continue
		}
		select {
		case queue <- request:
		default:
			s.counter.limited.Add(1)
		}
	}
}

// received is one packet that is worth a look-up.
type received struct {
	packet  *dhcpv4.DHCPv4
	request Request
	at      time.Time
}

// accept parses a packet and applies the limits that need no look-up.
func (s *DHCPServer) accept(b []byte) (received, bool) {
	s.counter.received.Add(1)
	if len(b) > maxDHCPPacket {
		s.counter.malformed.Add(1)
		return received{}, false
	}
	packet, err := dhcpv4.FromBytes(b)
	if err != nil {
		s.counter.malformed.Add(1)
		return received{}, false
	}
	request, err := ParseRequest(packet)
	if err != nil {
		s.counter.malformed.Add(1)
		return received{}, false
	}
	if request.Server.IsValid() && request.Server != s.cfg.Address.Addr() {
		s.counter.silent.Add(1)
		return received{}, false
	}
	now := time.Now()
	if !s.limit.allow(request.MAC, now) {
		s.counter.limited.Add(1)
		return received{}, false
	}
	return received{packet, request, now}, true
}

func (s *DHCPServer) serve(stopping context.Context, conn net.PacketConn, in received) {
	left := dhcpTimeout - time.Since(in.at)
	if left <= 0 || stopping.Err() != nil {
		s.counter.limited.Add(1)
		return
	}
	ctx, cancel := context.WithTimeout(stopping, left)
	defer cancel()
	event := Event{Server: "dhcp", Kind: KindAnswer, MAC: in.request.MAC, Request: in.request}
	reply, err := s.answer(ctx, in, &event)
	if err == nil && reply != nil {
		err = s.send(conn, in.request, reply)
	}
	if err != nil && stopping.Err() != nil {
		return // the server was stopped under the request: nothing to tell an operator
	}
	s.record(event, err)
}

// answer decides and builds the reply, nil for silence, and fills in the event.
func (s *DHCPServer) answer(ctx context.Context, in received, event *Event) (*dhcpv4.DHCPv4, error) {
	r := in.request
	host, err := s.cfg.Directory.Lookup(ctx, r.MAC)
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", r.MAC, err)
	}
	event.Machine = host.Machine
	answer := s.servable(Decide(host, r))
	event.Action, event.Reason = answer.Action, answer.Reason
	switch {
	case answer.Action == Silence:
		if host.Known && host.Wish == WishAgent && r.Message == dhcpv4.MessageTypeDecline {
			event.Kind = KindDeclined
		}
		return nil, nil
	case answer.Action == Refuse:
		return s.refusal(in)
	}
	lease := host.Address
	if r.Message != dhcpv4.MessageTypeInform {
		if lease, err = s.cfg.Directory.Lease(ctx, r.MAC); err != nil {
			return nil, fmt.Errorf("lease for %s (machine %s): %w", r.MAC, host.Machine, err)
		}
	}
	if !s.cfg.Range.Contains(lease) {
		return nil, fmt.Errorf("lease %s of %s (machine %s) is not in the range %s", addrText(lease), r.MAC, host.Machine, s.cfg.Range)
	}
	if r.Message == dhcpv4.MessageTypeRequest && lease != r.Requested {
		return nil, fmt.Errorf("lease of %s (machine %s) changed from %s to %s", r.MAC, host.Machine, r.Requested, lease)
	}
	event.Peer = lease
	event.File = s.bootFile(answer)
	return s.reply(in, answer, lease)
}

// servable turns an answer into silence if the server that it names is off.
func (s *DHCPServer) servable(a Answer) Answer {
	switch {
	case a.Method == ByHTTP && s.cfg.BootURL == "":
		return Answer{Reason: "firmware asks for HTTP boot, which is switched off"}
	case a.Method == ByTFTP && !s.cfg.TFTP:
		return Answer{Reason: "firmware asks for PXE, and the TFTP server is switched off"}
	}
	return a
}

func (s *DHCPServer) record(event Event, err error) {
	log := s.cfg.Logger.With("server", "dhcp", "mac", event.MAC.String(), "machine", event.Machine,
		"asked", event.Request.Message.String(), "client", event.Request.Client.String())
	if err != nil {
		s.counter.failed.Add(1)
		event.Kind, event.Err, event.Action = KindError, err, Silence
		event.Reason = "request could not be answered"
		log.Error("dhcp request failed", "err", err)
		s.events.tell(event)
		return
	}
	switch event.Action {
	case Silence:
		s.counter.silent.Add(1)
	case Refuse:
		s.counter.refused.Add(1)
	case LeaseOnly:
		s.counter.leased.Add(1)
	case LeaseAndBoot:
		s.counter.booted.Add(1)
	}
	log.Debug("dhcp answer", "action", event.Action.String(), "reason", event.Reason, "lease", event.Peer, "file", event.File)
	s.events.tell(event)
}

// isTransient tells read errors which the next read may not have: a queued ICMP
// error of an earlier write, or an interrupted call.
func isTransient(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout() || isQueuedError(err)
}

// pause keeps an error that repeats from taking a whole core.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(5 * time.Millisecond):
	}
}
