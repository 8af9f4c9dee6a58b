package coordinator

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/internal/pki"
	"bloomery/network/switchport"
)

// lockRack is a rack whose machine runs for a customer, in their network and seen on its port.
func lockRack(t *testing.T) (*rack, operator) {
	t.Helper()
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.setRecord(t, func(m *bloomeryv1.Machine) { m.Status, m.Network = running, "customer-a" })
	r.sw.AddPort("Ethernet1", 200, r.learns)
	return r, op
}

func (r *rack) setRecord(t *testing.T, f func(*bloomeryv1.Machine)) {
	t.Helper()
	_, err := r.c.changeMachine(t.Context(), "m1", func(_ *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
		f(m)
		return &bloomeryv1.Event{Type: "machine.updated"}, nil
	})
	must(t, err)
}

// seen lets the switch learn the machine's address again, as its next packet does.
func (r *rack) seen(macs ...net.HardwareAddr) {
	r.sw.Change("Ethernet1", func(s *switchport.State) {
		s.MACs = nil
		for _, m := range macs {
			s.MACs = append(s.MACs, switchport.LearnedMAC{MAC: m})
		}
	})
}

func (op operator) lock(t *testing.T, quarantine bool) (*bloomeryv1.Machine, error) {
	t.Helper()
	answer, err := op.machines.LockMachine(t.Context(), connect.NewRequest(&bloomeryv1.LockMachineRequest{Name: "m1", Team: "anti-ddos", Reason: "scans", Quarantine: quarantine}))
	if err != nil {
		return nil, err
	}
	return answer.Msg.GetMachine(), nil
}

func (op operator) unlock(t *testing.T, keep bool) error {
	t.Helper()
	_, err := op.machines.UnlockMachine(t.Context(), connect.NewRequest(&bloomeryv1.UnlockMachineRequest{Name: "m1", Team: "anti-ddos", KeepPort: keep}))
	return err
}

func TestQuarantine(t *testing.T) {
	r, op := lockRack(t)
	m, err := op.lock(t, true)
	must(t, err)
	if m.GetLock().GetNetwork() != "customer-a" || m.GetNetwork() != QuarantineNetwork || r.sw.VLAN("Ethernet1") != 999 {
		t.Fatalf("locked: %v, port in VLAN %d", m, r.sw.VLAN("Ethernet1"))
	}
	since := m.GetLock().GetSince().AsTime()
	// Again changes nothing but the reason; in particular not the way back.
	m, err = op.lock(t, true)
	must(t, err)
	if m.GetLock().GetNetwork() != "customer-a" || !m.GetLock().GetSince().AsTime().Equal(since) || r.eventTypes()["port.moved"] != 1 {
		t.Errorf("locked again: %v, events %v", m, r.eventTypes())
	}
	// No job, and no new cable on record, while it is there.
	_, err = op.machines.ReleaseMachine(t.Context(), connect.NewRequest(&bloomeryv1.ReleaseMachineRequest{Name: "m1"}))
	wantRefusal(t, "a job", err, connect.CodeFailedPrecondition, "name", "MACHINE_LOCKED")
	r.seen(r.learns)
	must(t, op.unlock(t, false))
	if m := r.m1(); m.GetLock() != nil || m.GetNetwork() != "customer-a" || r.sw.VLAN("Ethernet1") != 200 {
		t.Errorf("unlocked: %v, port in VLAN %d", m, r.sw.VLAN("Ethernet1"))
	}
	if e := r.eventTypes(); e["port.moved"] != 2 || e["machine.locked"] != 2 || e["machine.unlocked"] != 1 {
		t.Errorf("events: %v", e)
	}
}

