package coordinator

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/fence"
)

// longestWait is how long a driver waits that nothing wakes: the time of day may jump.
const longestWait = 15 * time.Second

// yieldTimeout bounds giving a job up when the coordinator stops.
const yieldTimeout = 2 * time.Second

// countsPerJob is how often the time for which a job was driven is written in its longest life.
const countsPerJob = 100

// Drive drives every running job of the rack that no other coordinator drives, until the context ends.
func (c *Coordinator) Drive(ctx context.Context) error {
	d := &drivers{c: c, driven: map[string]bool{}, seen: map[string]store.RunningJob{}}
	defer d.wg.Wait()
	d.wg.Go(func() { c.keepSessions(ctx) })
	wake, stop := c.hub.subscribe("jobs")
	defer stop()
	for {
		s, err := c.sessions.get(ctx)
		if err != nil {
			return nil
		}
		more, err := d.look(ctx, s)
		s.leave()
		if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrFenced) {
			c.Logger.Error("look for jobs to drive", "error", err)
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(c.config.Timing.Tick):
		}
	}
}

// drivers is the drivers of a coordinator's jobs.
type drivers struct {
	c  *Coordinator
	wg sync.WaitGroup
	mu sync.Mutex
	// driven holds the jobs that have a driver here.
	driven map[string]bool
	// seen is the running jobs when they were looked at last.
	seen map[string]store.RunningJob
}

// look takes jobs that nobody drives, and wakes those who wait for a change that was made at another coordinator: one look at all
// jobs in place of one by each of those who wait. more says that there are more to take.
func (d *drivers) look(ctx context.Context, s *session) (more bool, err error) {
	var running []store.RunningJob
	if err := d.c.Store.View(s.ctx, func(r *store.Reader) (err error) {
		running, err = r.RunningJobs(s.id)
		return err
	}); err != nil {
		return false, err
	}
	d.wake(running)
	var free []string
	d.mu.Lock()
	for _, j := range running {
		if j.Free && !d.driven[j.ID] {
			free = append(free, j.ID)
		}
	}
	d.mu.Unlock()
	more = len(free) > claimAtOnce
	claimed, err := d.c.claimJobs(s, free[:min(len(free), claimAtOnce)])
	for _, f := range claimed {
		d.drive(ctx, s, f)
	}
	return more && err == nil, err
}

func (d *drivers) wake(running []store.RunningJob) {
	topics, now := map[string]bool{}, make(map[string]store.RunningJob, len(running))
	for _, j := range running {
		now[j.ID] = j
		if d.seen[j.ID].Revision != j.Revision {
			topics["job/"+j.ID], topics["machine/"+j.Machine] = true, true
		}
	}
	for id, j := range d.seen {
		if _, ok := now[id]; !ok {
			topics["job/"+id], topics["machine/"+j.Machine] = true, true
		}
	}
	d.seen = now
	d.c.hub.notify(topics)
}

// drive starts a job's driver.
func (d *drivers) drive(ctx context.Context, s *session, f store.Fence) {
	if !s.enter() {
		return // its jobs are free with the session's end
	}
	d.mu.Lock()
	d.driven[f.Job] = true
	d.mu.Unlock()
	d.wg.Go(func() {
		defer s.leave()
		d.c.Logger.Info("job taken", "job", f.Job, "epoch", f.Epoch)
		err := d.c.workUnder(ctx, s, f, d.c.driveJob)
		d.mu.Lock()
		delete(d.driven, f.Job)
		d.mu.Unlock()
		if err != nil && ctx.Err() == nil && !errors.Is(err, store.ErrFenced) {
			d.c.Logger.Error("drive a job", "job", f.Job, "error", err)
		}
	})
}

// claimJobs takes running jobs that nobody drives.
func (c *Coordinator) claimJobs(s *session, free []string) (claimed []store.Fence, err error) {
	if len(free) == 0 {
		return nil, nil
	}
	err = c.Store.Update(s.ctx, func(tx *store.Tx) (err error) {
		claimed, err = tx.ClaimJobs(free, s.id)
		return err
	})
	if err != nil {
		return nil, err
	}
	return claimed, nil
}

// driveJob does what Next says until the job has ended or the context does.
func (c *Coordinator) driveJob(ctx context.Context, f store.Fence) error {
	d := &driver{c: c, fence: f, counted: time.Now()}
	wake, stop := c.hub.subscribe("job/" + f.Job)
	defer stop()
	for {
		until, ended, err := d.turn(ctx)
		if err != nil && !errors.Is(err, store.ErrFenced) {
			sleep(ctx, jitter(c.config.Timing.Tick)) // whoever takes it next would fail as well
		}
		if err != nil || ended {
			return err
		}
		pause := min(time.Until(until), longestWait)
		if pause <= 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(pause):
		}
	}
}

// driver is what one holding of a job remembers: only what it saw of the world, which a successor looks at again.
type driver struct {
	c     *Coordinator
	fence store.Fence
	world World
	watch stopwatch
	// counted is up to when the job's row has the time for which it was driven.
	counted time.Time
}

