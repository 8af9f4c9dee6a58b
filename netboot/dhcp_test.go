package netboot

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

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
