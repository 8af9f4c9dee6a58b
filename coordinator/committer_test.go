package coordinator

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

func testCall(machine string) *reportCall {
	return &reportCall{who: testCaller(machine), reports: []*bloomeryv1.Report{{Sequence: 1}}}
}

func TestCommitterGathersWhatArrivesMeanwhile(t *testing.T) {
	q := newCommitter()
	var groups, stored atomic.Int64
	var busy atomic.Bool
	keep := func(_ context.Context, group []*reportCall) {
		if !busy.CompareAndSwap(false, true) {
			t.Error("two groups are stored at the same time")
		}
		groups.Add(1)
		time.Sleep(2 * time.Millisecond)
		for _, c := range group {
			c.acknowledged = 1
			stored.Add(1)
		}
		busy.Store(false)
	}
	const calls = 300
	var wg sync.WaitGroup
	for i := range calls {
		wg.Go(func() {
			c := testCall(fmt.Sprint(i))
			if err := q.submit(t.Context(), c, keep); err != nil || c.acknowledged != 1 {
				t.Errorf("call %d: %d %v", i, c.acknowledged, err)
			}
		})
	}
	wg.Wait()
	if stored.Load() != calls || groups.Load() > calls/3 {
		t.Errorf("%d calls were stored in %d groups", stored.Load(), groups.Load())
	}
	if q.busy || len(q.queue) != 0 || len(q.machines) != 0 {
		t.Errorf("something is left: %+v", q)
	}
}

