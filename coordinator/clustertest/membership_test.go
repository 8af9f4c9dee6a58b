package clustertest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator"
)

func (r *Rack) machine(n *Node, name string) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	_, err := n.Client().Machines.CreateMachine(ctx, connect.NewRequest(&bloomeryv1.CreateMachineRequest{Machine: &bloomeryv1.Machine{
		Name: name, Macs: []string{"52:54:00:00:01:" + name[len(name)-2:]}, Bmc: &bloomeryv1.BMC{Address: "10.0.0.1", Username: "a"}}}))
	return err
}

// must makes a machine in a rack that works, however slow: an election may come between.
func (r *Rack) must(n *Node, name string) {
	r.t.Helper()
	r.until("make machine "+name, func(context.Context) error {
		err := r.machine(n, name)
		if connect.CodeOf(err) == connect.CodeAlreadyExists {
			return nil // by a try before
		}
		return err
	})
}

func (r *Rack) remove(at *Node, name string, force bool) error {
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	_, err := at.Client().Rack.RemoveNode(ctx, connect.NewRequest(&bloomeryv1.RemoveNodeRequest{Name: name, Force: force}))
	return err
}

// ended waits until a coordinator's process has ended by itself, and returns what it said.
func (r *Rack) ended(n *Node) string {
	r.t.Helper()
	p := n.life.(*process)
	select {
	case err := <-p.done:
		if err == nil {
			r.t.Errorf("%s ended without an error", n.Name)
		}
	case <-time.After(patience):
		r.t.Fatalf("%s goes on: %s", n.Name, n.LogTail())
	}
	n.life = nil
	return n.LogTail()
}

// TestReplaceDeadNode removes a coordinator that is dead, one that runs and one that leads, and lets others join in their place.
func TestReplaceDeadNode(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	r := Start(t, Options{Nodes: 3, Processes: true})
	c1, c2, c3 := r.Node("c1"), r.Node("c2"), r.Node("c3")
	r.must(c3, "before-01")
	c3.Kill()
	// A living one cannot be spared now.
	if err := r.remove(c1, "c2", false); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("c2 was removed though no majority is left: %v", err)
	}
	ok(t, r.remove(c1, "c3", false))
	r.Join("c3")
	r.WaitVoters(3)

	// The dead one comes back with its old data and certificate: it notices, and is let nowhere.
	ok(t, c3.tryStart())
	if said := r.ended(c3); !strings.Contains(said, "was removed from the rack") {
		t.Errorf("the removed coordinator said: %s", said)
	}
	if err := c3.tryStart(); err == nil || !strings.Contains(err.Error(), "was removed from the rack") {
		t.Errorf("the removed coordinator starts again: %v", err)
	}

	// The leader is removed while it runs.
	leader := r.Leader()
	other := c1
	if leader == c1 {
		other = c2
	}
	ok(t, r.remove(other, leader.Name, false))
	if said := r.ended(leader); !strings.Contains(said, "was removed from the rack") {
		t.Errorf("the removed leader said: %s", said)
	}
	r.must(other, "after-02")
	if err := r.remove(other, leader.Name, false); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("removed twice: %v", err)
	}
	r.Join("c4")
	r.WaitVoters(3)
	for _, name := range []string{"before-01", "after-02"} {
		if _, err := r.Node("c4").Client().Machines.GetMachine(t.Context(), connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: name})); err != nil {
			t.Errorf("machine %s: %v", name, err)
		}
	}
}

// tryStart starts a coordinator that may refuse to.
func (n *Node) tryStart() (err error) {
	n.life, err = startProcess(n)
	if err != nil {
		n.life = nil
	}
	return err
}

