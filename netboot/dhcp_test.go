package netboot

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

func diff(t *testing.T, want, got any) {
	t.Helper()
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

func testMAC() net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0x12, 0x34, 0x56} }

func discover(t testing.TB, edits ...func(*dhcpv4.DHCPv4)) *dhcpv4.DHCPv4 {
	t.Helper()
	p, err := dhcpv4.New(dhcpv4.WithHwAddr(testMAC()), dhcpv4.WithMessageType(dhcpv4.MessageTypeDiscover))
	if err != nil {
		t.Fatal(err)
	}
	for _, edit := range edits {
		edit(p)
	}
	return p
}

func httpFirmware(p *dhcpv4.DHCPv4) {
	p.UpdateOption(dhcpv4.OptClassIdentifier("HTTPClient:Arch:00016:UNDI:003001"))
	p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 16}))
}

func pxeFirmware(p *dhcpv4.DHCPv4) {
	p.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003001"))
	p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 7}))
	p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, make([]byte, 17)))
}

func agentClient(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptClassIdentifier(AgentVendorClass)) }

func requesting(address string) func(*dhcpv4.DHCPv4) {
	return func(p *dhcpv4.DHCPv4) {
		p.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeRequest))
		p.UpdateOption(dhcpv4.OptRequestedIPAddress(net.ParseIP(address)))
	}
}

// fakeDirectory knows one machine, and counts the leases that it allocates.
type fakeDirectory struct {
	mu     sync.Mutex
	host   Host
	lease  netip.Addr
	err    error
	leases int
}

func (d *fakeDirectory) Lookup(_ context.Context, mac net.HardwareAddr) (Host, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if mac.String() != testMAC().String() {
		return Host{}, d.err
	}
	return d.host, d.err
}

func (d *fakeDirectory) Lease(context.Context, net.HardwareAddr) (netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.leases++
	return d.lease, nil
}

func wantedMachine() *fakeDirectory {
	lease := netip.MustParseAddr("10.66.0.100")
	return &fakeDirectory{host: Host{Known: true, Machine: "m1", Wish: WishAgent, Address: lease}, lease: lease}
}

// sentPacket is what the server wrote, and where to.
type sentPacket struct {
	to     string
	packet *dhcpv4.DHCPv4
}

// recordingConn is a server's socket whose replies are kept instead of sent.
type recordingConn struct {
	net.PacketConn
	sent chan sentPacket
}

func (c *recordingConn) WriteTo(b []byte, to net.Addr) (int, error) {
	p, err := dhcpv4.FromBytes(b)
	if err != nil {
		return 0, err
	}
	c.sent <- sentPacket{to.String(), p}
	return len(b), nil
}

type recordingLink struct{ sent chan sentPacket }

func (l recordingLink) Send(mac net.HardwareAddr, ip netip.Addr, port uint16, b []byte) error {
	p, err := dhcpv4.FromBytes(b)
	if err != nil {
		return err
	}
	l.sent <- sentPacket{mac.String() + " " + netip.AddrPortFrom(ip, port).String(), p}
	return nil
}

func testDHCPConfig(d Directory) DHCPConfig {
	return DHCPConfig{
		Address:   netip.MustParsePrefix("10.66.0.1/24"),
		Range:     Range{netip.MustParseAddr("10.66.0.100"), netip.MustParseAddr("10.66.0.199")},
		BootURL:   "http://10.66.0.1/boot/",
		TFTP:      true,
		Directory: d,
		Logger:    slog.New(slog.DiscardHandler),
	}
}