// TestQuarantineFails shows that a lock stands whatever the switch says, that the record stays true, and that calling again mends it.
func TestQuarantineFails(t *testing.T) {
	stranger := net.HardwareAddr{2, 0, 0, 0, 0, 9}
	for name, tc := range map[string]struct {
		breakIt, mend func(r *rack)
		says          string
	}{
		"silent machine": {func(r *rack) { r.seen() }, func(r *rack) { r.seen(r.learns) }, "mac-not-seen"},
		"wrong cable":    {func(r *rack) { r.seen(stranger) }, func(r *rack) { r.seen(r.learns) }, "foreign-mac"},
		"moved by hand":  {func(r *rack) { r.sw.AddPort("Ethernet1", 100, r.learns) }, func(r *rack) { r.sw.AddPort("Ethernet1", 200, r.learns) }, "was last in network"},
		"no such port":   {func(r *rack) { r.setRecord(r.t, func(m *bloomeryv1.Machine) { m.SwitchPort.Port = "Ethernet9" }) }, func(r *rack) { r.setRecord(r.t, func(m *bloomeryv1.Machine) { m.SwitchPort.Port = "Ethernet1" }) }, "no such port"},
		"dead switch":    {func(r *rack) { r.sw.FailNext("port", errors.New("connection refused")) }, func(r *rack) {}, "connection refused"},
		"set is lost": {func(r *rack) {
			for range guardTries {
				r.sw.FailNext("set", errors.New("deadline exceeded"))
			}
		}, func(r *rack) {}, "deadline exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			r, op := lockRack(t)
			tc.breakIt(r)
			_, err := op.lock(t, true)
			wantRefusal(t, "quarantine", err, connect.CodeFailedPrecondition, "port", "PORT_NOT_MOVED")
			if err != nil && (!strings.Contains(err.Error(), tc.says) || !strings.Contains(err.Error(), "is locked, but")) {
				t.Errorf("%v does not say %q", err, tc.says)
			}
			m := r.m1()
			if m.GetLock().GetTeam() != "anti-ddos" || m.GetNetwork() != "customer-a" || r.sw.VLAN("Ethernet1") == 999 || r.eventTypes()["port.not_moved"] != 1 {
				t.Fatalf("after the failure: %v, VLAN %d, events %v", m, r.sw.VLAN("Ethernet1"), r.eventTypes())
			}
			tc.mend(r)
			again, err := op.lock(t, true)
			must(t, err)
			if again.GetNetwork() != QuarantineNetwork || again.GetLock().GetNetwork() != "customer-a" || r.sw.VLAN("Ethernet1") != 999 {
				t.Errorf("locked again: %v, VLAN %d", again, r.sw.VLAN("Ethernet1"))
			}
		})
	}
}

// TestQuarantineWhoseAnswerWasLost has the switch move the port and fail to say so, and a coordinator that dies before it has noted the move.
func TestQuarantineWhoseAnswerWasLost(t *testing.T) {
	r, op := lockRack(t)
	r.c.DialSwitch = func(context.Context, Switch) (switchport.Driver, error) {
		return &forgetful{keptSwitch: keptSwitch{r.sw}}, nil
	}
	m, err := op.lock(t, true)
	must(t, err)
	if m.GetNetwork() != QuarantineNetwork || m.GetLock().GetNetwork() != "customer-a" || r.eventTypes()["port.moved"] != 1 {
		t.Errorf("after a lost answer: %v, events %v", m, r.eventTypes())
	}
	// What a coordinator leaves that died between the move and its record.
	r, op = lockRack(t)
	r.setRecord(t, func(m *bloomeryv1.Machine) {
		m.Lock = &bloomeryv1.Lock{Team: "anti-ddos", Reason: "x", Network: "customer-a"}
	})
	r.sw.AddPort("Ethernet1", 999)
	if m, err = op.lock(t, true); err != nil || m.GetNetwork() != QuarantineNetwork || m.GetLock().GetNetwork() != "customer-a" {
		t.Errorf("locked again: %v %v", m, err)
	}
	r.seen(r.learns)
	must(t, op.unlock(t, false))
	if r.sw.VLAN("Ethernet1") != 200 {
		t.Errorf("port is in VLAN %d", r.sw.VLAN("Ethernet1"))
	}
}

