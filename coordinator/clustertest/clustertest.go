// Package clustertest runs the coordinators of a rack for tests: real databases, TLS and RPCs, on addresses of 127.0.0.0/8 of its own.
package clustertest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator"
	"bloomery/images"
	"bloomery/internal/pki"
)

// patience bounds every wait; it is reached by failures only.
const patience = 60 * time.Second

// Options says what rack to make.
type Options struct {
	// Nodes is how many coordinators there are when Start returns; they are c1, c2 and so on.
	Nodes int
	// Processes makes each a process of its own, which can be killed and paused: the test binary again. Its TestMain calls Main.
	Processes bool
	// Configure changes the configuration of a coordinator before it starts for the first time; in Processes it must be what the
	// configuration file can say.
	Configure func(config *coordinator.Config)
	// Deps are what coordinators in this process act through; see coordinator.RunWith.
	Deps func(node string) coordinator.Deps
}

// Rack is a rack of coordinators.
type Rack struct {
	t       testing.TB
	options Options
	dir     string
	// network is the first three bytes of its addresses.
	network [3]byte
	mu      sync.Mutex
	nodes   []*Node
	// ImageKey signs images of this rack.
	ImageKey images.PrivateKey
}

// Node is one coordinator, running or not.
type Node struct {
	rack   *Rack
	Name   string
	Config coordinator.Config
	life   life
}

// life is a running coordinator.
type life interface {
	// stop ends it in an orderly way, kill at once.
	stop() error
	kill() error
	pause(bool) error
}

// Start makes a rack, and waits until all of its coordinators vote.
func Start(t testing.TB, o Options) *Rack {
	t.Helper()
	r := &Rack{t: t, options: o, dir: t.TempDir(), network: [3]byte{127, byte(1 + rand.N(254)), byte(rand.N(255))}}
	first := r.newNode("c1")
	ok(t, pki.InitRack(first.Config.PKI, pki.InitOptions{Name: "test", Node: first.Name, ServerAddresses: []string{first.Config.Cluster.Addr().String()}, OperatorName: "anna"}))
	_, err := images.GenerateKeyFiles(filepath.Join(r.dir, "image.key"), filepath.Join(first.Config.PKI, "image.pub"))
	ok(t, err)
	r.ImageKey, err = images.LoadPrivateKey(filepath.Join(r.dir, "image.key"), "")
	ok(t, err)
	t.Cleanup(r.stopAll)
	first.Start()
	// The first start puts the operator on record.
	r.until("know the operator", func(ctx context.Context) error {
		_, err := first.Client().Access.WhoAmI(ctx, connect.NewRequest(&bloomeryv1.WhoAmIRequest{}))
		return err
	})
	for i := 2; i <= o.Nodes; i++ {
		r.Join(fmt.Sprintf("c%d", i))
	}
	switch {
	case o.Nodes > 2:
		r.WaitVoters(3)
	case o.Nodes == 2:
		r.WaitVoters(1)
	}
	return r
}

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (r *Rack) newNode(name string) *Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	address := netip.AddrFrom4([4]byte{r.network[0], r.network[1], r.network[2], byte(len(r.nodes) + 1)})
	data := filepath.Join(r.dir, fmt.Sprintf("%s-%d", name, len(r.nodes)))
	config := coordinator.Config{
		Data: data, PKI: filepath.Join(data, "pki"), Node: name, Cluster: netip.AddrPortFrom(address, 8444),
		Listen:   coordinator.Listen{API: []string{netip.AddrPortFrom(address, 8443).String()}},
		Networks: []coordinator.Network{{Name: coordinator.ProvisioningNetwork, VLAN: 100}},
		Timing:   coordinator.DefaultTiming(),
	}
	if r.options.Configure != nil {
		r.options.Configure(&config)
	}
	ok(r.t, os.MkdirAll(config.Data, 0o700))
	n := &Node{rack: r, Name: name, Config: config}
	r.nodes = append(r.nodes, n)
	return n
}

// Join makes another coordinator, lets it join and starts it.
func (r *Rack) Join(name string) *Node {
	r.t.Helper()
	n := r.newNode(name)
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	var token string
	r.until("make a join token", func(ctx context.Context) error {
		answer, err := r.Client().Rack.CreateJoinToken(ctx, connect.NewRequest(&bloomeryv1.CreateJoinTokenRequest{Node: name}))
		if err == nil {
			token = answer.Msg.GetToken()
		}
		return err
	})
	ok(r.t, coordinator.Join(ctx, n.Config, token, nil))
	n.Start()
	return n
}

// Nodes are all coordinators that were ever made, in order.
func (r *Rack) Nodes() []*Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*Node(nil), r.nodes...)
}

// Node is the newest coordinator of a name.
func (r *Rack) Node(name string) *Node {
	r.t.Helper()
	nodes := r.Nodes()
	for i := len(nodes) - 1; i >= 0; i-- {
		if nodes[i].Name == name {
			return nodes[i]
		}
	}
	r.t.Fatalf("no coordinator %s", name)
	return nil
}

// Start runs a coordinator and waits until it answers.
func (n *Node) Start() {
	n.rack.t.Helper()
	if n.life != nil {
		n.rack.t.Fatalf("coordinator %s runs already", n.Name)
	}
	var err error
	if n.rack.options.Processes {
		n.life, err = startProcess(n)
	} else {
		n.life, err = startHere(n)
	}
	ok(n.rack.t, err)
}

// Stop ends a coordinator in an orderly way.
func (n *Node) Stop() { n.rack.t.Helper(); ok(n.rack.t, n.end(life.stop)) }

