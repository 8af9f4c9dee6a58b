// Package switchporttest is an in-memory switch for tests of code that drives switchport.Driver.
package switchporttest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"

	"bloomery/network/switchport"
)

// Switch is a switchport.Driver in memory; the zero value is not usable, call New. All methods may be called at the same time.
type Switch struct {
	mu     sync.Mutex
	ports  map[string]*switchport.State
	log    []string
	fail   map[string][]error
	stuck  map[string]bool
	closed bool
}

var _ switchport.Driver = (*Switch)(nil)

// New returns a switch without ports.
func New() *Switch {
	return &Switch{ports: map[string]*switchport.State{}, fail: map[string][]error{}, stuck: map[string]bool{}}
}

// AddPort makes (or replaces) an access port whose link is up, with the addresses learned on it.
func (s *Switch) AddPort(name string, vlan uint16, macs ...net.HardwareAddr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &switchport.State{Port: name, Mode: switchport.ModeAccess, AccessVLAN: vlan, LinkUp: true, SpeedMbps: 25000}
	for _, m := range macs {
		st.MACs = append(st.MACs, switchport.LearnedMAC{MAC: slices.Clone(m), VLAN: vlan})
	}
	s.ports[name] = st
}

// Change edits a port under the lock; it panics when the port does not exist, as that is the test's mistake.
func (s *Switch) Change(name string, edit func(*switchport.State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, ok := s.ports[name]
	if !ok {
		panic("switchporttest: no port " + name)
	}
	edit(st)
}

// FailNext makes the next call of op ("port" or "set") fail with err; calls queue up.
func (s *Switch) FailNext(op string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail[op] = append(s.fail[op], err)
}

// Stick makes a port accept a new VLAN without taking it, as a broken switch does.
func (s *Switch) Stick(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stuck[name] = true
}

// Log returns what was asked so far: "port NAME", "set NAME VLAN", "close".
func (s *Switch) Log() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.log)
}

// VLAN returns a port's access VLAN, 0 when there is no such port.
func (s *Switch) VLAN(name string) uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if st, ok := s.ports[name]; ok {
		return st.AccessVLAN
	}
	return 0
}

// Port implements switchport.Driver.
func (s *Switch) Port(ctx context.Context, name string) (switchport.State, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.begin(ctx, "port", name, "port "+name)
	if err != nil {
		return switchport.State{}, err
	}
	out := *st
	out.MACs = slices.Clone(st.MACs)
	return out, nil
}

// SetAccessVLAN implements switchport.Driver. Like a real switch it forgets the addresses learned in the old VLAN.
func (s *Switch) SetAccessVLAN(ctx context.Context, name string, vlan uint16) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	st, err := s.begin(ctx, "set", name, fmt.Sprintf("set %s %d", name, vlan))
	if err != nil || s.stuck[name] {
		return err
	}
	st.Mode, st.AccessVLAN, st.MACs = switchport.ModeAccess, vlan, nil
	return nil
}

// Close implements switchport.Driver; later calls fail.
func (s *Switch) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, "close")
	s.closed = true
	return nil
}

func (s *Switch) begin(ctx context.Context, op, name, line string) (*switchport.State, error) {
	s.log = append(s.log, line)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.closed {
		return nil, net.ErrClosed
	}
	if queue := s.fail[op]; len(queue) > 0 {
		s.fail[op] = queue[1:]
		return nil, queue[0]
	}
	st, ok := s.ports[name]
	if !ok {
		return nil, fmt.Errorf("port %s: %w", name, switchport.ErrNoPort)
	}
	return st, nil
}
