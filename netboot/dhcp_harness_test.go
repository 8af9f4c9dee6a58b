package netboot

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
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