// Kill ends a coordinator's process at once. In one process it is the same as Stop.
func (n *Node) Kill() { n.rack.t.Helper(); ok(n.rack.t, n.end(life.kill)) }

// Pause stops a coordinator's process (SIGSTOP), Resume lets it go on.
func (n *Node) Pause() { n.rack.t.Helper(); ok(n.rack.t, n.life.pause(true)) }

// Resume lets a paused coordinator go on.
func (n *Node) Resume() { n.rack.t.Helper(); ok(n.rack.t, n.life.pause(false)) }

// Running says whether a coordinator was started and not ended.
func (n *Node) Running() bool { return n.life != nil }

func (n *Node) end(how func(life) error) error {
	if n.life == nil {
		return nil
	}
	l := n.life
	n.life = nil
	return how(l)
}

func (r *Rack) stopAll() {
	for _, n := range r.Nodes() {
		if n.life != nil {
			if err := n.end(life.kill); err != nil {
				r.t.Errorf("stop coordinator %s: %v", n.Name, err)
			}
		}
	}
}

// Client is a client of the rack with the first operator's certificate.
type Client struct {
	Machines bloomeryv1connect.MachineServiceClient
	Jobs     bloomeryv1connect.JobServiceClient
	Events   bloomeryv1connect.EventServiceClient
	Images   bloomeryv1connect.ImageServiceClient
	Access   bloomeryv1connect.AccessServiceClient
	Rack     bloomeryv1connect.RackServiceClient
	HTTP     *http.Client
	Base     string
}

// Client reaches the first coordinator that runs.
func (r *Rack) Client() Client {
	r.t.Helper()
	for _, n := range r.Nodes() {
		if n.life != nil {
			return n.Client()
		}
	}
	r.t.Fatal("no coordinator runs")
	return Client{}
}

// Client reaches one coordinator.
func (n *Node) Client() Client {
	n.rack.t.Helper()
	dir := n.rack.nodes[0].Config.PKI
	cert, key := pki.OperatorFiles(dir, "anna")
	config, err := pki.ClientTLS(filepath.Join(dir, pki.CACert), cert, key)
	ok(n.rack.t, err)
	config.ServerName = pki.ServerName
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	n.rack.t.Cleanup(transport.CloseIdleConnections)
	h, base := &http.Client{Transport: transport}, "https://"+n.Config.Listen.API[0]
	return Client{bloomeryv1connect.NewMachineServiceClient(h, base), bloomeryv1connect.NewJobServiceClient(h, base), bloomeryv1connect.NewEventServiceClient(h, base),
		bloomeryv1connect.NewImageServiceClient(h, base), bloomeryv1connect.NewAccessServiceClient(h, base), bloomeryv1connect.NewRackServiceClient(h, base), h, base}
}

// Status asks a coordinator for the rack's status.
func (n *Node) Status(ctx context.Context) (*bloomeryv1.GetRackStatusResponse, error) {
	answer, err := n.Client().Rack.GetRackStatus(ctx, connect.NewRequest(&bloomeryv1.GetRackStatusRequest{}))
	if err != nil {
		return nil, err
	}
	return answer.Msg, nil
}

// WaitVoters waits until the running coordinators see a leader and this many voters that answer.
func (r *Rack) WaitVoters(want int) {
	r.t.Helper()
	r.until(fmt.Sprintf("have %d voters", want), func(ctx context.Context) error {
		for _, n := range r.Nodes() {
			if n.life == nil {
				continue
			}
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			voters := 0
			for _, m := range s.GetNodes() {
				if m.GetReachable() && m.GetRole() == bloomeryv1.NodeRole_NODE_ROLE_VOTER {
					voters++
				}
			}
			if voters != want || !s.GetQuorum() {
				return fmt.Errorf("%s sees %d voters, quorum %v, warnings %v", n.Name, voters, s.GetQuorum(), s.GetWarnings())
			}
		}
		return nil
	})
}

// Leader is the leading coordinator, as the running ones see it.
func (r *Rack) Leader() *Node {
	r.t.Helper()
	var leader string
	r.until("have a leader", func(ctx context.Context) error {
		for _, n := range r.Nodes() {
			if n.life == nil {
				continue
			}
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			if leader = s.GetLeader(); leader == "" {
				return errors.New("no leader")
			}
			return nil
		}
		return errors.New("no coordinator runs")
	})
	return r.Node(leader)
}

// until tries again until it succeeds.
func (r *Rack) until(what string, try func(context.Context) error) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			r.t.Fatalf("%s: %v", what, err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// here is a coordinator in this process.
type here struct {
	cancel context.CancelFunc
	done   chan error
}

func startHere(n *Node) (life, error) {
	deps := coordinator.Deps{}
	if n.rack.options.Deps != nil {
		deps = n.rack.options.Deps(n.Name)
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
		if testing.Verbose() {
			deps.Logger = slog.New(slog.NewTextHandler(n.rack.t.Output(), nil)).With("node", n.Name)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &here{cancel: cancel, done: make(chan error, 1)}
	ready := make(chan struct{})
	config := n.Config
	config.Ready = func() error { close(ready); return nil }
	go func() { h.done <- coordinator.RunWith(ctx, config, deps) }()
	select {
	case <-ready:
		return h, nil
	case err := <-h.done:
		cancel()
		return nil, fmt.Errorf("coordinator %s: %w", n.Name, err)
	case <-time.After(patience):
		cancel()
		return nil, fmt.Errorf("coordinator %s does not start", n.Name)
	}
}

func (h *here) stop() error {
	h.cancel()
	return <-h.done
}

func (h *here) kill() error { return h.stop() }

func (h *here) pause(bool) error {
	return errors.New("only a coordinator that is a process can be paused")
}