// TestQuarantineOutlivesALease ends the coordinator's lease while it is about to move the port: the call does it under the next one.
func TestQuarantineOutlivesALease(t *testing.T) {
	r, op := lockRack(t)
	lapses := 0
	r.c.DialSwitch = func(ctx context.Context, _ Switch) (switchport.Driver, error) {
		if lapses++; lapses == 1 {
			s, err := r.c.sessions.get(ctx)
			if err != nil {
				return nil, err
			}
			s.leave()
			s.end()
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return keptSwitch{r.sw}, nil
	}
	m, err := op.lock(t, true)
	must(t, err)
	if m.GetNetwork() != QuarantineNetwork || lapses != 2 || r.eventTypes()["port.not_moved"] != 0 {
		t.Errorf("machine: %v, the switch was called %d times, events %v", m, lapses, r.eventTypes())
	}
}

// forgetful is a switch whose first answer to a change is lost.
type forgetful struct {
	keptSwitch
	lost bool
}

func (f *forgetful) SetAccessVLAN(ctx context.Context, port string, vlan uint16) error {
	err := f.keptSwitch.SetAccessVLAN(ctx, port, vlan)
	if !f.lost {
		f.lost = true
		return errors.New("deadline exceeded")
	}
	return err
}

// TestQuarantineByTwoCoordinators lets two coordinators of a rack move one port: the second is told to wait.
func TestQuarantineByTwoCoordinators(t *testing.T) {
	r, op := lockRack(t)
	other := r.another(t)
	moving, goOn := make(chan struct{}), make(chan struct{})
	other.DialSwitch = func(context.Context, Switch) (switchport.Driver, error) {
		close(moving)
		<-goOn
		return keptSwitch{r.sw}, nil
	}
	admin := context.WithValue(t.Context(), callerKey{}, caller{Identity: pki.Identity{Role: pki.RoleOperator, Name: "bert"}, role: bloomeryv1.Role_ROLE_ADMIN})
	ended := make(chan error, 1)
	go func() {
		_, err := other.LockMachine(admin, connect.NewRequest(&bloomeryv1.LockMachineRequest{Name: "m1", Team: "anti-ddos", Reason: "x", Quarantine: true}))
		ended <- err
	}()
	<-moving
	_, err := op.lock(t, true)
	wantRefusal(t, "beside another", err, connect.CodeFailedPrecondition, "port", "PORT_NOT_MOVED")
	if err != nil && !strings.Contains(err.Error(), "another call is moving the port") {
		t.Error(err)
	}
	close(goOn)
	must(t, <-ended)
	if m := r.m1(); m.GetNetwork() != QuarantineNetwork || r.sw.VLAN("Ethernet1") != 999 {
		t.Errorf("machine: %v", m)
	}
}

func TestUnlockFromQuarantine(t *testing.T) {
	r, op := lockRack(t)
	_, err := op.lock(t, true)
	must(t, err)
	// The switch has forgotten the machine, which is off: the guard does not move what it cannot see.
	err = op.unlock(t, false)
	wantRefusal(t, "silent", err, connect.CodeFailedPrecondition, "port", "PORT_NOT_MOVED")
	if m := r.m1(); m.GetLock() == nil || m.GetNetwork() != QuarantineNetwork || r.sw.VLAN("Ethernet1") != 999 {
		t.Fatalf("after the failure: %v", m)
	}
	_, err = op.machines.UpdateMachine(t.Context(), connect.NewRequest(&bloomeryv1.UpdateMachineRequest{
		Machine: &bloomeryv1.Machine{Name: "m1", SwitchPort: &bloomeryv1.SwitchPort{Switch: "tor1", Port: "Ethernet2"}}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"switch_port"}},
	}))
	wantRefusal(t, "a new cable", err, connect.CodeFailedPrecondition, "machine.switch_port", "MACHINE_LOCKED")
	must(t, op.unlock(t, true))
	if m := r.m1(); m.GetLock() != nil || m.GetNetwork() != QuarantineNetwork || r.sw.VLAN("Ethernet1") != 999 {
		t.Errorf("unlocked without its port: %v", m)
	}
	// A lock whose quarantine never came about leaves the port alone on the way back, even if the machine is silent.
	r, op = lockRack(t)
	r.seen()
	if _, err := op.lock(t, true); err == nil {
		t.Fatal("a silent machine was moved")
	}
	must(t, op.unlock(t, false))
	if m := r.m1(); m.GetLock() != nil || m.GetNetwork() != "customer-a" || r.sw.VLAN("Ethernet1") != 200 {
		t.Errorf("unlocked: %v, VLAN %d", m, r.sw.VLAN("Ethernet1"))
	}
}

