package takeover

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"bloomery/lab/bmc"
	"bloomery/lab/vswitch"
)

// effort is how long a device takes over a command: long enough to be stopped in the middle of it.
const effort = 25 * time.Millisecond

const (
	username, password = "bloomery", "not-a-real-secret"
	tor                = "tor1"
	provisioningVLAN   = 100
	customerVLAN       = 200
)

// machine is a server's BMC, which tells what it was told.
type machine struct {
	mu   sync.Mutex
	on   bool
	done []string
}

func (m *machine) note(action string, on bool) {
	time.Sleep(effort)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done, m.on = append(m.done, action), on
}

func (m *machine) actions() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.done)
}

// On implements bmc.Power.
func (m *machine) On() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.on
}

// PowerOn implements bmc.Power.
func (m *machine) PowerOn(context.Context) error { m.note("on", true); return nil }

// PowerOff implements bmc.Power.
func (m *machine) PowerOff(context.Context) error { m.note("off", false); return nil }

// Reset implements bmc.Power.
func (m *machine) Reset(context.Context) error { m.note("reset", true); return nil }

// Shutdown implements bmc.Power.
func (m *machine) Shutdown(context.Context) error { m.note("shutdown", false); return nil }

// plug starts a machine's BMC on loopback and returns its address.
func (m *machine) plug(t *testing.T) string {
	t.Helper()
	server, err := bmc.New(bmc.Config{Address: netip.MustParseAddrPort("10.65.0.11:623"), Username: username, Password: password, Power: m,
		BootSet: func(_ context.Context, b bmc.Boot) { m.note("boot:"+b.String(), m.On()) }})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(t.Context(), conn) })
	t.Cleanup(wg.Wait)
	return conn.LocalAddr().String()
}

// top is the rack's switch, which tells what it was told.
type top struct {
	sw      *vswitch.Switch
	address string
	ca      string
	sockets string
	mu      sync.Mutex
	moves   map[string][]string
}

func newTop(t *testing.T) *top {
	t.Helper()
	s := &top{ca: filepath.Join(t.TempDir(), "ca.crt"), moves: map[string][]string{}}
	var err error
	if s.sockets, err = os.MkdirTemp("", "top"); err != nil { // the paths of sockets are short
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(s.sockets) })
	s.sw = vswitch.New(vswitch.Config{Name: tor, Ageing: time.Hour, OnSet: s.set})
	t.Cleanup(func() {
		if err := s.sw.Close(); err != nil {
			t.Error(err)
		}
	})
	certificate, ca, err := vswitch.SelfSigned("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(ca) {
		t.Fatal("the switch's CA is none")
	}
	if err := os.WriteFile(s.ca, ca, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.passwordFile(), []byte(password), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	if err := s.sw.ServeGNMI(t.Context(), l, vswitch.GNMIOptions{Certificate: certificate, Username: username, Password: password}); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *top) passwordFile() string { return s.ca + ".password" }

func (s *top) set(_ net.Addr, port string, before, after vswitch.VLAN) {
	time.Sleep(effort)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moves[port] = append(s.moves[port], fmt.Sprintf("%d to %d", before.Access, after.Access))
}

func (s *top) of(port string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.moves[port])
}

// plug puts a machine that was a customer's last on a port.
func (s *top) plug(t *testing.T, port string, mac net.HardwareAddr) {
	t.Helper()
	if err := s.sw.AddSocketPort(port, filepath.Join(s.sockets, port), vswitch.Access(customerVLAN)); err != nil {
		t.Fatal(err)
	}
	if err := s.sw.InjectMAC(port, mac, customerVLAN); err != nil {
		t.Fatal(err)
	}
}
