package netboot

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func everyone(context.Context, netip.Addr) (string, bool) { return "m1", true }
func nobody(context.Context, netip.Addr) (string, bool)   { return "", false }

// pattern is n bytes in which every block differs from every other.
func pattern(n int) []byte {
	b := make([]byte, n+4)
	for i := 0; i < n; i += 4 {
		binary.BigEndian.PutUint32(b[i:], uint32(i)*2654435761)
	}
	return b[:n]
}

func agentFiles(content []byte) fs.FS {
	return fstest.MapFS{AgentImage: {Data: content}, "secret": {Data: []byte("x")}}
}

// startTFTP serves on loopback until the test ends; events holds what it told.
func startTFTP(t *testing.T, files fs.FS, allowed Allowed) (address string, events chan Event) {
	t.Helper()
	events = make(chan Event, 100)
	server, err := NewTFTPServer(TFTPConfig{Files: files, Allowed: allowed, Observer: func(e Event) { events <- e }, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server.timeout = 50 * time.Millisecond
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, conn) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conn.LocalAddr().String(), events
}

func nextEvent(t *testing.T, events chan Event) Event {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(5 * time.Second):
		t.Fatal("no event")
		return Event{}
	}
}

// tftpClient is a client as RFC 7440, section 3 describes it. drop says which
// received packets are lost on the way, by their number.
type tftpClient struct {
	conn    *net.UDPConn
	server  net.Addr
	drop    func(packet int) bool
	packets int
	// accepted holds the options of the OACK.
	accepted map[string]string
}

func tftpRequestPacket(op byte, fields ...string) []byte {
	return append([]byte{0, op}, strings.Join(fields, "\x00")+"\x00"...)
}

func newTFTPClient(t *testing.T, address string) *tftpClient {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	to, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		t.Fatal(err)
	}
	return &tftpClient{conn: conn, server: to, drop: func(int) bool { return false }}
}

func (c *tftpClient) receive(wait time.Duration) ([]byte, net.Addr, error) {
	c.conn.SetReadDeadline(time.Now().Add(wait))
	buf := make([]byte, 2048)
	for {
		n, from, err := c.conn.ReadFrom(buf)
		if err != nil {
			return nil, nil, err
		}
		if c.packets++; !c.drop(c.packets) {
			return buf[:n], from, nil
		}
	}
}

func (c *tftpClient) get(file string, options ...string) ([]byte, error) {
	request := tftpRequestPacket(1, append([]string{file, "octet"}, options...)...)
	if _, err := c.conn.WriteTo(request, c.server); err != nil {
		return nil, err
	}
	var got []byte
	block, window, next, inWindow := 512, 1, uint16(1), 0
	var peer net.Addr
	ack := func() {
		n := next - 1
		c.conn.WriteTo([]byte{0, 4, byte(n >> 8), byte(n)}, peer)
		inWindow = 0
	}
	silent := 0
	for {
		b, from, err := c.receive(100 * time.Millisecond)
		var ne net.Error
		if errors.As(err, &ne) && ne.Timeout() && silent < 50 {
			if silent++; peer != nil {
				ack()
			} else {
				c.conn.WriteTo(request, c.server)
			}
			continue
		}
		if err != nil {
			return got, err
		}
		silent = 0
		switch n := binary.BigEndian.Uint16(b[2:]); b[1] {
		case tftpOAck:
			peer, c.accepted = from, map[string]string{}
			fields := strings.Split(string(b[2:]), "\x00")
			for i := 0; i+1 < len(fields); i += 2 {
				c.accepted[fields[i]] = fields[i+1]
			}
			fmt.Sscan(c.accepted["blksize"], &block)
			fmt.Sscan(c.accepted["windowsize"], &window)
			ack()
		case tftpData:
			peer = from
			if n != next {
				if inWindow > 0 { // a gap: tell what was the last one in order
					ack()
				}
				continue
			}
			got = append(got, b[4:]...)
			next++
			inWindow++
			if last := len(b)-4 < block; last || inWindow == window {
				ack()
				if last {
					return got, nil
				}
			}
		case tftpError:
			return got, fmt.Errorf("error %d: %s", n, bytes.TrimRight(b[4:], "\x00"))
		}
	}
}

