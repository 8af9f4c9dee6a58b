package network

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/server4"
	"github.com/mdlayher/packet"
	"github.com/vishvananda/netlink"
)

const inside = "NETWORK_TEST_NAMESPACE"

// TestReal runs TestInNamespace in a network namespace of its own.
func TestReal(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root for a network namespace")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestInNamespace$", "-test.v")
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestInNamespace(t *testing.T) {
	if os.Getenv(inside) == "" {
		return // TestReal runs this in a namespace
	}
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "agent0"}, PeerName: "server0"}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	server, err := netlink.LinkByName("server0")
	if err != nil {
		t.Fatal(err)
	}
	address, err := netlink.ParseAddr("192.0.2.1/24")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(server, address); err != nil {
		t.Fatal(err)
	}
	seen := serve(t)

	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	links := New(Config{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Accept: func(l Link) bool { return l.Name == "agent0" }})
	done := make(chan error, 1)
	go func() { done <- links.Run(ctx) }()
	if err := netlink.LinkSetUp(server); err != nil {
		t.Fatal(err)
	}
	lease, err := links.First(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if lease.Address.String() != "192.0.2.50/24" || lease.Gateway.String() != "192.0.2.1" || lease.Server.String() != "192.0.2.1" || len(lease.DNS) != 1 {
		t.Errorf("lease %+v", lease)
	}
	if got := <-seen; got != "bloomery-agent" {
		t.Errorf("the vendor class is %q", got)
	}
	agent, err := netlink.LinkByName("agent0")
	if err != nil {
		t.Fatal(err)
	}
	if addrs, err := netlink.AddrList(agent, netlink.FAMILY_V4); err != nil || len(addrs) != 1 || addrs[0].IP.String() != "192.0.2.50" {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	if routes, err := netlink.RouteGet(net.IPv4(198, 51, 100, 1)); err != nil || routes[0].Gw.String() != "192.0.2.1" {
		t.Errorf("routes %v, %v", routes, err)
	}
	l := Link{Index: agent.Attrs().Index, Name: "agent0", MAC: agent.Attrs().HardwareAddr}
	if fresh, err := (rawDHCP{}).renew(ctx, l, lease); err != nil || fresh.Address != lease.Address {
		t.Errorf("renewed: %+v, %v", fresh, err)
	}
	neighbour(ctx, t)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// neighbour sends LLDP frames from the other end until one is heard.
func neighbour(ctx context.Context, t *testing.T) {
	ifi, err := net.InterfaceByName("server0")
	if err != nil {
		t.Fatal(err)
	}
	conn, err := packet.Listen(ifi, packet.Datagram, etherTypeLLDP, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	heard := make(chan struct{})
	go func() {
		defer close(heard)
		found, err := Neighbours(ctx, []string{"agent0"})
		if n := found["agent0"]; err != nil || n.SystemName != "tor" || n.Source.String() != ifi.HardwareAddr.String() {
			t.Errorf("found %+v, %v", found, err)
		}
	}()
	for {
		if _, err := conn.WriteTo(unhex(t, frame), &packet.Addr{HardwareAddr: net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0xe}}); err != nil {
			t.Fatal(err)
		}
		select {
		case <-heard:
			return
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serve is a DHCP server with one address; the channel gets the first vendor class.
func serve(t *testing.T) <-chan string {
	t.Helper()
	seen := make(chan string, 1)
	handler := func(conn net.PacketConn, peer net.Addr, m *dhcpv4.DHCPv4) {
		kind := dhcpv4.MessageTypeOffer
		if m.MessageType() == dhcpv4.MessageTypeRequest {
			kind = dhcpv4.MessageTypeAck
		}
		select {
		case seen <- m.ClassIdentifier():
		default:
		}
		self := net.IPv4(192, 0, 2, 1)
		reply, err := dhcpv4.NewReplyFromRequest(m, dhcpv4.WithMessageType(kind), dhcpv4.WithYourIP(net.IPv4(192, 0, 2, 50)), dhcpv4.WithServerIP(self),
			dhcpv4.WithOption(dhcpv4.OptServerIdentifier(self)), dhcpv4.WithNetmask(net.CIDRMask(24, 32)), dhcpv4.WithRouter(self),
			dhcpv4.WithDNS(self), dhcpv4.WithLeaseTime(600))
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := conn.WriteTo(reply.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 68}); err != nil {
			t.Error(err)
		}
	}
	s, err := server4.NewServer("server0", &net.UDPAddr{IP: net.IPv4zero, Port: 67}, handler)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.Serve() // ends with Close
	}()
	t.Cleanup(func() { s.Close(); <-done })
	return seen
}
