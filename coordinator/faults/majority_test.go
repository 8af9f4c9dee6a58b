package faults

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
)

// patience is the deadline of a client that asks a coordinator without a majority. It must be told before.
const patience = 8 * time.Second

// TestMajorityLost takes two of three coordinators away, by death and by standstill, and asks the third one everything.
func TestMajorityLost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a minute")
	}
	if !inWorld(t) {
		return
	}
	w := newWorld(t, size{nodes: 3, machines: 2, reporters: 2})
	var ended outcomes
	for _, m := range w.machines {
		if m.works {
			w.asking.Go(func() { w.operator.work(m, &ended) })
		}
	}
	for _, way := range []struct {
		name       string
		take, give func(*node) error
	}{
		{"killed", func(n *node) error { return n.end(syscall.SIGKILL) }, (*node).start},
		{"stopped", func(n *node) error { return n.signal(syscall.SIGSTOP) }, func(n *node) error { return n.signal(syscall.SIGCONT) }},
	} {
		// Whichever is left, the leader among them or not.
		left := w.nodes[rand.IntN(len(w.nodes))]
		if err := w.without(left, way.take, func() { w.askWithoutMajority(way.name, left) }, way.give); err != nil {
			t.Errorf("%s: %v", way.name, err)
		}
		ctx, cancel := context.WithTimeout(w.ctx, recoverWithin)
		if err := w.ready(ctx, w.nodes...); err != nil {
			t.Errorf("%s: the rack did not recover: %v", way.name, err)
		}
		cancel()
		w.pause(2 * time.Second)
	}
	w.stop.Do(func() { close(w.stopAsking) })
	if !waitFor(&w.asking, endWithin) {
		t.Errorf("jobs did not end within %s", endWithin)
	}
	w.judge(rand.New(rand.NewPCG(1, 1)), true)
	t.Logf("jobs: %s", ended.String())
}

// without takes all coordinators but one away while something is done.
func (w *world) without(left *node, take func(*node) error, do func(), give func(*node) error) error {
	var all []error
	for _, n := range w.nodes {
		if n != left {
			all = append(all, take(n))
		}
	}
	w.pause(3 * time.Second) // the survivor finds out
	do()
	for _, n := range w.nodes {
		if n != left {
			all = append(all, give(n))
		}
	}
	return errors.Join(all...)
}

// askWithoutMajority makes calls of each sort; none may hang, claim to have worked or hide why not.
func (w *world) askWithoutMajority(way string, n *node) {
	c := w.operator.caller()
	defer c.close()
	machines := bloomeryv1connect.NewMachineServiceClient(c.http, n.url())
	jobs := bloomeryv1connect.NewJobServiceClient(c.http, n.url())
	events := bloomeryv1connect.NewEventServiceClient(c.http, n.url())
	calls := map[string]func(ctx context.Context) error{
		"read jobs": func(ctx context.Context) error {
			_, err := jobs.ListJobs(ctx, connect.NewRequest(&bloomeryv1.ListJobsRequest{PageSize: 10}))
			return err
		},
		"read machines": func(ctx context.Context) error {
			_, err := machines.ListMachines(ctx, connect.NewRequest(&bloomeryv1.ListMachinesRequest{PageSize: 10}))
			return err
		},
		"read events": func(ctx context.Context) error {
			_, err := events.ListEvents(ctx, connect.NewRequest(&bloomeryv1.ListEventsRequest{PageSize: 10}))
			return err
		},
		"create a machine": func(ctx context.Context) error {
			_, err := machines.CreateMachine(ctx, connect.NewRequest(&bloomeryv1.CreateMachineRequest{Machine: &bloomeryv1.Machine{
				Name: "nobody-" + way, Macs: []string{fmt.Sprintf("52:54:00:ff:00:%02x", len(way))}}}))
			return err
		},
		"lock a machine": func(ctx context.Context) error {
			_, err := machines.LockMachine(ctx, connect.NewRequest(&bloomeryv1.LockMachineRequest{Name: "m3", Team: "hardware", Reason: "test"}))
			return err
		},
	}
	for what, call := range calls {
		ctx, cancel := context.WithTimeout(w.ctx, patience)
		begin := time.Now()
		err := call(ctx)
		took := time.Since(begin)
		switch {
		case err == nil:
			w.t.Errorf("%s: %s: worked without a majority", way, what)
		case ctx.Err() != nil:
			w.t.Errorf("%s: %s: no answer within %s: %v", way, what, patience, err)
		case connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "majority"):
			w.t.Errorf("%s: %s: want UNAVAILABLE and a word of the majority, got %v", way, what, err)
		}
		w.t.Logf("%s: %s: %.2f s: %v", way, what, took.Seconds(), err)
		cancel()
	}
	w.askStatus(way, n, c)
}

// askStatus asks what answers without a majority: the rack's status, and whether the process is alive.
func (w *world) askStatus(way string, n *node, c *caller) {
	ctx, cancel := context.WithTimeout(w.ctx, patience)
	defer cancel()
	status, err := bloomeryv1connect.NewRackServiceClient(c.http, n.url()).GetRackStatus(ctx, connect.NewRequest(&bloomeryv1.GetRackStatusRequest{}))
	if err != nil {
		w.t.Errorf("%s: rack status: %v", way, err)
	} else if status.Msg.GetQuorum() || status.Msg.GetAnsweredBy() != n.name {
		w.t.Errorf("%s: rack status: quorum %t by %s", way, status.Msg.GetQuorum(), status.Msg.GetAnsweredBy())
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.url()+"/healthz", nil)
	if err != nil {
		w.t.Fatal(err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		w.t.Errorf("%s: /healthz: %v", way, err)
		return
	}
	_ = response.Body.Close() // the status says it
	if response.StatusCode != http.StatusOK {
		w.t.Errorf("%s: /healthz: %s, want 200 from a process that is alive", way, response.Status)
	}
}
