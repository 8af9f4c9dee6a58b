package store

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/internal/pki"
)

// testCluster is a rack's database on addresses of 127.0.0.0/8 with real TLS.
type testCluster struct {
	t         *testing.T
	dir       string
	authority *pki.Authority
	// refused are names that are not admitted.
	mu      sync.Mutex
	refused map[string]bool
	nodes   map[string]*Store
}

func newTestCluster(t *testing.T) *testCluster {
	t.Helper()
	c := &testCluster{t: t, dir: t.TempDir(), refused: map[string]bool{}, nodes: map[string]*Store{}}
	keys := filepath.Join(c.dir, "pki")
	if err := pki.InitRack(keys, pki.InitOptions{Name: "test", ServerAddresses: []string{"127.0.0.1"}, OperatorName: "anna"}); err != nil {
		t.Fatal(err)
	}
	var err error
	if c.authority, err = pki.LoadAuthority(keys); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for name := range c.nodes {
			c.stop(name)
		}
	})
	return c
}

// certificate makes a node's own.
func (c *testCluster) certificate(name string) tls.Certificate {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		c.t.Fatal(err)
	}
	csr, err := pki.ParseCSR(der)
	if err != nil {
		c.t.Fatal(err)
	}
	chain, _, err := c.authority.SignNode(csr, name, []string{"127.0.0.1"}, time.Now())
	if err != nil {
		c.t.Fatal(err)
	}
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (c *testCluster) options(name, address string, join ...string) Options {
	own := c.certificate(name)
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
	}
	return Options{Dir: filepath.Join(c.dir, name), SecretFile: filepath.Join(c.dir, "secret.key"), Logger: log, Cluster: &Cluster{
		Address: address, Join: join,
		Server: func() *tls.Config {
			config := c.authority.NodeServerTLS()
			config.Certificates = []tls.Certificate{own}
			return config
		},
		Client: func() *tls.Config {
			config := c.authority.NodeTLS()
			config.Certificates = []tls.Certificate{own}
			return config
		},
		Admit: func(state tls.ConnectionState) error {
			id, err := c.authority.Identify(&state)
			if err != nil {
				return err
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if id.Role != pki.RoleNode || c.refused[id.Name] {
				return fmt.Errorf("%s %s is not admitted", id.Role, id.Name)
			}
			return nil
		},
	}}
}

func (c *testCluster) start(name, address string, join ...string) *Store {
	c.t.Helper()
	s, err := Open(c.t.Context(), c.options(name, address, join...))
	if err != nil {
		c.t.Fatalf("start %s: %v", name, err)
	}
	c.nodes[name] = s
	return s
}

func (c *testCluster) stop(name string) {
	c.t.Helper()
	if err := c.nodes[name].Close(); err != nil {
		c.t.Errorf("stop %s: %v", name, err)
	}
	delete(c.nodes, name)
}