func TestTFTPTransfers(t *testing.T) {
	for _, tt := range []struct {
		name     string
		size     int
		options  []string
		accepted map[string]string
		drop     func(int) bool
	}{
		{name: "plain", size: 3000},
		{name: "empty", size: 0},
		{name: "one byte", size: 1},
		{name: "whole blocks end with an empty one", size: 1024},
		{name: "size and block", size: 10000, options: []string{"tsize", "0", "blksize", "1024"}, accepted: map[string]string{"tsize": "10000", "blksize": "1024"}},
		{name: "block above the frame", size: 10000, options: []string{"BLKSIZE", "65464"}, accepted: map[string]string{"blksize": "1468"}},
		{name: "window", size: 200000, options: []string{"blksize", "1468", "windowsize", "8"}, accepted: map[string]string{"blksize": "1468", "windowsize": "8"}},
		{name: "window above the limit", size: 200000, options: []string{"windowsize", "1000"}, accepted: map[string]string{"windowsize": "64"}},
		{name: "unacceptable options", size: 700, options: []string{"blksize", "4", "windowsize", "0", "timeout", "x", "multicast", ""}},
		{name: "block number wraps", size: 70000 * 8, options: []string{"blksize", "8", "windowsize", "64"}, accepted: map[string]string{"blksize": "8", "windowsize": "64"}},
		{name: "loss", size: 20000, drop: func(n int) bool { return n%7 == 3 }},
		{name: "loss in windows", size: 200000, options: []string{"windowsize", "16"}, accepted: map[string]string{"windowsize": "16"}, drop: func(n int) bool { return n%29 == 5 }},
		{name: "loss of the first packet", size: 2000, options: []string{"tsize", "0"}, accepted: map[string]string{"tsize": "2000"}, drop: func(n int) bool { return n == 1 }},
		{name: "loss of a window's first block", size: 9000, options: []string{"windowsize", "4"}, accepted: map[string]string{"windowsize": "4"}, drop: func(n int) bool { return n == 2 || n == 9 }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			content := pattern(tt.size)
			address, events := startTFTP(t, agentFiles(content), everyone)
			client := newTFTPClient(t, address)
			if tt.drop != nil {
				client.drop = tt.drop
			}
			got, err := client.get(AgentImage, tt.options...)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, content) {
				t.Errorf("got %d bytes that differ from the file's %d", len(got), len(content))
			}
			delete(client.accepted, "")
			diff(t, tt.accepted, client.accepted)
			e := nextEvent(t, events)
			if e.Kind != KindServed || e.Bytes != int64(tt.size) || e.Machine != "m1" || e.File != AgentImage {
				t.Errorf("event %+v", e)
			}
		})
	}
}

// TestTFTPBlockNumberWraps reads more than 65535 blocks of 512 bytes, which
// needs no negotiation: 32 MiB and a bit.
func TestTFTPBlockNumberWraps(t *testing.T) {
	t.Parallel()
	content := pattern(65536*512 + 700)
	address, _ := startTFTP(t, agentFiles(content), everyone)
	got, err := newTFTPClient(t, address).get("/"+AgentImage, "windowsize", "32")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content) {
		t.Errorf("got %d bytes that differ from the file's %d", len(got), len(content))
	}
}

func TestTFTPRefusals(t *testing.T) {
	for _, tt := range []struct {
		name    string
		allowed Allowed
		packet  []byte
		want    string
		kind    Kind
	}{
		{"write", everyone, tftpRequestPacket(2, AgentImage, "octet"), "2 files cannot be written", ""},
		{"netascii", everyone, tftpRequestPacket(1, AgentImage, "NetASCII"), "4 only octet", ""},
		{"not there", everyone, tftpRequestPacket(1, "vmlinuz", "octet"), "1 file not found", KindError},
		{"not a boot file", everyone, tftpRequestPacket(1, "secret", "octet"), "1 file not found", KindError},
		{"traversal", everyone, tftpRequestPacket(1, "../secret", "octet"), "1 file not found", KindError},
		{"absolute", everyone, tftpRequestPacket(1, "/etc/passwd", "octet"), "1 file not found", KindError},
		{"not expected", nobody, tftpRequestPacket(1, AgentImage, "octet"), "1 file not found", KindDenied},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			address, events := startTFTP(t, agentFiles(pattern(100)), tt.allowed)
			client := newTFTPClient(t, address)
			client.conn.WriteTo(tt.packet, client.server)
			b, _, err := client.receive(5 * time.Second)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("%d %s", binary.BigEndian.Uint16(b[2:]), b[4:])
			if b[1] != tftpError || !strings.HasPrefix(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.kind != "" {
				diff(t, tt.kind, nextEvent(t, events).Kind)
			}
		})
	}
}

