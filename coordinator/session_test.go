package coordinator

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bloomery/coordinator/store"
	"bloomery/internal/fence"
)

func TestSightings(t *testing.T) {
	a0, a1, b := store.Session{ID: "a"}, store.Session{ID: "a", Beat: 1}, store.Session{ID: "b", Beat: 7}
	s := sightings{lease: 10, since: map[store.Session]time.Duration{}}
	for _, look := range []struct {
		now       time.Duration
		see, dead []store.Session
	}{
		{now: 1000, see: []store.Session{a0, b}},
		{now: 1009, see: []store.Session{a0, b}},
		{now: 1010, see: []store.Session{a1, b}, dead: []store.Session{b}},
		{now: 1019, see: []store.Session{a1}},
		{now: 1020, see: []store.Session{a1, b}, dead: []store.Session{a1}}, // b was away: it is seen anew
		{now: 1029, see: []store.Session{b}},
		{now: 1030, see: []store.Session{b}, dead: []store.Session{b}},
	} {
		if diff := cmp.Diff(look.dead, s.dead(look.see, look.now)); diff != "" {
			t.Errorf("at %d (-want +got):\n%s", look.now, diff)
		}
	}
}

// fellow is another coordinator of the rack on the same store.
type fellow struct {
	*Coordinator
	stop context.CancelFunc
	wg   sync.WaitGroup
}

func (r *rack) fellow() *fellow {
	r.t.Helper()
	c, err := New(r.config, r.c.Deps)
	must(r.t, err)
	ctx, stop := context.WithCancel(context.Background())
	f := &fellow{Coordinator: c, stop: stop}
	f.wg.Go(func() { _ = c.Drive(ctx) })
	r.t.Cleanup(func() { stop(); f.wg.Wait() })
	return f
}

// holding is one time that a duty was held.
type holding struct {
	by    *fellow
	fence store.Fence
	ctx   context.Context
}

func (f *fellow) holdUntilLost(ctx context.Context, duty string, won chan<- holding) {
	f.hold(ctx, duty, func(ctx context.Context, fence store.Fence) error {
		won <- holding{f, fence, ctx}
		<-ctx.Done()
		return nil
	})
}

func TestDutyIsHeldByOne(t *testing.T) {
	r := newRack(t)
	r.config.Timing.Lease = 3 * time.Second // a busy host must not end it
	r.halt()
	r.start()
	archive, other := make(chan holding), make(chan holding)
	next := func(won chan holding, after store.Fence) holding {
		t.Helper()
		select {
		case h := <-won:
			if h.fence.Epoch <= after.Epoch {
				t.Errorf("epoch %d comes after %d", h.fence.Epoch, after.Epoch)
			}
			must(t, r.db.Update(t.Context(), func(tx *store.Tx) error { return tx.Check(h.fence) }))
			return h
		case <-time.After(20 * time.Second):
			t.Fatal("nobody took the duty over")
		}
		panic("unreachable")
	}
	check := func(f store.Fence) error {
		return r.db.Update(t.Context(), func(tx *store.Tx) error { return tx.Check(f) })
	}
	ctx, stopAll := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stopAll()
	fellows := map[*fellow]context.CancelFunc{}
	for range 2 {
		f := r.fellow()
		ctx, stop := context.WithCancel(ctx)
		fellows[f] = stop
		wg.Go(func() { f.holdUntilLost(ctx, "archive", archive) })
	}

	// A lease that is over, as it is after a process was stopped, ends the work at the first question; the holder is another one's equal then.
	first := next(archive, store.Fence{})
	must(t, fence.Check(first.ctx))
	first.by.sessions.mu.Lock()
	first.by.sessions.current.extend(0, 0)
	first.by.sessions.mu.Unlock()
	if err := fence.Check(first.ctx); !errors.Is(err, errLapsed) {
		t.Errorf("a holder whose lease is over may act: %v", err)
	}
	if first.ctx.Err() == nil {
		<-first.ctx.Done()
	}
	second := next(archive, first.fence)
	if second.fence.Owner == first.fence.Owner {
		t.Error("a session lived on after its lease")
	}
	if err := check(first.fence); !errors.Is(err, store.ErrFenced) {
		t.Errorf("the first holder can still write: %v", err)
	}

	// One that stops gives up at once; the other follows.
	fellows[second.by]()
	second.by.stop()
	third := next(archive, second.fence)
	if third.by == second.by {
		t.Fatal("the coordinator that stopped holds the duty")
	}

	// One that was killed left its session behind, and nobody renews it.
	must(t, r.db.Update(t.Context(), func(tx *store.Tx) error {
		if err := tx.OpenSession("dead"); err != nil {
			return err
		}
		_, ok, err := tx.Claim(store.Holding{Duty: "other"}, "dead")
		if !ok {
			t.Error("nobody holds the other duty, and it was refused")
		}
		return err
	}))
	began := time.Now()
	wg.Go(func() { third.by.holdUntilLost(ctx, "other", other) })
	fourth := next(other, store.Fence{Epoch: 1})
	if took := time.Since(began); took < r.config.Timing.Lease {
		t.Errorf("a lease of %s was broken after %s", r.config.Timing.Lease, took)
	}
	if fourth.fence.Duty != "other" {
		t.Errorf("took over %v", fourth.fence)
	}
}

// TestJobsOutliveTheirDriver runs an install while sessions end under it again and again.
func TestJobsOutliveTheirDriver(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	fellows := []*Coordinator{r.c, r.fellow().Coordinator}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			sleep(ctx, 150*time.Millisecond)
			s := fellows[i%2].sessions
			s.mu.Lock()
			if s.current != nil {
				s.current.extend(0, 0)
			}
			s.mu.Unlock()
		}
	})
	r.inspect(op)
	stop()
	wg.Wait()
	if r.ran["inspect"] != 1 {
		t.Errorf("the agent ran the inspection %d times", r.ran["inspect"])
	}
}
