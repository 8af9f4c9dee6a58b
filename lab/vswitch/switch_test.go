package vswitch

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// machine is the far end of a socket port, as QEMU would be.
type machine struct {
	t    testing.TB
	conn net.Conn
	mac  net.HardwareAddr
}

func plugIn(t testing.TB, sw *Switch, port, path string, last byte) *machine {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	waitFor(t, port+" up", func() bool { p, _ := sw.Snapshot().Port(port); return p.LinkUp })
	return &machine{t: t, conn: conn, mac: net.HardwareAddr{2, 0, 0, 0, 0, last}}
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("timed out waiting for " + what)
		}
	}
}

func (m *machine) send(f []byte) {
	m.t.Helper()
	if _, err := m.conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) frame(dst net.HardwareAddr, tag uint16, text string) []byte {
	f := append(append([]byte(nil), dst...), m.mac...)
	if tag != 0 {
		f = binary.BigEndian.AppendUint16(f, typeVLAN)
		f = binary.BigEndian.AppendUint16(f, tag)
	}
	f = binary.BigEndian.AppendUint16(f, 0x88b5) // local experimental ethertype
	return append(f, text...)
}

// next returns the next frame that is not LLDP, nil when none comes.
func (m *machine) next(within time.Duration) []byte {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(within)); err != nil {
		m.t.Fatal(err)
	}
	for {
		var head [4]byte
		if _, err := io.ReadFull(m.conn, head[:]); err != nil {
			return nil
		}
		f := make([]byte, binary.BigEndian.Uint32(head[:]))
		if _, err := io.ReadFull(m.conn, f); err != nil {
			m.t.Fatal(err)
		}
		if macOf(f) != lldpDestination {
			return f
		}
	}
}

func (m *machine) expect(want []byte) {
	m.t.Helper()
	if diff := cmp.Diff(want, m.next(2*time.Second)); diff != "" {
		m.t.Fatalf("frame (-want +got):\n%s", diff)
	}
}

func (m *machine) expectNothing() {
	m.t.Helper()
	if f := m.next(50 * time.Millisecond); f != nil {
		m.t.Fatalf("got a frame that must not be here: %x", f)
	}
}

type fakeClock struct {
	mu sync.Mutex
	at time.Time
}