func TestCommitterIsBounded(t *testing.T) {
	q := newCommitter()
	hold, entered := make(chan struct{}), make(chan struct{}, 1)
	keep := func(context.Context, []*reportCall) { entered <- struct{}{}; <-hold }
	var wg sync.WaitGroup
	wg.Go(func() { _ = q.submit(t.Context(), testCall("first"), keep) })
	<-entered
	quick := func(context.Context, []*reportCall) {}
	full := make(chan struct{})
	for range queuedCallsOfOne {
		wg.Go(func() { _ = q.submit(t.Context(), testCall("greedy"), quick) })
	}
	wg.Go(func() {
		defer close(full)
		for {
			q.mu.Lock()
			n := q.machines["greedy"]
			q.mu.Unlock()
			if n == queuedCallsOfOne {
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
	<-full
	if err := q.submit(t.Context(), testCall("greedy"), quick); connect.CodeOf(err) != connect.CodeResourceExhausted {
		t.Errorf("one machine's call beyond its share: %v", err)
	}
	// One whose caller leaves is forgotten, also when the lead comes to it.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.submit(ctx, testCall("gone"), quick); !errors.Is(err, context.Canceled) {
		t.Errorf("a call whose caller has gone: %v", err)
	}
	close(hold)
	wg.Wait()
	if err := q.submit(t.Context(), testCall("after"), quick); err != nil {
		t.Errorf("after the queue was full: %v", err)
	}
}

func TestCommitterOutlivesAPanic(t *testing.T) {
	q := newCommitter()
	func() {
		defer func() { _ = recover() }()
		_ = q.submit(t.Context(), testCall("a"), func(context.Context, []*reportCall) { panic("boom") })
	}()
	if err := q.submit(t.Context(), testCall("b"), func(context.Context, []*reportCall) {}); err != nil {
		t.Error(err)
	}
}

func testCaller(machine string) caller {
	return caller{Identity: pki.Identity{Role: pki.RoleAgent, Name: machine, Certificate: []byte("certificate of " + machine)}}
}

// working records a machine's agent that runs the inspection of a job; recorded says that the machine itself is on record.
func (r *rack) working(name string, recorded bool) {
	r.t.Helper()
	who, bootID := testCaller(name), strings.Repeat("a", 32)
	hash := sha256.Sum256(who.Certificate)
	must(r.t, r.db.Update(r.life, func(tx *store.Tx) error {
		j := &store.Job{BootRound: 1, Job: &bloomeryv1.Job{
			Id: "job-" + name, Machine: name, Kind: bloomeryv1.JobKind_JOB_KIND_INSPECT, Status: bloomeryv1.JobStatus_JOB_STATUS_RUNNING, CreatedAt: timestamppb.New(tx.Now()),
			Steps: []*bloomeryv1.Step{
				{Id: "step-" + name, Status: bloomeryv1.StepStatus_STEP_STATUS_PENDING, Spec: &bloomeryv1.Step_Inspect{Inspect: &bloomeryv1.InspectStep{}}},
				{Id: "last-" + name, Index: 1, Spec: &bloomeryv1.Step_CheckDisks{CheckDisks: &bloomeryv1.CheckDisksStep{}}},
			},
		}}
		if recorded {
			if err := tx.CreateMachine(&bloomeryv1.Machine{Name: name, Macs: []string{"mac-" + name}, Bmc: &bloomeryv1.BMC{Address: "10.65.0.11"}, JobId: j.GetId()}, "x"); err != nil {
				return err
			}
		}
		if err := tx.CreateJob(j); err != nil {
			return err
		}
		return tx.SaveBoot(&store.Boot{Machine: name, JobID: j.GetId(), Round: 1, Created: tx.Now(),
			Enrolled: tx.Now(), Heard: tx.Now(), BootID: bootID, KeyHash: hash[:], CertificateHash: hash[:]})
	}))
	if response, err := r.c.giveStep(r.life, who, bootID); err != nil || response.GetStep().GetId() != "step-"+name {
		r.t.Fatalf("the agent of %s is given %v %v", name, response, err)
	}
}

func progressOf(machine string, sequence int64, percent float64) *bloomeryv1.Report {
	return &bloomeryv1.Report{Sequence: sequence, JobId: "job-" + machine, StepId: "step-" + machine, Body: &bloomeryv1.Report_Progress{Progress: &bloomeryv1.Progress{Percent: percent}}}
}

func finishedOf(machine string, sequence int64) *bloomeryv1.Report {
	return &bloomeryv1.Report{Sequence: sequence, JobId: "job-" + machine, StepId: "step-" + machine, Body: &bloomeryv1.Report_Finished{Finished: &bloomeryv1.StepFinished{Ok: true}}}
}

// TestGroupKeepsItsCallsApart stores calls of all sorts in one transaction.
func TestGroupKeepsItsCallsApart(t *testing.T) {
	r := newRack(t)
	r.stop() // its drivers would fail the jobs, which no machine stands behind
	r.wg.Wait()
	call := func(machine string, reports ...*bloomeryv1.Report) *reportCall {
		return &reportCall{who: testCaller(machine), bootID: strings.Repeat("a", 32), reports: reports}
	}
	for _, name := range []string{"good", "alien", "twice", "stale", "broken"} {
		r.working(name, name != "broken")
	}
	log := func(sequence int64) *bloomeryv1.Report {
		return &bloomeryv1.Report{Sequence: sequence, Body: &bloomeryv1.Report_Log{Log: &bloomeryv1.Log{Message: fmt.Sprintf("line %d", sequence)}}}
	}
	stale := call("stale", progressOf("stale", 1, 50), log(2))
	stale.bootID = strings.Repeat("b", 32)
	broken := call("broken", log(1), finishedOf("broken", 2))
	group := []*reportCall{
		call("good", progressOf("good", 1, 15), log(2), progressOf("good", 3, 25)),
		call("alien", log(1), progressOf("good", 2, 99)),
		call("twice", progressOf("twice", 1, 10), log(2)),
		broken,
		call("twice", log(2), progressOf("twice", 3, 30), finishedOf("twice", 4)),
		stale,
	}
	r.c.storeGroup(t.Context(), group)
	var alien *alienJob
	for i, want := range []int64{3, 0, 2, 0, 4, 2} {
		switch c := group[i]; i {
		case 1:
			if !errors.As(c.err, &alien) || alien.id != "job-good" {
				t.Errorf("a report on a foreign job: %v", c.err)
			}
		case 3:
			if !errors.Is(c.err, store.ErrNotFound) {
				t.Errorf("a call that cannot be stored: %v", c.err)
			}
		default:
			if c.err != nil || c.acknowledged != want {
				t.Errorf("call %d of %s: acknowledged %d (%v), want %d", i, c.who.Name, c.acknowledged, c.err, want)
			}
		}
	}
	events := map[string]int{}
	all, err := r.c.events(t.Context(), store.EventFilter{Limit: 1000})
	must(t, err)
	for _, e := range all {
		if e.GetMachine() == "" {
			continue
		}
		events[e.GetMachine()+" "+e.GetType()]++
	}
	want := map[string]int{"good step.progress": 2, "good agent.log": 1, "twice step.progress": 2, "twice agent.log": 1, "twice step.done": 1, "stale step.stale_report": 1, "stale agent.log": 1}
	for _, name := range []string{"good", "alien", "twice", "stale", "broken"} {
		want[name+" step.started"] = 1
	}
	if !maps.Equal(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
	for machine, percent := range map[string]float64{"good": 25, "twice": 30, "stale": 0, "alien": 0} {
		j, err := r.c.job(t.Context(), "job-"+machine)
		must(t, err)
		if got := j.GetSteps()[0].GetProgress().GetPercent(); got != percent {
			t.Errorf("%s stands at %v %%, want %v", machine, got, percent)
		}
		if index := j.GetStepIndex(); (index == 1) != (machine == "twice") {
			t.Errorf("%s is at step %d", machine, index)
		}
	}
	// Sent again, nothing changes and the same is acknowledged.
	again := []*reportCall{call("good", progressOf("good", 1, 15), log(2), progressOf("good", 3, 25)), stale}
	r.c.storeGroup(t.Context(), again)
	if again[0].acknowledged != 3 || again[1].acknowledged != 2 || again[0].err != nil || again[1].err != nil {
		t.Errorf("sent again: %+v %+v", again[0], again[1])
	}
	later, err := r.c.events(t.Context(), store.EventFilter{Limit: 1000})
	must(t, err)
	if len(later) != len(all) {
		t.Errorf("%d events became %d", len(all), len(later))
	}
}