// TestMajorityLost asks a coordinator that is alone, brings the others back, and in the end recovers from one alone.
func TestMajorityLost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	r := Start(t, Options{Nodes: 3, Processes: true})
	c1, c2, c3 := r.Node("c1"), r.Node("c2"), r.Node("c3")
	r.must(c2, "first-01")
	c2.Kill()
	c3.Kill()
	r.until("notice", func(ctx context.Context) error {
		s, err := c1.Status(ctx)
		if err == nil && s.GetLeader() != "" {
			err = os.ErrExist
		}
		return err
	})
	begin := time.Now()
	_, err := c1.Client().Machines.GetMachine(t.Context(), connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: "first-01"}))
	if connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "no majority") || time.Since(begin) > 15*time.Second {
		t.Errorf("a read: %v after %v", err, time.Since(begin))
	}
	begin = time.Now()
	if err := r.machine(c1, "lost-02"); connect.CodeOf(err) != connect.CodeUnavailable || time.Since(begin) > 15*time.Second {
		t.Errorf("a write: %v after %v", err, time.Since(begin))
	}
	s, err := c1.Status(t.Context())
	ok(t, err)
	if s.GetQuorum() || len(s.GetNodes()) != 3 || s.GetNodes()[1].GetReachable() || s.GetNodes()[1].GetRole() != bloomeryv1.NodeRole_NODE_ROLE_VOTER || len(s.GetWarnings()) < 3 {
		t.Errorf("status without a majority: %v", s)
	}
	// A coordinator that starts without a majority answers too.
	c1.Kill()
	c1.Start()
	if s, err := c1.Status(t.Context()); err != nil || s.GetQuorum() {
		t.Errorf("status of a coordinator that has started alone: %v %v", s, err)
	}
	c2.Start()
	r.must(c1, "back-03") // without a restart

	// Now c1 and c2 are lost for good.
	if _, err := coordinator.ReadRecovery(c1.Config); err == nil || !strings.Contains(err.Error(), "in use by process") {
		t.Errorf("a recovery of a running coordinator: %v", err)
	}
	c3.Start()
	r.WaitVoters(3)
	r.must(c3, "last-04")
	r.until("have it on every disk", func(ctx context.Context) error {
		s, err := c3.Status(ctx)
		if err == nil {
			for _, n := range s.GetNodes() {
				if n.GetLogLag() > 0 {
					err = os.ErrDeadlineExceeded
				}
			}
		}
		return err
	})
	c1.Kill()
	c2.Kill()
	c3.Kill()
	state, err := coordinator.ReadRecovery(c3.Config)
	ok(t, err)
	if len(state.Members) != 3 || state.Index == 0 || state.Term == 0 {
		t.Errorf("state %+v", state)
	}
	ok(t, coordinator.Recover(c3.Config))
	c3.Start()
	for _, name := range []string{"first-01", "back-03", "last-04"} {
		if _, err := c3.Client().Machines.GetMachine(t.Context(), connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: name})); err != nil {
			t.Errorf("machine %s: %v", name, err)
		}
	}
	r.must(c3, "alone-05")
	// An old node that is started all the same does no harm: it is refused, and says why.
	ok(t, c1.tryStart())
	if said := r.ended(c1); !strings.Contains(said, "was removed from the rack") {
		t.Errorf("the old coordinator said: %s", said)
	}
	r.Join("c1")
	r.Join("c2")
	r.WaitVoters(3)
	r.must(r.Node("c2"), "grown-06")
}

// TestJoinRefused tries what must not work.
func TestJoinRefused(t *testing.T) {
	r := Start(t, Options{Nodes: 1})
	c1 := r.Node("c1")
	create := func(name string) string {
		t.Helper()
		answer, err := c1.Client().Rack.CreateJoinToken(t.Context(), connect.NewRequest(&bloomeryv1.CreateJoinTokenRequest{Node: name}))
		ok(t, err)
		return answer.Msg.GetToken()
	}
	refused := func(what, want string, config coordinator.Config, token string) {
		t.Helper()
		err := coordinator.Join(t.Context(), config, token, nil)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
		if _, err := os.Stat(filepath.Join(config.Data, "secret.key")); err == nil {
			t.Errorf("%s: the rack's secret was given away", what)
		}
	}
	token := create("c2")
	c2, c3 := r.newNode("c2"), r.newNode("c3")
	refused("garbage", "not whole", c2.Config, "blj_x")
	refused("another's token", "is for coordinator c2", c3.Config, token)
	if _, err := c1.Client().Rack.CreateJoinToken(t.Context(), connect.NewRequest(&bloomeryv1.CreateJoinTokenRequest{Node: "c1"})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a token for a present coordinator: %v", err)
	}
	taken := c2.Config
	taken.Cluster = c1.Config.Cluster
	refused("a present coordinator's address", "has the address", taken, token)
	second := create("c2")
	refused("a token that was replaced", "wrong, was used or has expired", c2.Config, token)
	ok(t, coordinator.Join(t.Context(), c2.Config, second, nil))
	refusedAgain := r.newNode("c2")
	refused("a used token", "wrong, was used or has expired", refusedAgain.Config, second)
	refusals := 0
	r.until("find the refusals", func(ctx context.Context) error {
		answer, err := c1.Client().Events.ListEvents(ctx, connect.NewRequest(&bloomeryv1.ListEventsRequest{}))
		refusals = 0
		for _, e := range answer.Msg.GetEvents() {
			if e.GetType() == "security.join_refused" {
				refusals++
			}
		}
		return err
	})
	if refusals != 2 {
		t.Errorf("%d refusals are on record, want 2", refusals)
	}
}
