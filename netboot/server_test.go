package netboot

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func loopbackConfig(t *testing.T, events chan Event) Config {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, AgentImage), pattern(5000), 0o644); err != nil {
		t.Fatal(err)
	}
	d := wantedMachine()
	d.lease = netip.MustParseAddr("127.0.1.1")
	d.host.Address = d.lease
	return Config{
		Interface: "lo", Address: netip.MustParsePrefix("127.0.0.1/8"), Range: Range{d.lease, netip.MustParseAddr("127.0.1.9")},
		DHCP: "127.0.0.1:0", TFTP: "127.0.0.1:0", HTTP: "127.0.0.1:0", Files: dir,
		Directory: d, Allowed: everyone, Observer: func(e Event) { events <- e }, Logger: slog.New(slog.DiscardHandler),
	}
}

func TestServerOnLoopback(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: packet socket and SO_BINDTODEVICE")
	}
	events := make(chan Event, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server, err := Listen(ctx, loopbackConfig(t, events))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx) }()

	client, err := net.Dial("udp4", server.dhcpConn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Write(discover(t, httpFirmware).ToBytes()); err != nil {
		t.Fatal(err)
	}
	offer := nextEvent(t, events)
	diff(t, LeaseAndBoot, offer.Action)
	diff(t, "http://"+server.httpConn.Addr().String()+"/boot/bloomery-agent.efi", offer.File)
	diff(t, uint64(1), server.Stats().Booted)

	response, err := http.Get(offer.File)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || !bytes.Equal(body, pattern(5000)) {
		t.Errorf("fetched %d bytes, %v", len(body), err)
	}
	diff(t, "http", nextEvent(t, events).Server)

	got, err := newTFTPClient(t, server.tftpConn.LocalAddr().String()).get(AgentImage, "windowsize", "4")
	if err != nil || !bytes.Equal(got, pattern(5000)) {
		t.Errorf("fetched %d bytes, %v", len(got), err)
	}
	diff(t, "tftp", nextEvent(t, events).Server)

	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("servers do not stop")
	}
}

func TestRunReportsWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		want string
		edit func(*Config)
	}{
		{"files", func(c *Config) { c.Files = "/nonexistent" }},
		{"logger", func(c *Config) { c.Logger = nil }},
		{"http", func(c *Config) { c.HTTP = "127.0.0.1:x" }},
		{"tftp", func(c *Config) { c.TFTP = "127.0.0.1:x" }},
		{`interface "nosuch0"`, func(c *Config) { c.Interface = "nosuch0" }},
	} {
		cfg := loopbackConfig(t, nil)
		tt.edit(&cfg)
		if err := Run(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("got %v, want an error that names %q", err, tt.want)
		}
	}
}

func TestEverythingOff(t *testing.T) {
	cfg := loopbackConfig(t, nil)
	cfg.DHCP, cfg.TFTP, cfg.HTTP = "", "", ""
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Run(ctx, cfg); err != nil {
		t.Error(err)
	}
}

func TestDHCPFrame(t *testing.T) {
	src, dst := net.HardwareAddr{2, 0, 0, 0, 0, 1}, testMAC()
	payload := pattern(301)
	f := dhcpFrame(src, dst, netip.MustParseAddrPort("10.66.0.1:67"), netip.MustParseAddrPort("10.66.0.100:68"), payload)
	diff(t, []byte(dst), f[0:6])
	diff(t, []byte(src), f[6:12])
	diff(t, []byte{8, 0, 0x45}, f[12:15])
	diff(t, uint16(20+8+301), binary.BigEndian.Uint16(f[16:]))
	// A receiver's sum over what a checksum covers, itself included, is all ones.
	diff(t, uint16(0xffff), onesSum(0, f[14:34]))
	pseudo := append(append([]byte{}, f[26:34]...), 0, 17, f[38], f[39])
	diff(t, uint16(0xffff), onesSum(onesSum(0, pseudo), f[34:]))
	diff(t, payload, f[42:])
}