// exchange serves one packet over a real UDP socket and returns the reply, nil
// for silence, and the event.
func exchange(t *testing.T, cfg DHCPConfig, p *dhcpv4.DHCPv4) (*sentPacket, Event) {
	t.Helper()
	events := make(chan Event, 1)
	cfg.Observer = func(e Event) { events <- e }
	sent := make(chan sentPacket, 1)
	if cfg.Link != nil {
		cfg.Link = recordingLink{sent}
	}
	server, err := NewDHCPServer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, &recordingConn{conn, sent}) }()
	client, err := net.Dial("udp4", conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write(p.ToBytes()); err != nil {
		t.Fatal(err)
	}
	var event Event
	select {
	case event = <-events:
	case <-time.After(5 * time.Second):
		t.Fatal("no event")
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	select {
	case s := <-sent:
		return &s, event
	default:
		return nil, event
	}
}

func optionCodes(p *dhcpv4.DHCPv4) []int {
	var codes []int
	for code := range p.Options {
		codes = append(codes, int(code))
	}
	slices.Sort(codes)
	return codes
}

func TestHTTPBootOfferIsExact(t *testing.T) {
	d := wantedMachine()
	got, event := exchange(t, testDHCPConfig(d), discover(t, httpFirmware))
	if got == nil {
		t.Fatalf("no offer: %+v", event)
	}
	p := got.packet
	diff(t, []int{1, 51, 53, 54, 60, 67}, optionCodes(p))
	diff(t, dhcpv4.MessageTypeOffer, p.MessageType())
	diff(t, "10.66.0.100", p.YourIPAddr.String())
	diff(t, "HTTPClient", p.ClassIdentifier())
	diff(t, "http://10.66.0.1/boot/bloomery-agent.efi", p.BootFileNameOption())
	diff(t, "10.66.0.1", p.ServerIdentifier().String())
	diff(t, 10*time.Minute, p.IPAddressLeaseTime(0))
	diff(t, "ffffff00", p.SubnetMask().String())
	diff(t, "255.255.255.255:68", got.to)
	diff(t, 1, d.leases)
	if event.Action != LeaseAndBoot || event.Machine != "m1" || event.Peer != d.lease || !strings.HasPrefix(event.File, "http://") {
		t.Errorf("event %+v", event)
	}
}

func TestPXEOffer(t *testing.T) {
	got, event := exchange(t, testDHCPConfig(wantedMachine()), discover(t, pxeFirmware))
	if got == nil {
		t.Fatalf("no offer: %+v", event)
	}
	p := got.packet
	diff(t, []int{1, 43, 51, 53, 54, 60, 66, 67, 97}, optionCodes(p))
	diff(t, "PXEClient", p.ClassIdentifier())
	diff(t, "10.66.0.1", p.ServerIPAddr.String())
	diff(t, "10.66.0.1", p.TFTPServerName())
	diff(t, AgentImage, p.BootFileNameOption())
	diff(t, AgentImage, p.BootFileName)
	diff(t, []byte{6, 1, 8, 255}, p.Options.Get(dhcpv4.OptionVendorSpecificInformation))
}

func TestDHCPAnswers(t *testing.T) {
	at := func(ip string) func(*dhcpv4.DHCPv4) {
		return func(p *dhcpv4.DHCPv4) { p.ClientIPAddr = net.ParseIP(ip).To4() }
	}
	message := func(m dhcpv4.MessageType) func(*dhcpv4.DHCPv4) {
		return func(p *dhcpv4.DHCPv4) { p.UpdateOption(dhcpv4.OptMessageType(m)) }
	}
	relayed := func(p *dhcpv4.DHCPv4) {
		p.GatewayIPAddr = net.IPv4(10, 70, 0, 1).To4()
		p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRelayAgentInformation, []byte{1, 2, 'p', '7'}))
	}
	broadcast := func(p *dhcpv4.DHCPv4) { p.SetBroadcast() }
	const silence = dhcpv4.MessageTypeNone
	const mac = "52:54:00:12:34:56 "
	for _, tt := range []struct {
		name   string
		dir    func(*fakeDirectory)
		cfg    func(*DHCPConfig)
		edits  []func(*dhcpv4.DHCPv4)
		want   dhcpv4.MessageType
		to     string
		kind   Kind
		reason string
	}{
		{name: "agent offer", edits: []func(*dhcpv4.DHCPv4){agentClient}, want: dhcpv4.MessageTypeOffer, to: mac + "10.66.0.100:68"},
		{name: "agent that wants a broadcast", edits: []func(*dhcpv4.DHCPv4){agentClient, broadcast}, want: dhcpv4.MessageTypeOffer, to: "255.255.255.255:68"},
		{name: "first lease", dir: func(d *fakeDirectory) { d.host.Address = netip.Addr{} }, edits: []func(*dhcpv4.DHCPv4){agentClient}, want: dhcpv4.MessageTypeOffer, to: mac + "10.66.0.100:68"},
		{name: "ack", edits: []func(*dhcpv4.DHCPv4){httpFirmware, requesting("10.66.0.100")}, want: dhcpv4.MessageTypeAck, to: mac + "10.66.0.100:68"},
		{name: "renewal", edits: []func(*dhcpv4.DHCPv4){agentClient, message(dhcpv4.MessageTypeRequest), at("10.66.0.100")}, want: dhcpv4.MessageTypeAck, to: "10.66.0.100:68"},
		{name: "relay", edits: []func(*dhcpv4.DHCPv4){agentClient, relayed}, want: dhcpv4.MessageTypeOffer, to: "10.70.0.1:67"},
		{name: "wrong address", edits: []func(*dhcpv4.DHCPv4){agentClient, requesting("10.66.0.150")}, want: dhcpv4.MessageTypeNak, to: "255.255.255.255:68"},
		{name: "wrong renewal", edits: []func(*dhcpv4.DHCPv4){agentClient, message(dhcpv4.MessageTypeRequest), at("192.168.1.5")}, want: dhcpv4.MessageTypeNak, to: "255.255.255.255:68"},
		{name: "wrong address by relay", edits: []func(*dhcpv4.DHCPv4){agentClient, requesting("10.66.0.150"), relayed}, want: dhcpv4.MessageTypeNak, to: "10.70.0.1:67"},
		{name: "wrong address of a running machine", dir: func(d *fakeDirectory) { d.host.Wish = WishLocalDisk }, edits: []func(*dhcpv4.DHCPv4){agentClient, requesting("10.66.0.150")}, want: silence, reason: "local disk"},
		{name: "running machine with firmware's words", dir: func(d *fakeDirectory) { d.host.Wish = WishLocalDisk }, edits: []func(*dhcpv4.DHCPv4){httpFirmware}, want: silence, reason: "local disk"},
		{name: "installed system", want: silence, reason: "installed system"},
		{name: "inform", edits: []func(*dhcpv4.DHCPv4){agentClient, message(dhcpv4.MessageTypeInform), at("10.66.0.100")}, want: dhcpv4.MessageTypeAck, to: "10.66.0.100:68"},
		{name: "decline", edits: []func(*dhcpv4.DHCPv4){agentClient, requesting("10.66.0.100"), message(dhcpv4.MessageTypeDecline)}, want: silence, kind: KindDeclined, reason: "declined 10.66.0.100"},
		{name: "release", edits: []func(*dhcpv4.DHCPv4){agentClient, message(dhcpv4.MessageTypeRelease), at("10.66.0.100")}, want: silence, reason: "release"},
		{name: "lease outside the range", dir: func(d *fakeDirectory) { d.lease = netip.MustParseAddr("10.66.0.5") }, edits: []func(*dhcpv4.DHCPv4){agentClient}, want: silence, kind: KindError},
		{name: "no lease", dir: func(d *fakeDirectory) { d.lease = netip.Addr{} }, edits: []func(*dhcpv4.DHCPv4){agentClient}, want: silence, kind: KindError},
		{name: "store is down", dir: func(d *fakeDirectory) { d.err = errors.New("no leader") }, edits: []func(*dhcpv4.DHCPv4){httpFirmware}, want: silence, kind: KindError},
		{name: "http off", cfg: func(c *DHCPConfig) { c.BootURL = "" }, edits: []func(*dhcpv4.DHCPv4){httpFirmware}, want: silence, reason: "switched off"},
		{name: "tftp off", cfg: func(c *DHCPConfig) { c.TFTP = false }, edits: []func(*dhcpv4.DHCPv4){pxeFirmware}, want: silence, reason: "switched off"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := wantedMachine()
			if tt.dir != nil {
				tt.dir(d)
			}
			cfg := testDHCPConfig(d)
			cfg.Link = recordingLink{}
			if tt.cfg != nil {
				tt.cfg(&cfg)
			}
			p := discover(t, tt.edits...)
			got, event := exchange(t, cfg, p)
			if tt.kind == "" {
				tt.kind = KindAnswer
			}
			if event.Kind != tt.kind || !strings.Contains(event.Reason, tt.reason) || event.Reason == "" {
				t.Errorf("event %+v, want %s with %q", event, tt.kind, tt.reason)
			}
			if tt.want == silence {
				if got != nil {
					t.Errorf("got %s, want silence", got.packet.Summary())
				}
				return
			}
			if got == nil {
				t.Fatalf("got silence (%s %v), want %s", event.Reason, event.Err, tt.want)
			}
			diff(t, tt.want, got.packet.MessageType())
			diff(t, tt.to, got.to)
			diff(t, p.TransactionID, got.packet.TransactionID)
			diff(t, p.Options.Get(dhcpv4.OptionRelayAgentInformation), got.packet.Options.Get(dhcpv4.OptionRelayAgentInformation))
			isLease := tt.want != dhcpv4.MessageTypeNak && tt.name != "inform"
			diff(t, isLease, addrOf(got.packet.YourIPAddr).IsValid())
			diff(t, isLease, got.packet.Options.Has(dhcpv4.OptionIPAddressLeaseTime))
		})
	}
}

