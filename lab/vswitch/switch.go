// Package vswitch is the virtual rack's top-of-rack switch: a learning IEEE 802.1Q bridge in user space whose ports are
// QEMU's stream sockets and taps, with LLDP, packet capture, faults on demand and a gNMI server that speaks OpenConfig.
package vswitch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Config is what a switch is made from.
type Config struct {
	Name       string           // system name, in LLDP too
	Log        *slog.Logger     // nil: silent
	Now        func() time.Time // nil: time.Now; ageing goes by it
	Ageing     time.Duration    // of learned addresses; 0: 300 s
	QueueBytes int              // of each port's outgoing queue; 0: 8 MiB
	LLDPEvery  time.Duration    // 0: 5 s
	// OnSet is told, under the switch's lock, of each port that a gNMI Set names: who asked, and the VLANs before and after. nil: nobody is.
	OnSet func(from net.Addr, port string, before, after VLAN)
}

// Switch is a running switch; add ports, call Run, and Close at the end. All methods may be called at the same time.
type Switch struct {
	name  string
	log   *slog.Logger
	now   func() time.Time
	queue int
	lldp  time.Duration
	onSet func(net.Addr, string, VLAN, VLAN)

	stop    chan struct{}
	running sync.WaitGroup // readers, writers, listeners, gNMI servers

	mu      sync.Mutex
	closed  bool
	ports   []*port
	byName  map[string]*port
	fdb     fdb
	closers []io.Closer
}

// New returns a switch without ports.
func New(c Config) *Switch {
	s := &Switch{
		name: c.Name, log: c.Log, now: c.Now, queue: c.QueueBytes, lldp: c.LLDPEvery, onSet: c.OnSet,
		stop: make(chan struct{}), byName: map[string]*port{},
		fdb: fdb{ageing: c.Ageing, entries: map[fdbKey]*fdbEntry{}},
	}
	if s.name == "" {
		s.name = "vswitch"
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.fdb.ageing <= 0 {
		s.fdb.ageing = defaultAgeing
	}
	if s.queue <= 0 {
		s.queue = 8 << 20
	}
	if s.lldp <= 0 {
		s.lldp = 5 * time.Second
	}
	s.log = s.log.With("switch", s.name)
	return s
}

var errClosed = errors.New("switch is closed")

// Run sends LLDP and ages addresses until the context ends or Close is called; it then closes the switch.
func (s *Switch) Run(ctx context.Context) error {
	beacon := time.NewTicker(s.lldp)
	defer beacon.Stop()
	ageing := time.NewTicker(time.Second)
	defer ageing.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.Close()
		case <-s.stop:
			return nil
		case <-beacon.C:
			s.announceAll()
		case <-ageing.C:
			now := s.now().UnixNano()
			s.mu.Lock()
			s.fdb.sweep(now)
			s.mu.Unlock()
		}
	}
}

// Close ends every port and server and waits for them: afterwards no goroutine, tap or socket file is left.
func (s *Switch) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.running.Wait()
		return nil
	}
	s.closed = true
	close(s.stop)
	closers := s.closers
	s.closers = nil
	s.mu.Unlock()
	var errs []error
	for _, c := range closers {
		if err := c.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close switch %s: %w", s.name, err))
		}
	}
	s.running.Wait()
	s.mu.Lock()
	for _, p := range s.ports {
		p.capture.Store(nil)
	}
	s.mu.Unlock()
	return errors.Join(errs...)
}

// plug makes a port with its link and starts its goroutines; serve must end when closer is closed.
func (s *Switch) plug(name string, v VLAN, l *link, closer io.Closer, serve func()) error {
	v.Allowed = append([]uint16(nil), v.Allowed...)
	if name == "" || len(name) > 64 {
		return fmt.Errorf("port name %q: want 1 to 64 characters", name)
	}
	if err := v.validate(); err != nil {
		return fmt.Errorf("port %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("add port %s: %w", name, errClosed)
	}
	if _, ok := s.byName[name]; ok {
		return fmt.Errorf("add port %s: the switch %s has a port of that name", name, s.name)
	}
	p := &port{name: name, index: uint32(len(s.ports) + 1), vlan: v, initial: v, link: l, changed: s.now()}
	l.port = p
	s.ports = append(s.ports, p)
	s.byName[name] = p
	s.closers = append(s.closers, closer)
	s.running.Go(serve)
	return nil
}

// carrier changes whether a link has a far end, and lets go of what the switch knew through it.
func (s *Switch) carrier(l *link, out *outbox) {
	s.mu.Lock()
	p := l.port
	l.out = out
	s.linkChanged(p)
	s.mu.Unlock()
	s.log.Info("link", "port", p.name, "up", out != nil)
}

// linkChanged is called with the lock held after anything that may have changed a port's oper-status.
func (s *Switch) linkChanged(p *port) {
	p.changed = s.now()
	s.fdb.flush(p)
	if p.up() {
		s.announce(p)
	}
}

func (s *Switch) find(name string) (*port, error) {
	p, ok := s.byName[name]
	if !ok {
		return nil, fmt.Errorf("switch %s has no port %q", s.name, name)
	}
	return p, nil
}

// SetVLAN changes a port's VLAN configuration; addresses learned on the port and frames waiting for it are dropped.
func (s *Switch) SetVLAN(name string, v VLAN) error {
	if err := v.validate(); err != nil {
		return fmt.Errorf("port %s: %w", name, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.find(name)
	if err != nil {
		return err
	}
	s.setVLAN(p, v)
	return nil
}

// setVLAN is called with the lock held.
func (s *Switch) setVLAN(p *port, v VLAN) {
	if p.vlan.equal(v) {
		return
	}
	v.Allowed = append([]uint16(nil), v.Allowed...)
	s.log.Info("vlan", "port", p.name, "mode", v.Mode, "access", v.Access, "native", v.Native, "allowed", v.Allowed)
	p.vlan = v
	if p.link.out != nil {
		p.link.out.clear()
	}
	s.fdb.flush(p)
	if p.up() {
		s.announce(p)
	}
}