// settle waits until the nodes have these many voters in all.
func (c *testCluster) settle(s *Store, voters int) []Member {
	c.t.Helper()
	// A node votes once it has caught up with all that is written meanwhile, which takes a busy host its time.
	deadline := time.Now().Add(promoteTimeout + 30*time.Second)
	for {
		all, current, err := s.Members(c.t.Context())
		n := 0
		for _, m := range all {
			if m.Role == RoleVoter {
				n++
			}
		}
		if err == nil && current && n == voters {
			return all
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("members %v, current %v, %v: want %d voters", all, current, err, voters)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// leaderless waits until a node has been alone for a while.
func (c *testCluster) leaderless(s *Store) {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		leader, since, _ := s.node.leader()
		if leader == "" && time.Since(since) > time.Second {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s still leads", leader)
		}
	}
}

// writer stores events one after the other until it is told to stop, and knows which were acknowledged.
type writer struct {
	stop  context.CancelFunc
	done  chan struct{}
	acked []string
	// gap is the longest time between two acknowledgements.
	gap time.Duration
	err error
}

func (c *testCluster) write(name string, to func() *Store) *writer {
	ctx, cancel := context.WithCancel(c.t.Context())
	w := &writer{stop: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		last := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			key := fmt.Sprintf("%s-%d", name, i)
			err := ErrNoMajority
			// A machine that is too busy may be without a leader for longer than a call waits: then the client tries again.
			for errors.Is(err, ErrNoMajority) && ctx.Err() == nil {
				err = to().Update(ctx, func(tx *Tx) error { return tx.AppendEvent(&bloomeryv1.Event{Type: "x", Message: key}, key) })
			}
			switch {
			case err == nil:
				w.acked = append(w.acked, key)
				w.gap = max(w.gap, time.Since(last))
				last = time.Now()
			case ctx.Err() == nil:
				w.err = errors.Join(w.err, err)
			}
		}
	}()
	return w
}

func (w *writer) end() { w.stop(); <-w.done }

// check finds every acknowledged write exactly once.
func (c *testCluster) check(s *Store, w *writer) {
	c.t.Helper()
	seen := map[string]int{}
	err := s.View(c.t.Context(), func(r *Reader) error {
		clear(seen)
		events, err := r.Events(EventFilter{Limit: 1_000_000})
		for _, e := range events {
			seen[e.GetMessage()]++
		}
		return err
	})
	if err != nil {
		c.t.Fatal(err)
	}
	for _, key := range w.acked {
		if seen[key] != 1 {
			c.t.Errorf("%s was acknowledged and is there %d times", key, seen[key])
		}
	}
	if len(w.acked) == 0 {
		c.t.Error("nothing was written")
	}
	if w.err != nil {
		c.t.Errorf("a write failed: %v", w.err)
	}
}

// TestGrowsLive goes from one node to three and through the loss of the leader while somebody writes.
func TestGrowsLive(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	a, b, d := freeAddress(t), freeAddress(t), freeAddress(t)
	first := c.start("c1", a)
	w := c.write("w", func() *Store { return first })
	second := c.start("c2", b, a)
	third := c.start("c3", d, a)
	c.settle(third, 3)
	t.Logf("three voters after %d writes, longest gap %v", len(w.acked), w.gap)
	w.end()
	c.check(third, w)

	// The leader goes, in an orderly way.
	if !first.Leading() {
		t.Fatalf("%s leads, want %s", first.Leader(), a)
	}
	w = c.write("x", func() *Store { return second })
	time.Sleep(200 * time.Millisecond)
	c.stop("c1")
	time.Sleep(500 * time.Millisecond)
	w.end()
	t.Logf("an orderly stop of the leader: longest gap %v over %d writes", w.gap, len(w.acked))
	c.check(third, w)

	// With the majority lost everything says so in time, and goes on when it is back.
	c.stop("c2")
	c.leaderless(third)
	if _, current, err := third.Members(t.Context()); err != nil || current {
		t.Errorf("members without a majority: current %v, %v", current, err)
	}
	begin := time.Now()
	err := third.View(t.Context(), func(r *Reader) error { _, err := r.Machine("m"); return err })
	if !errors.Is(err, ErrNoMajority) || time.Since(begin) > 2*retryFor {
		t.Errorf("a read without a majority: %v after %v", err, time.Since(begin))
	}
	begin = time.Now()
	err = third.Update(t.Context(), func(tx *Tx) error { return tx.AppendEvent(&bloomeryv1.Event{Type: "x", Message: "lost"}, "lost") })
	if !errors.Is(err, ErrNoMajority) || time.Since(begin) > 2*retryFor {
		t.Errorf("a write without a majority: %v after %v", err, time.Since(begin))
	}
	if errors.Is(err, ErrUnsure) {
		t.Errorf("a write that never began is unsure: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin = time.Now()
	err = third.View(short, func(r *Reader) error { _, err := r.Machine("m"); return err })
	if !errors.Is(err, ErrNoMajority) || time.Since(begin) > 2*time.Second {
		t.Errorf("a read with a deadline: %v after %v", err, time.Since(begin))
	}
	c.start("c1", a)
	w = c.write("y", func() *Store { return third })
	time.Sleep(300 * time.Millisecond)
	w.end()
	c.check(third, w)
}

// TestLoneNodeGetsAnAddress lets the database of a rack of one, as earlier versions made it, grow.
func TestLoneNodeGetsAnAddress(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	lone := c.options("c1", "")
	lone.Cluster = nil
	s, err := Open(t.Context(), lone)
	if err != nil {
		t.Fatal(err)
	}
	update(t, s, func(tx *Tx) error { return tx.AppendEvent(&bloomeryv1.Event{Type: "x", Message: "old"}, "old") })
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	a, moved, b := freeAddress(t), freeAddress(t), freeAddress(t)
	c.start("c1", a)
	c.stop("c1")
	// While nobody knows it, it may move again.
	first := c.start("c1", moved)
	if n := countEvents(t, first); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
	second := c.start("c2", b, moved)
	c.settle(second, 1)
	update(t, second, func(tx *Tx) error { return tx.AppendEvent(&bloomeryv1.Event{Type: "x", Message: "new"}, "new") })
	c.stop("c2")
	c.stop("c1")
	_, err = Open(t.Context(), c.options("c1", a))
	if err == nil || !strings.Contains(err.Error(), "keeps its address") {
		t.Errorf("a node that others know got another address: %v", err)
	}
	_, err = Open(t.Context(), lone)
	if err == nil || !strings.Contains(err.Error(), "set cluster.address") {
		t.Errorf("a node that others know lost its address: %v", err)
	}
	if n := countEvents(t, c.start("c1", moved)); n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

// TestStrangersAreRefused dials a node without a certificate, and with that of somebody who is not admitted.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t)
	address := freeAddress(t)
	s := c.start("c1", address)
	refused := func(what string, certificates ...tls.Certificate) {
		t.Helper()
		config := c.authority.NodeTLS()
		config.Certificates = certificates
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: config}
		conn, err := d.DialContext(t.Context(), "tcp", address)
		if err != nil {
			return
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		_, _ = conn.Write([]byte{1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
		if n, err := conn.Read(make([]byte, 1)); err == nil || n > 0 {
			t.Errorf("%s was answered", what)
		}
	}
	refused("nobody")
	c.mu.Lock()
	c.refused["thief"] = true
	c.mu.Unlock()
	refused("one who is not admitted", c.certificate("thief"))
	if err := s.Probe(t.Context(), address); err != nil {
		t.Errorf("the node itself: %v", err)
	}
}