func TestOptionalOptions(t *testing.T) {
	cfg := testDHCPConfig(wantedMachine())
	cfg.Router = netip.MustParseAddr("10.66.0.254")
	cfg.DNS = []netip.Addr{netip.MustParseAddr("10.66.0.2"), netip.MustParseAddr("10.66.0.3")}
	cfg.LeaseTime = time.Hour
	p := discover(t, agentClient, func(p *dhcpv4.DHCPv4) {
		p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientIdentifier, []byte{1, 2, 3}))
	})
	got, _ := exchange(t, cfg, p)
	if got == nil {
		t.Fatal("no offer")
	}
	diff(t, []int{1, 3, 6, 51, 53, 54, 61}, optionCodes(got.packet))
	diff(t, time.Hour, got.packet.IPAddressLeaseTime(0))
}

func TestOtherServerChosen(t *testing.T) {
	server, err := NewDHCPServer(testDHCPConfig(wantedMachine()))
	if err != nil {
		t.Fatal(err)
	}
	p := discover(t, agentClient, requesting("10.66.0.100"), func(p *dhcpv4.DHCPv4) {
		p.UpdateOption(dhcpv4.OptServerIdentifier(net.IPv4(10, 66, 0, 2)))
	})
	if _, ok := server.accept(p.ToBytes()); ok {
		t.Error("a request to another server was taken")
	}
	diff(t, uint64(1), server.Stats().Silent)
}

