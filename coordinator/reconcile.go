package coordinator

import (
	"context"
	"errors"
	"sync"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// yieldTimeout bounds giving a job up when the coordinator stops.
const yieldTimeout = 2 * time.Second

// Drive drives every running job of the rack that no other coordinator drives, until the context ends.
func (c *Coordinator) Drive(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex
	driven := map[string]bool{}
	wake, stop := c.hub.subscribe("jobs")
	defer stop()
	for {
		var ids []string
		err := c.Store.View(ctx, func(r *store.Reader) (err error) {
			ids, err = r.RunningJobs()
			return err
		})
		if err != nil && ctx.Err() == nil {
			c.Logger.Error("read the running jobs", "error", err)
		}
		for _, id := range ids {
			mu.Lock()
			taken := driven[id]
			driven[id] = true
			mu.Unlock()
			if taken {
				continue
			}
			wg.Go(func() {
				defer func() {
					mu.Lock()
					defer mu.Unlock()
					delete(driven, id)
				}()
				if err := c.driveJob(ctx, id); err != nil && ctx.Err() == nil {
					c.Logger.Error("drive a job", "job", id, "error", err)
				}
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(c.config.Timing.Tick):
		}
	}
}

// driveJob holds one job and does what Next says until the job has ended or is another's.
func (c *Coordinator) driveJob(parent context.Context, id string) error {
	var fence store.Fence
	var ok bool
	err := c.Store.Update(parent, func(tx *store.Tx) (err error) {
		fence, ok, err = tx.Claim(id, c.owner, c.config.Timing.Lease)
		return err
	})
	if err != nil || !ok {
		return err
	}
	ctx, cancel := context.WithCancel(parent)
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		c.renew(ctx, fence)
	})
	defer func() {
		cancel()
		wg.Wait()
		last, stop := context.WithTimeout(context.WithoutCancel(parent), yieldTimeout)
		defer stop()
		if err := c.Store.Update(last, func(tx *store.Tx) error { return tx.Yield(fence) }); err != nil {
			c.Logger.Warn("give a job up", "job", id, "error", err)
		}
	}()
	d := &driver{c: c, fence: fence}
	wake, stop := c.hub.subscribe("job/" + id)
	defer stop()
	for {
		until, ended, err := d.turn(ctx)
		if errors.Is(err, store.ErrFenced) || ended {
			return nil
		}
		if err != nil {
			return err
		}
		pause := min(until.Sub(c.config.Now()), c.config.Timing.Tick)
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

// renew keeps the job until the context ends or another coordinator has taken it.
func (c *Coordinator) renew(ctx context.Context, fence store.Fence) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(c.config.Timing.Lease / 2):
		}
		err := c.Store.Update(ctx, func(tx *store.Tx) error { return tx.Renew(fence, c.config.Timing.Lease) })
		if err != nil {
			if ctx.Err() == nil {
				c.Logger.Warn("hold a job", "job", fence.JobID, "error", err)
			}
			return
		}
	}
}

// driver is what one holding of a job remembers: only what it saw of the world, which a successor looks at again.
type driver struct {
	c     *Coordinator
	fence store.Fence
	world World
}

// turn reads the job, asks Next and does what it says. until is when to look again at the latest.
func (d *driver) turn(ctx context.Context) (until time.Time, ended bool, err error) {
	var m *bloomeryv1.Machine
	var j *store.Job
	err = d.c.Store.View(ctx, func(r *store.Reader) (err error) {
		if j, err = r.Job(d.fence.JobID); err != nil {
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
	now := d.c.config.Now()
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

// write is an update that fails with ErrFenced when the job is another's.
func (d *driver) write(ctx context.Context, f func(*change) error) error {
	return d.c.update(ctx, func(ch *change) error {
		if err := ch.Renew(d.fence, 0); err != nil {
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
	if err := d.write(ctx, func(ch *change) error { return ch.Intend(j.GetId(), a.Scope, string(a.Kind)) }); err != nil {
		return true, err
	}
	past, _ := find(d.world.Actions, a)
	found, failure := d.perform(ctx, m, a, past.Tries+1)
	if ctx.Err() != nil {
		return true, nil // the next driver looks at it again
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

func clipTo(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}
