package netboot

import (
	"net"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

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