// turn reads the job, asks Next and does what it says. until is when to look again at the latest.
func (d *driver) turn(ctx context.Context) (until time.Time, ended bool, err error) {
	var m *bloomeryv1.Machine
	var j *store.Job
	err = d.c.Store.View(ctx, func(r *store.Reader) (err error) {
		if j, err = r.Job(d.fence.Job); err != nil {
			return err
		}
		if m, err = r.Machine(j.GetMachine()); err != nil {
			return err
		}
		if d.world.Boot, err = r.Boot(m.GetName()); err != nil {
			return err
		}
		d.world.Actions, err = r.Actions(j.GetId())
		return err
	})
	if err != nil {
		return until, false, err
	}
	d.world.Timing = d.c.config.Timing
	now := time.Now()
	if err := d.count(ctx, now); err != nil {
		return until, false, err
	}
	d.world.Driven = j.Driven + now.Sub(d.counted)
	d.watch.look(&d.world, j, now)
	actions := Next(m, j, d.world, now)
	if len(actions) == 0 {
		return until, true, nil
	}
	for _, a := range actions {
		if a.Kind == ActWait {
			return a.Until, false, nil
		}
		again, err := d.do(ctx, m, j, a)
		if err != nil {
			return until, false, err
		}
		if again {
			break
		}
	}
	return now, false, nil
}

// count writes down for how long the job has been driven, now and then: what a coordinator that dies did not write is not counted.
func (d *driver) count(ctx context.Context, now time.Time) error {
	driven := now.Sub(d.counted)
	if driven < d.c.config.Timing.Job/countsPerJob {
		return nil
	}
	if err := d.write(ctx, func(ch *change) error { return ch.Drove(d.fence.Job, driven) }); err != nil {
		return err
	}
	d.counted = now
	return nil
}

// write is an update that fails with ErrFenced when the job is another's.
func (d *driver) write(ctx context.Context, f func(*change) error) error {
	return d.c.update(ctx, func(ch *change) error {
		if err := ch.Check(d.fence); err != nil {
			return err
		}
		return f(ch)
	})
}

// do carries one action out. again says that what comes after must be decided anew.
func (d *driver) do(ctx context.Context, m *bloomeryv1.Machine, j *store.Job, a Action) (again bool, err error) {
	switch a.Kind {
	case ActCheckPower:
		d.checkPower(ctx, m)
		return true, nil
	case ActProbeSSH:
		d.probeSSH(ctx, m)
		return true, nil
	case ActNewRound:
		return true, d.newRound(ctx, a)
	case ActStartStep:
		return true, d.startStep(ctx)
	case ActFinishStep:
		return true, d.finishStep(ctx)
	case ActFinishJob:
		return true, d.finishJob(ctx)
	case ActFailJob:
		return true, d.endJob(ctx, m, bloomeryv1.JobStatus_JOB_STATUS_FAILED, a.Reason, a.Message)
	case ActCancelJob:
		return true, d.endJob(ctx, m, bloomeryv1.JobStatus_JOB_STATUS_CANCELLED, "CANCELLED", "cancelled before step "+stepName(j.Current()))
	}
	return d.effect(ctx, m, j, a)
}

// effect notes an intention, does it and notes the outcome. What fails for good fails the job.
func (d *driver) effect(ctx context.Context, m *bloomeryv1.Machine, j *store.Job, a Action) (again bool, err error) {
	if err := fence.Check(ctx); err != nil {
		return true, err
	}
	if err := d.write(ctx, func(ch *change) error { return ch.Intend(j.GetId(), a.Scope, string(a.Kind)) }); err != nil {
		return true, err
	}
	past, _ := find(d.world.Actions, a)
	found, failure := d.perform(ctx, m, a, past.Tries+1)
	if err := errors.Join(ctx.Err(), fence.Check(ctx)); err != nil {
		return true, err // what is intended and not noted as done, the next driver looks at
	}
	var last *finalError
	text := ""
	if failure != nil {
		text = clipTo(failure.Error(), 500)
	}
	err = d.write(ctx, func(ch *change) error {
		if failure == nil {
			if err := d.commitEffect(ch, j.GetId(), a, found); err != nil {
				return err
			}
		}
		return ch.Outcome(j.GetId(), a.Scope, string(a.Kind), text)
	})
	if err != nil {
		return true, err
	}
	if failure == nil {
		return false, nil
	}
	d.c.Logger.Warn("an action failed", "job", j.GetId(), "machine", m.GetName(), "action", a.Kind, "try", past.Tries+1, "error", failure)
	if errors.As(failure, &last) {
		return true, d.endJob(ctx, m, bloomeryv1.JobStatus_JOB_STATUS_FAILED, last.reason, last.Error())
	}
	return true, nil
}

// finalError is a failure of an effect that another try cannot mend.
type finalError struct {
	reason string
	err    error
}

func (e *finalError) Error() string { return e.err.Error() }
func (e *finalError) Unwrap() error { return e.err }

// clipTo cuts a text to n bytes, between characters.
func clipTo(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "…"
	}
	return s
}
