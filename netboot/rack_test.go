package netboot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"bloomery/netboot/netboottest"
)

// rackDirectory is a rack's store, as slow as a replicated one: writes are one at a time.
type rackDirectory struct {
	read, write time.Duration
	mu          sync.Mutex
	leases      map[string]netip.Addr
	next        netip.Addr
}

func newRackDirectory(read, write time.Duration) *rackDirectory {
	return &rackDirectory{read: read, write: write, leases: map[string]netip.Addr{}, next: netip.MustParseAddr("10.66.1.0")}
}

func (d *rackDirectory) Lookup(_ context.Context, mac net.HardwareAddr) (Host, error) {
	time.Sleep(d.read)
	d.mu.Lock()
	defer d.mu.Unlock()
	return Host{Known: true, Machine: mac.String(), Wish: WishAgent, Address: d.leases[mac.String()]}, nil
}

func (d *rackDirectory) Lease(_ context.Context, mac net.HardwareAddr) (netip.Addr, error) {
	time.Sleep(d.read)
	d.mu.Lock()
	defer d.mu.Unlock()
	if have, ok := d.leases[mac.String()]; ok {
		return have, nil
	}
	time.Sleep(d.write)
	d.next = d.next.Next()
	d.leases[mac.String()] = d.next
	return d.next, nil
}

// plugIn starts a coordinator's DHCP server on the wire; stop is its death.
func plugIn(t testing.TB, w *netboottest.Wire, d Directory, address, bootURL string) (stop func()) {
	t.Helper()
	server, err := NewDHCPServer(DHCPConfig{
		Address: netip.MustParsePrefix(address + "/16"), Range: Range{netip.MustParseAddr("10.66.1.0"), netip.MustParseAddr("10.66.2.255")},
		BootURL: bootURL, Directory: d, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	conn := w.Server()
	go func() { ended <- server.Serve(ctx, conn) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// within bounds an exchange whose missing answers must not take long.
func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// TestThreeServers lets one machine boot from three coordinators: the same address from each, one acknowledgement, and no loss when the chosen
// one dies.
func TestThreeServers(t *testing.T) {
	w, d := netboottest.NewWire(), newRackDirectory(0, 0)
	stops := map[string]func(){}
	for _, a := range []string{"10.66.0.1", "10.66.0.2", "10.66.0.3"} {
		stops[a] = plugIn(t, w, d, a, "http://"+a+"/boot/")
	}
	client := w.Client(testMAC())
	offers, err := client.Discover(within(t, 5*time.Second), 3)
	if err != nil || len(offers) != 3 {
		t.Fatalf("%d offers, %v; want one of each", len(offers), err)
	}
	lease := offers[0].YourIPAddr
	seen := map[string]bool{}
	for _, o := range offers {
		server := o.ServerIdentifier().String()
		seen[server] = true
		if !o.YourIPAddr.Equal(lease) {
			t.Errorf("%s offers %s, another %s", server, o.YourIPAddr, lease)
		}
		diff(t, "http://"+server+"/boot/"+AgentImage, o.BootFileNameOption())
		// All but what names the server is the same.
		diff(t, optionCodes(offers[0]), optionCodes(o))
		for code := range o.Options {
			if c := dhcpv4.GenericOptionCode(code); code != dhcpv4.OptionServerIdentifier.Code() && code != dhcpv4.OptionBootfileName.Code() {
				diff(t, offers[0].Options.Get(c), o.Options.Get(c))
			}
		}
	}
	if len(seen) != 3 {
		t.Errorf("offers came from %v", seen)
	}
	chosen := offers[1]
	acks, err := client.Request(within(t, 300*time.Millisecond), chosen, 3)
	if err != nil || len(acks) != 1 || !acks[0].ServerIdentifier().Equal(chosen.ServerIdentifier()) || !acks[0].YourIPAddr.Equal(lease) {
		t.Fatalf("acknowledgements %v, %v; want the chosen server's only", acks, err)
	}
	// The chosen one dies between its offer and the request, and later before the lease is prolonged.
	stops[chosen.ServerIdentifier().String()]()
	if acks, err := client.Request(within(t, 300*time.Millisecond), chosen, 1); err != nil || len(acks) != 0 {
		t.Errorf("a dead server acknowledges: %v, %v", acks, err)
	}
	ack, again, err := client.Boot(t.Context())
	if err != nil || again != 0 || !ack.YourIPAddr.Equal(lease) {
		t.Errorf("booting again: %v after %d more tries, %v; want %s from another server", ack, again, err, lease)
	}
	acks, err = client.Rebind(within(t, 5*time.Second), lease, 2)
	if err != nil || len(acks) != 2 || !acks[0].YourIPAddr.Equal(lease) || !acks[1].YourIPAddr.Equal(lease) {
		t.Errorf("rebinding: %v, %v; want %s from both that live", acks, err, lease)
	}
}

const stormClients = 200

func stormMACs(n int) []net.HardwareAddr {
	var all []net.HardwareAddr
	for i := range n {
		all = append(all, net.HardwareAddr{0x52, 0x54, 0, 1, byte(i >> 8), byte(i)})
	}
	return all
}

// storm lets machines boot at once from three coordinators whose store takes a replicated one's time.
func storm(t testing.TB, clients int) netboottest.Outcome {
	w, d := netboottest.NewWire(), newRackDirectory(2*time.Millisecond, 4*time.Millisecond)
	content := bytes.Repeat([]byte("agent"), 20_000)
	for _, a := range []string{"10.66.0.1", "10.66.0.2", "10.66.0.3"} {
		handler, err := NewHTTPHandler(HTTPConfig{Files: agentFiles(content), Allowed: everyone, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		server := httptest.NewUnstartedServer(handler)
		server.Config = NewHTTPServer(handler, slog.New(slog.DiscardHandler))
		server.Start()
		t.Cleanup(server.Close)
		plugIn(t, w, d, a, server.URL+"/boot/")
	}
	s := netboottest.Storm{MACs: stormMACs(clients), Fetch: func(ctx context.Context, ack *dhcpv4.DHCPv4) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, ack.BootFileNameOption(), nil)
		if err != nil {
			return err
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		if err == nil && !bytes.Equal(body, content) {
			err = fmt.Errorf("%s: %d of %d bytes", response.Status, len(body), len(content))
		}
		return err
	}}
	o := s.Run(t.Context(), w)
	if lost := w.Lost(); o.Lost > 0 || lost > 0 {
		t.Errorf("%d machines of %d did not boot, %d packets were lost: %v", o.Lost, clients, lost, o.Errors)
	}
	addresses := map[string]bool{}
	for _, a := range o.Addresses {
		addresses[a] = true
	}
	if len(addresses) != clients {
		t.Errorf("%d machines have %d addresses", clients, len(addresses))
	}
	return o
}

func TestBootStorm(t *testing.T) {
	o := storm(t, stormClients)
	t.Logf("%d machines booted in %s: p50 %s, p99 %s, %d had to ask again", stormClients, o.Took.Round(time.Millisecond), o.P50.Round(time.Millisecond), o.P99.Round(time.Millisecond), o.Again)
}
