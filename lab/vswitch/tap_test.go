package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"bloomery/lab/netns"
)

// A machine's UDP datagram reaches a socket in the namespace behind the tap, and only while both are in one VLAN.
func TestTapEndToEnd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces and taps")
	}
	ns := fmt.Sprintf("bl-tap-%d", os.Getpid())
	if err := netns.Create(ns); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := netns.Delete(ns); err != nil {
			t.Error(err)
		}
	}()
	sw := New(Config{})
	defer sw.Close()
	if err := sw.AddTapPort("Ethernet48", ns, "prov0", netip.MustParsePrefix("10.66.0.1/24"), Access(100)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "e1")
	if err := sw.AddSocketPort("Ethernet1", path, Access(100)); err != nil {
		t.Fatal(err)
	}
	server, err := netns.ListenPacket(t.Context(), ns, "udp4", "0.0.0.0:7")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	m := plugIn(t, sw, "Ethernet1", path, 1)
	receive := func(within time.Duration) (string, error) {
		buf := make([]byte, 100)
		if err := server.SetReadDeadline(time.Now().Add(within)); err != nil {
			t.Fatal(err)
		}
		n, _, err := server.ReadFrom(buf)
		return string(buf[:n]), err
	}
	waitFor(t, "tap up", func() bool { p, _ := sw.Snapshot().Port("Ethernet48"); return p.LinkUp })
	m.send(udp(m.mac, "knock"))
	if got, err := receive(2 * time.Second); err != nil || got != "knock" {
		t.Fatalf("got %q, %v", got, err)
	}
	if err := sw.SetVLAN("Ethernet1", Access(200)); err != nil {
		t.Fatal(err)
	}
	m.send(udp(m.mac, "other network"))
	if got, err := receive(100 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a datagram of another VLAN came through: %q, %v", got, err)
	}
	if err := sw.Close(); err != nil {
		t.Fatal(err)
	}
	err = netns.Do(ns, func() error {
		_, err := net.InterfaceByName("prov0")
		return err
	})
	if err == nil {
		t.Error("the tap outlives the switch")
	}
}

// udp is a broadcast datagram from 10.66.0.9 to port 7 (RFC 768, RFC 791); a UDP checksum of 0 is none.
func udp(src net.HardwareAddr, text string) []byte {
	f := append(append(append([]byte(nil), broadcast...), src...), 8, 0)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 10, 66, 0, 9, 10, 66, 0, 255}
	binary.BigEndian.PutUint16(ip[2:], uint16(28+len(text)))
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	f = append(f, ip...)
	f = append(f, 0, 99, 0, 7, 0, byte(8+len(text)), 0, 0)
	return append(f, text...)
}