// TestTFTPClientGone ends a transfer after bounded retries.
func TestTFTPClientGone(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	gone := newTFTPClient(t, conn.LocalAddr().String())
	tr := transfer{conn: conn, peer: gone.conn.LocalAddr().(*net.UDPAddr).AddrPort(), file: bytes.NewReader(pattern(5000)),
		block: 512, window: 2, timeout: time.Millisecond, retries: 3}
	if err := tr.run(t.Context(), nil); !errors.Is(err, errTFTPSilent) {
		t.Fatalf("got %v", err)
	}
	packets := 0
	for {
		if _, _, err := gone.receive(20 * time.Millisecond); err != nil {
			break
		}
		packets++
	}
	diff(t, 2*4, packets)
}

// TestTFTPSizeProbe: firmware asks for tsize and aborts, which is no failure.
func TestTFTPSizeProbe(t *testing.T) {
	address, events := startTFTP(t, agentFiles(pattern(1234)), everyone)
	client := newTFTPClient(t, address)
	client.conn.WriteTo(tftpRequestPacket(1, AgentImage, "octet", "tsize", "0"), client.server)
	b, from, err := client.receive(5 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	diff(t, "\x00\x06tsize\x001234\x00", string(b))
	client.conn.WriteTo(tftpErrorPacket(8, "user aborted"), from)
	got, err := newTFTPClient(t, address).get(AgentImage)
	if err != nil || len(got) != 1234 {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if e := nextEvent(t, events); e.Kind != KindServed {
		t.Errorf("event %+v, want only the whole transfer's", e)
	}
}

// TestTFTPStranger: packets from another port neither end nor advance it.
func TestTFTPStranger(t *testing.T) {
	content := pattern(2000)
	address, _ := startTFTP(t, agentFiles(content), everyone)
	client, stranger := newTFTPClient(t, address), newTFTPClient(t, address)
	client.conn.WriteTo(tftpRequestPacket(1, AgentImage, "octet"), client.server)
	_, from, err := client.receive(5 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	stranger.conn.WriteTo([]byte{0, 4, 0, 1}, from)
	b, _, err := stranger.receive(5 * time.Second)
	if err != nil || b[1] != tftpError || b[3] != tftpErrTransfer {
		t.Fatalf("stranger got %v %v", b, err)
	}
	b, _, err = client.receive(5 * time.Second)
	if err != nil || b[3] != 1 {
		t.Errorf("client got %v %v, want block 1 again", b[:4], err)
	}
}

type failingFile struct{ io.Reader }

func (failingFile) Read([]byte) (int, error) { return 0, errors.New("bad sector") }

func TestTFTPReadError(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := newTFTPClient(t, conn.LocalAddr().String())
	tr := transfer{conn: conn, peer: client.conn.LocalAddr().(*net.UDPAddr).AddrPort(), file: failingFile{}, block: 512, window: 1, timeout: time.Millisecond}
	if err := tr.run(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "bad sector") {
		t.Errorf("got %v", err)
	}
	if b, _, err := client.receive(5 * time.Second); err != nil || b[1] != tftpError {
		t.Errorf("client got %v %v, want an error packet", b, err)
	}
}

func FuzzTFTPRequest(f *testing.F) {
	f.Add(tftpRequestPacket(1, AgentImage, "octet", "blksize", "1468", "tsize", "0", "windowsize", "4", "timeout", "3"))
	f.Add(tftpRequestPacket(2, "x", "netascii"))
	f.Add([]byte{0, 1, 0, 0, 0})
	f.Add([]byte("\x00\x01a\x00octet"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseTFTPRequest(b)
		if err != nil {
			return
		}
		if r.file == "" || r.blockSize != 0 && (r.blockSize < 8 || r.blockSize > tftpMaxBlock) ||
			r.window < 0 || r.window > tftpMaxWindow || r.timeout < 0 || r.timeout > 255*time.Second {
			t.Fatalf("%q gave %+v", b, r)
		}
		if oack := r.oack(1 << 40); len(oack) > tftpMaxRequest {
			t.Fatalf("OACK of %d bytes", len(oack))
		}
		parseTFTPAck(b)
	})
}