func TestPacketLimits(t *testing.T) {
	server, err := NewDHCPServer(testDHCPConfig(wantedMachine()))
	if err != nil {
		t.Fatal(err)
	}
	packet := discover(t, agentClient).ToBytes()
	taken := 0
	for range 200 {
		if _, ok := server.accept(packet); ok {
			taken++
		}
	}
	if taken < packetBurstPerMAC || taken > packetBurstPerMAC+5 {
		t.Errorf("%d packets of one MAC taken, want about %d", taken, packetBurstPerMAC)
	}
	if _, ok := server.accept(append(packet, make([]byte, maxDHCPPacket)...)); ok {
		t.Error("a packet above the size limit was taken")
	}
	mac := testMAC()
	taken = 0
	now := time.Now()
	for i := range 3 * limitedMACs {
		mac[4], mac[5] = byte(i>>8), byte(i)
		if server.limit.allow(mac, now) {
			taken++
		}
	}
	if taken > packetBurst || len(server.limit.macs) > limitedMACs {
		t.Errorf("%d packets of all taken, %d MACs remembered", taken, len(server.limit.macs))
	}
}

// FuzzDHCP feeds bytes to the whole server: it never panics, never answers
// another than the wanted machine, and never leaves the range.
func FuzzDHCP(f *testing.F) {
	for _, edits := range [][]func(*dhcpv4.DHCPv4){{httpFirmware}, {pxeFirmware}, {agentClient}, {agentClient, requesting("10.66.0.100")}, {requesting("10.66.0.3")}} {
		f.Add(discover(f, edits...).ToBytes())
	}
	f.Add([]byte{})
	d := wantedMachine()
	cfg := testDHCPConfig(d)
	f.Fuzz(func(t *testing.T, b []byte) {
		server, err := NewDHCPServer(cfg)
		if err != nil {
			t.Fatal(err)
		}
		in, ok := server.accept(b)
		if !ok {
			return
		}
		var event Event
		reply, err := server.answer(t.Context(), in, &event)
		if err != nil || reply == nil {
			return
		}
		if in.request.MAC.String() != testMAC().String() {
			t.Fatalf("answered %s", in.request.MAC)
		}
		if got := addrOf(reply.YourIPAddr); got.IsValid() && got != d.lease {
			t.Fatalf("offered %s", got)
		}
		if _, err := dhcpv4.FromBytes(reply.ToBytes()); err != nil {
			t.Fatalf("unreadable reply: %v", err)
		}
	})
}
