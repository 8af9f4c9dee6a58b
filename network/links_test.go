package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

type fakeKernel struct {
	links chan Link
	mu    sync.Mutex
	log   []string
}

func (k *fakeKernel) watch(ctx context.Context) (<-chan Link, error) {
	out := make(chan Link)
	go func() {
		defer close(out)
		for {
			select {
			case l := <-k.links:
				out <- l
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}

func (k *fakeKernel) note(format string, args ...any) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.log = append(k.log, fmt.Sprintf(format, args...))
	return nil
}

func (k *fakeKernel) setUp(l Link) error { return k.note("up %s", l.Name) }
func (k *fakeKernel) configure(l Link, lease Lease) error {
	return k.note("add %s %s", l.Name, lease.Address)
}
func (k *fakeKernel) deconfigure(l Link, lease Lease) error {
	return k.note("del %s %s", l.Name, lease.Address)
}

type fakeDHCP struct {
	silent  int // requests without an answer
	refused bool
	mu      sync.Mutex
	renewed int
}

func (d *fakeDHCP) request(ctx context.Context, l Link) (Lease, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.silent > 0 {
		d.silent--
		return Lease{}, errSilent
	}
	return Lease{Interface: l.Name, MAC: l.MAC, Address: netip.MustParsePrefix("192.0.2.7/24"), Obtained: time.Now(), Expires: time.Now().Add(time.Hour)}, nil
}

func (d *fakeDHCP) renew(ctx context.Context, l Link, lease Lease) (Lease, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.renewed++
	if d.refused {
		d.refused = false
		return Lease{}, errRefused
	}
	lease.Obtained, lease.Expires = time.Now(), time.Now().Add(time.Hour)
	return lease, nil
}

var (
	mac  = net.HardwareAddr{0x52, 0x54, 0, 1, 2, 3}
	port = Link{Index: 2, Name: "eth0", MAC: mac, Up: true, Carrier: true}
)

// story runs Links against fakes in a bubble of its own time and gives the kinds of events in order.
func story(t *testing.T, d *fakeDHCP, play func(k *fakeKernel, n *Links)) (events []string, k *fakeKernel) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		k = &fakeKernel{links: make(chan Link)}
		ctx, cancel := context.WithCancel(context.Background())
		n := newLinks(Config{
			Log: slog.New(slog.DiscardHandler), Accept: func(l Link) bool { return l.Name != "lo" },
			Notify: func(e Event) { events = append(events, string(e.Kind)) },
		}, k, d)
		done := make(chan error)
		go func() { done <- n.Run(ctx) }()
		play(k, n)
		synctest.Wait()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return events, k
}

func TestLinks(t *testing.T) {
	down := port
	down.Up, down.Carrier = false, false
	cut := port
	cut.Carrier = false
	for _, tt := range []struct {
		name           string
		dhcp           *fakeDHCP
		play           func(k *fakeKernel, n *Links)
		events, kernel string
	}{
		{"an address", &fakeDHCP{}, func(k *fakeKernel, n *Links) {
			k.links <- Link{Name: "lo", Carrier: true}
			k.links <- down
			k.links <- port
			if l, err := n.First(context.Background()); err != nil || l.Address.String() != "192.0.2.7/24" {
				panic(fmt.Sprint(l, err))
			}
		}, "link-up leased", "up eth0,add eth0 192.0.2.7/24"},
		{"no carrier", &fakeDHCP{}, func(k *fakeKernel, n *Links) {
			k.links <- cut
			time.Sleep(time.Minute)
		}, "no-carrier", ""},
		{"silence, then an answer", &fakeDHCP{silent: 3}, func(k *fakeKernel, n *Links) {
			k.links <- port
			time.Sleep(time.Minute)
		}, "link-up dhcp-silent dhcp-silent dhcp-silent leased", "add eth0 192.0.2.7/24"},
		{"silence for ever", &fakeDHCP{silent: 1 << 30}, func(k *fakeKernel, n *Links) {
			k.links <- port
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
			defer cancel()
			if _, err := n.First(ctx); !errors.Is(err, context.DeadlineExceeded) {
				panic(err)
			}
		}, "link-up dhcp-silent dhcp-silent dhcp-silent", ""},
		{"cable out and in", &fakeDHCP{}, func(k *fakeKernel, n *Links) {
			k.links <- port
			synctest.Wait()
			k.links <- cut
			synctest.Wait()
			if len(n.Leases()) != 0 {
				panic("the lease is still there")
			}
			k.links <- port
			synctest.Wait()
		}, "link-up leased link-down lease-lost link-up leased", "add eth0 192.0.2.7/24,del eth0 192.0.2.7/24,add eth0 192.0.2.7/24"},
		{"renewed", &fakeDHCP{}, func(k *fakeKernel, n *Links) {
			k.links <- port
			time.Sleep(31 * time.Minute)
		}, "link-up leased", "add eth0 192.0.2.7/24,add eth0 192.0.2.7/24"},
		{"taken back", &fakeDHCP{refused: true}, func(k *fakeKernel, n *Links) {
			k.links <- port
			time.Sleep(31 * time.Minute)
		}, "link-up leased lease-lost leased", "add eth0 192.0.2.7/24,del eth0 192.0.2.7/24,add eth0 192.0.2.7/24"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			events, k := story(t, tt.dhcp, tt.play)
			if got := strings.Join(events, " "); got != tt.events {
				t.Errorf("events %q, want %q", got, tt.events)
			}
			if got := strings.Join(k.log, ","); got != tt.kernel {
				t.Errorf("kernel %q, want %q", got, tt.kernel)
			}
		})
	}
}

func TestLeaseOf(t *testing.T) {
	for _, tt := range []struct {
		name, ip string
		mods     []dhcpv4.Modifier
		want     string
	}{
		{"plain", "192.0.2.7", []dhcpv4.Modifier{dhcpv4.WithNetmask(net.CIDRMask(25, 32)), dhcpv4.WithRouter(net.IPv4(192, 0, 2, 1))}, "192.0.2.7/25 via 192.0.2.1"},
		{"no mask", "10.1.2.3", nil, "10.1.2.3/8 via invalid IP"},
		{"loopback", "127.0.0.1", nil, ""},
		{"zero", "0.0.0.0", nil, ""},
		{"holes in the mask", "10.1.2.3", []dhcpv4.Modifier{dhcpv4.WithNetmask(net.IPMask{255, 0, 255, 0})}, ""},
	} {
		ack, err := dhcpv4.New(append(tt.mods, dhcpv4.WithYourIP(net.ParseIP(tt.ip)))...)
		if err != nil {
			t.Fatal(err)
		}
		l, err := leaseOf(port, ack, time.Now())
		got := ""
		if err == nil {
			got = fmt.Sprintf("%s via %s", l.Address, l.Gateway)
		}
		if got != tt.want {
			t.Errorf("%s: got %q (%v), want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestBoundHint(t *testing.T) {
	build := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for hint, ok := range map[time.Time]bool{build: true, build.AddDate(10, 0, 0): true, build.Add(-time.Second): false, build.AddDate(11, 0, 0): false, {}: false} {
		if err := BoundHint(hint, build); (err == nil) != ok {
			t.Errorf("%s: %v", hint, err)
		}
	}
	if err := SetTime(build.Add(-time.Hour), build); err == nil {
		t.Error("the clock was set")
	}
}