func (c *fakeClock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

var broadcast = net.HardwareAddr{255, 255, 255, 255, 255, 255}

func newSwitch(t testing.TB, c Config, ports map[string]VLAN) (*Switch, func(port string, last byte) *machine) {
	t.Helper()
	dir := t.TempDir()
	sw := New(c)
	t.Cleanup(func() {
		if err := sw.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, v := range ports {
		if err := sw.AddSocketPort(name, filepath.Join(dir, name), v); err != nil {
			t.Fatal(err)
		}
	}
	return sw, func(port string, last byte) *machine { return plugIn(t, sw, port, filepath.Join(dir, port), last) }
}

func TestForwarding(t *testing.T) {
	sw, plug := newSwitch(t, Config{Name: "tor1"}, map[string]VLAN{
		"e1": Access(100), "e2": Access(100), "e3": Access(200), "e4": Trunk(0, 100, 200), "e5": Trunk(200, 100),
	})
	a, b, c := plug("e1", 1), plug("e2", 2), plug("e3", 3)
	trunk, native := plug("e4", 4), plug("e5", 5)

	a.send(a.frame(broadcast, 0, "hello"))
	b.expect(a.frame(broadcast, 0, "hello"))
	trunk.expect(a.frame(broadcast, 100, "hello"))
	native.expect(a.frame(broadcast, 100, "hello"))
	c.expectNothing()
	a.expectNothing()

	b.send(b.frame(a.mac, 0, "unicast")) // a is learned: nobody else sees it
	a.expect(b.frame(a.mac, 0, "unicast"))
	trunk.expectNothing()

	trunk.send(trunk.frame(broadcast, 200, "to 200"))
	c.expect(trunk.frame(broadcast, 0, "to 200"))
	native.expect(trunk.frame(broadcast, 0, "to 200"))
	a.expectNothing()
	trunk.send(trunk.frame(broadcast, 0, "untagged on a trunk without native"))
	trunk.send(trunk.frame(broadcast, 300, "not allowed"))
	a.send(a.frame(broadcast, 200, "hopping"))
	a.send(a.frame(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, 0, "lldp"))
	for _, m := range []*machine{b, c, native} {
		m.expectNothing()
	}

	if err := sw.SetVLAN("e2", Access(200)); err != nil {
		t.Fatal(err)
	}
	if p, _ := sw.Snapshot().Port("e2"); len(p.Learned) != 0 {
		t.Errorf("addresses are still learned after the VLAN changed: %v", p.Learned)
	}
	a.send(a.frame(broadcast, 0, "gone"))
	b.expectNothing()
	c.send(c.frame(broadcast, 0, "welcome"))
	b.expect(c.frame(broadcast, 0, "welcome"))
}

func TestAgeingAndLinkDown(t *testing.T) {
	clock := &fakeClock{at: time.Unix(1e9, 0)}
	sw, plug := newSwitch(t, Config{Now: clock.now}, map[string]VLAN{"e1": Access(1), "e2": Access(1), "e3": Access(1)})
	a, b, c := plug("e1", 1), plug("e2", 2), plug("e3", 3)
	a.send(a.frame(broadcast, 0, "x"))
	b.expect(a.frame(broadcast, 0, "x"))
	c.expect(a.frame(broadcast, 0, "x"))
	clock.advance(300 * time.Second)
	b.send(b.frame(a.mac, 0, "known"))
	a.expect(b.frame(a.mac, 0, "known"))
	c.expectNothing()
	clock.advance(time.Second)
	b.send(b.frame(a.mac, 0, "aged"))
	a.expect(b.frame(a.mac, 0, "aged"))
	c.expect(b.frame(a.mac, 0, "aged"))
	a.send(a.frame(b.mac, 0, "y"))
	b.expect(a.frame(b.mac, 0, "y"))
	a.conn.Close()
	waitFor(t, "e1 down", func() bool { p, _ := sw.Snapshot().Port("e1"); return !p.LinkUp && len(p.Learned) == 0 })
	a = plug("e1", 1) // the machine was power cycled
	a.send(a.frame(b.mac, 0, "back"))
	b.expect(a.frame(b.mac, 0, "back"))
}

func TestFaultsAndCapture(t *testing.T) {
	sw, plug := newSwitch(t, Config{}, map[string]VLAN{"e1": Access(1), "e2": Access(1), "e3": Access(3)})
	a, b, c := plug("e1", 1), plug("e2", 2), plug("e3", 3)
	var pcap bytes.Buffer
	stop, err := sw.StartCapture("e1", &pcap)
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(sw.Cut("e2"))
	a.send(a.frame(broadcast, 0, "cut"))
	b.expectNothing()
	must(sw.Restore("e2"))
	must(sw.SetLoss("e2", 0, 1))
	a.send(a.frame(broadcast, 0, "twice"))
	b.expect(a.frame(broadcast, 0, "twice"))
	b.expect(a.frame(broadcast, 0, "twice"))
	must(sw.SetLoss("e2", 1, 0))
	a.send(a.frame(broadcast, 0, "lost"))
	b.expectNothing()
	must(sw.SetLoss("e2", 0, 0))
	must(stop())
	frame := a.frame(broadcast, 0, "cut")
	if got := pcap.Bytes(); len(got) < 40+len(frame) || !bytes.Equal(got[40:40+len(frame)], frame) {
		t.Errorf("the capture does not begin with the first frame: %x", got)
	}
	must(sw.SwapCables("e2", "e3"))
	a.send(a.frame(broadcast, 0, "swapped"))
	c.expect(a.frame(broadcast, 0, "swapped"))
	b.expectNothing()
	must(sw.InjectMAC("e1", net.HardwareAddr{2, 9, 9, 9, 9, 9}, 1))
	if p, _ := sw.Snapshot().Port("e1"); len(p.Learned) != 2 {
		t.Errorf("learned %v, want the machine's address and the injected one", p.Learned)
	}
}

func TestQueueIsBounded(t *testing.T) {
	sw, plug := newSwitch(t, Config{QueueBytes: 4000}, map[string]VLAN{"e1": Access(1), "e2": Access(1)})
	a := plug("e1", 1)
	plug("e2", 2) // never reads
	f := a.frame(broadcast, 0, string(make([]byte, 1400)))
	waitFor(t, "drops", func() bool {
		a.send(f)
		p, _ := sw.Snapshot().Port("e2")
		return p.Counters.OutDiscards > 0
	})
}

func TestLLDP(t *testing.T) {
	_, plug := newSwitch(t, Config{Name: "tor1"}, map[string]VLAN{"Ethernet1": Access(100)})
	m := plug("Ethernet1", 1)
	var head [4]byte
	if _, err := io.ReadFull(m.conn, head[:]); err != nil {
		t.Fatal(err)
	}
	f := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := io.ReadFull(m.conn, f); err != nil {
		t.Fatal(err)
	}
	got := map[uint16]string{}
	for b := f[14:]; len(b) >= 2; {
		n := binary.BigEndian.Uint16(b)
		got[n>>9] = string(b[2 : 2+n&0x1ff])
		b = b[2+n&0x1ff:]
	}
	want := map[uint16]string{0: "", 1: "\x04" + string(f[6:12]), 2: "\x05Ethernet1", 3: "\x00\x14", 4: "Ethernet1", 5: "tor1", 127: "\x00\x80\xc2\x01\x00\x64"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("TLVs (-want +got):\n%s", diff)
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	before := runtime.NumGoroutine()
	path := filepath.Join(t.TempDir(), "p")
	sw := New(Config{})
	if err := sw.AddSocketPort("p", path, Access(1)); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error)
	go func() { ran <- sw.Run(ctx) }()
	cancel()
	if err := <-ran; err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("socket file is still there: %v", err)
	}
	waitFor(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
	if err := sw.AddSocketPort("q", path, Access(1)); err == nil {
		t.Error("a closed switch took a port")
	}
}

func FuzzReadFrames(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 14, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x81, 0})
	f.Add([]byte{255, 255, 255, 255})
	f.Add([]byte{0, 0, 0, 18, 2, 2, 3, 4, 5, 6, 2, 8, 9, 10, 11, 12, 0x81, 0, 0, 100, 8, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		err := readFrames(bytes.NewReader(b), func(fr []byte) {
			h, err := parseHeader(fr)
			if err != nil {
				return
			}
			out := appendFrame(nil, fr, h, true, 7)
			back, err := parseHeader(out[lengthPrefix:])
			if int(binary.BigEndian.Uint32(out)) != len(out)-lengthPrefix {
				t.Fatalf("length prefix of %x", out)
			}
			if len(out)-lengthPrefix <= maxFrame && (err != nil || back.vid != 7) {
				t.Fatalf("tagged %x: %+v, %v", out, back, err)
			}
		}, func(int) {})
		if err == nil {
			t.Fatal("a stream ended without an error")
		}
	})
}

func BenchmarkSocketToSocket(b *testing.B) {
	_, plug := newSwitch(b, Config{}, map[string]VLAN{"e1": Access(1), "e2": Access(1)})
	from, to := plug("e1", 1), plug("e2", 2)
	f := from.frame(broadcast, 0, string(make([]byte, 1500)))
	one := append(binary.BigEndian.AppendUint32(nil, uint32(len(f))), f...)
	batch := bytes.Repeat(one, 64)
	b.SetBytes(int64(len(batch)))
	b.ResetTimer()
	const window = 32 // batches on the way, so that the queue does not overflow
	acked := make(chan struct{}, window)
	go func() {
		buf, n := make([]byte, 256<<10), 0
		for {
			got, err := to.conn.Read(buf)
			if err != nil {
				return
			}
			for n += got; n >= len(batch); n -= len(batch) {
				<-acked
			}
		}
	}()
	for range b.N {
		acked <- struct{}{}
		if _, err := from.conn.Write(batch); err != nil {
			b.Fatal(err)
		}
	}
	for range window {
		acked <- struct{}{}
	}
}