func TestQuarantineRefusals(t *testing.T) {
	r, op := lockRack(t)
	r.setRecord(t, func(m *bloomeryv1.Machine) { m.JobId = "j1" })
	_, err := op.lock(t, true)
	wantRefusal(t, "busy", err, connect.CodeFailedPrecondition, "quarantine", "MACHINE_BUSY")
	if r.m1().GetLock() != nil {
		t.Error("a call that was refused locked the machine")
	}
	if _, err := op.lock(t, false); err != nil {
		t.Errorf("a lock without quarantine while a job runs: %v", err)
	}
	r.setRecord(t, func(m *bloomeryv1.Machine) { m.JobId, m.Lock, m.SwitchPort = "", nil, nil })
	_, err = op.lock(t, true)
	wantRefusal(t, "no port", err, connect.CodeFailedPrecondition, "quarantine", "NO_SWITCH_PORT")
}

// TestQuarantineBesideAnother has two teams' calls at once: one moves, and the record is what the switch shows.
func TestQuarantineBesideAnother(t *testing.T) {
	r, op := lockRack(t)
	ended := make(chan error, 8)
	for i := range cap(ended) {
		go func() {
			if i%2 == 0 {
				_, err := op.lock(t, true)
				ended <- err
				return
			}
			ended <- op.unlock(t, false)
		}()
	}
	for range cap(ended) {
		if err := <-ended; err != nil && connect.CodeOf(err) != connect.CodeFailedPrecondition && connect.CodeOf(err) != connect.CodeAborted {
			t.Errorf("call: %v", err)
		}
	}
	vlans := map[string]uint16{"customer-a": 200, QuarantineNetwork: 999}
	if m := r.m1(); vlans[m.GetNetwork()] != r.sw.VLAN("Ethernet1") {
		t.Errorf("the record says %s, the port is in VLAN %d", m.GetNetwork(), r.sw.VLAN("Ethernet1"))
	}
}

func TestLocksBelongToTeams(t *testing.T) {
	r, op := lockRack(t)
	as := func(teams ...string) caller {
		return caller{Identity: pki.Identity{Role: pki.RoleOperator, Name: "bert"}, role: bloomeryv1.Role_ROLE_HARDWARE, teams: teams}
	}
	ctx := func(who caller) context.Context { return context.WithValue(t.Context(), callerKey{}, who) }
	lock := func(who caller, team string) error {
		_, err := r.c.LockMachine(ctx(who), connect.NewRequest(&bloomeryv1.LockMachineRequest{Name: "m1", Team: team, Reason: "x"}))
		return rpcError(err)
	}
	unlock := func(who caller, team string) error {
		_, err := r.c.UnlockMachine(ctx(who), connect.NewRequest(&bloomeryv1.UnlockMachineRequest{Name: "m1", Team: team}))
		return rpcError(err)
	}
	power := func(who caller, op bloomeryv1.PowerOperation) error {
		_, err := r.c.PowerMachine(ctx(who), connect.NewRequest(&bloomeryv1.PowerMachineRequest{Name: "m1", Operation: op}))
		return rpcError(err)
	}
	if err := lock(as("hardware"), "anti-ddos"); connect.CodeOf(err) != connect.CodePermissionDenied || r.eventTypes()["security.call_refused"] != 1 {
		t.Errorf("a lock in another team's name: %v", err)
	}
	must(t, lock(as("hardware", "anti-ddos"), "anti-ddos"))
	wantRefusal(t, "another team's lock over it", lock(as("hardware"), "hardware"), connect.CodeFailedPrecondition, "name", "MACHINE_LOCKED")
	if err := unlock(as("hardware"), "anti-ddos"); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("another team unlocks: %v", err)
	}
	wantRefusal(t, "its own name on another's lock", unlock(as("hardware"), "hardware"), connect.CodeFailedPrecondition, "name", "MACHINE_LOCKED")
	wantRefusal(t, "power by another team", power(as("hardware"), bloomeryv1.PowerOperation_POWER_OPERATION_ON), connect.CodeFailedPrecondition, "name", "MACHINE_LOCKED")
	must(t, power(as("hardware"), bloomeryv1.PowerOperation_POWER_OPERATION_STATUS))
	must(t, power(as("anti-ddos"), bloomeryv1.PowerOperation_POWER_OPERATION_ON))
	must(t, unlock(as("anti-ddos"), "anti-ddos"))
	must(t, lock(as("anti-ddos"), "anti-ddos"))
	must(t, op.unlock(t, false)) // the first operator is an admin
	wantRefusal(t, "not locked", op.unlock(t, false), connect.CodeFailedPrecondition, "name", "NOT_LOCKED")
}
