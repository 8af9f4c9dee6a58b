package coordinator

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"bloomery/coordinator/store"
	"bloomery/internal/fence"
)

// A session holds jobs and duties. Its holder counts the lease from before it sent a beat and stops a margin before the lease's end;
// the others count from after they saw that beat and wait for the whole lease. Both count on clocks of their own that no one sets, so
// that a wrong or jumping time of day does not matter, and a process that was stopped or a machine that was suspended finds its lease over.

const (
	// beatsPerLease is how often a lease is renewed in its length, looksPerLease how often the others' beats are read.
	beatsPerLease, looksPerLease = 3, 6
	// marginPart of a lease is what its holder gives up at the end, for clocks that run at different speeds.
	marginPart = 10
	// claimAtOnce bounds the jobs that one transaction claims.
	claimAtOnce = 500
)

var errLapsed = fmt.Errorf("this coordinator's lease is over: %w", store.ErrFenced)

// sinceBoot is CLOCK_BOOTTIME: it only goes on, counts the time in which the machine was suspended, and nobody can set it.
// Go's own monotonic clock (CLOCK_MONOTONIC) stands still then.
func sinceBoot() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(fmt.Sprintf("CLOCK_BOOTTIME: %v", err)) // since Linux 2.6.39; without it nothing may be driven
	}
	return time.Duration(t.Nano())
}

// session is one life of this coordinator as a driver. Once its lease is over it never lives again: another session begins.
type session struct {
	id string
	// ctx ends with the session, at the latest when its timers run: held is what counts.
	ctx  context.Context
	end  context.CancelFunc
	last atomic.Int64 // when its right ends, in ns of sinceBoot

	mu      sync.Mutex
	holders int
	closed  bool
	idle    chan struct{} // closed once it is closed and has no holders
}

func newSession(ctx context.Context, id string, lease, from time.Duration) *session {
	s := &session{id: id, idle: make(chan struct{})}
	s.ctx, s.end = context.WithCancel(ctx)
	s.extend(lease, from)
	return s
}

// extend notes that a beat which was sent after from is stored.
func (s *session) extend(lease, from time.Duration) {
	s.last.Store(int64(from + lease - lease/marginPart))
}

func (s *session) left() time.Duration { return time.Duration(s.last.Load()) - sinceBoot() }

// held says that the session's holder may act now.
func (s *session) held() error {
	if s.left() <= 0 {
		s.end()
		return errLapsed
	}
	return nil
}

// enter counts a holder in; false when the session is over.
func (s *session) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.held() != nil {
		return false
	}
	s.holders++
	return true
}

func (s *session) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders--
	if s.closed && s.holders == 0 {
		close(s.idle)
	}
}

// close ends the session for its holders and returns what is closed when the last has left.
func (s *session) close() <-chan struct{} {
	s.end()
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		if s.holders == 0 {
			close(s.idle)
		}
	}
	return s.idle
}

// sessions is where those who want to hold something find the session.
type sessions struct {
	mu      sync.Mutex
	current *session
	changed chan struct{}
}

func newSessions() *sessions { return &sessions{changed: make(chan struct{})} }

func (s *sessions) set(current *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current = current
	close(s.changed)
	s.changed = make(chan struct{})
}

// get waits for a session that is alive, and counts the caller in.
func (s *sessions) get(ctx context.Context) (*session, error) {
	for {
		s.mu.Lock()
		current, changed := s.current, s.changed
		s.mu.Unlock()
		if current != nil && current.enter() {
			return current, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-changed:
		}
	}
}

// keepSessions has a session open until the context ends, and ends those of coordinators that have died.
func (c *Coordinator) keepSessions(ctx context.Context) {
	for ctx.Err() == nil {
		s, err := c.openSession(ctx)
		if err != nil {
			if ctx.Err() == nil {
				c.Logger.Error("open a session to drive jobs by", "error", err)
			}
			sleep(ctx, jitter(c.config.Timing.Lease/beatsPerLease))
			continue
		}
		c.sessions.set(s)
		err = c.beat(ctx, s)
		c.sessions.set(nil)
		if err != nil && ctx.Err() == nil {
			c.Logger.Warn("jobs and duties are given up: this coordinator's lease is over", "session", s.id, "error", err)
		}
		c.closeSession(ctx, s)
	}
}

func (c *Coordinator) openSession(ctx context.Context) (*session, error) {
	id, err := randomHex(8)
	if err != nil {
		return nil, err
	}
	from := sinceBoot()
	if err := c.Store.Update(ctx, func(tx *store.Tx) error { return tx.OpenSession(id) }); err != nil {
		return nil, err
	}
	return newSession(ctx, id, c.config.Timing.Lease, from), nil
}

// beat renews a session until it is over, and watches the others' meanwhile.
func (c *Coordinator) beat(ctx context.Context, s *session) error {
	lease := c.config.Timing.Lease
	seen := sightings{lease: lease, since: map[store.Session]time.Duration{}}
	next, beat := sinceBoot()+lease/beatsPerLease, int64(0)
	for {
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(lease / looksPerLease):
		}
		if err := s.held(); err != nil {
			return err
		}
		try, cancel := context.WithTimeout(s.ctx, s.left())
		if from := sinceBoot(); from >= next {
			beat++
			err := c.Store.Update(try, func(tx *store.Tx) error { return tx.Beat(store.Session{ID: s.id, Beat: beat}) })
			switch {
			case errors.Is(err, store.ErrFenced):
				cancel()
				return err
			case err == nil:
				s.extend(lease, from)
				next = from + lease/beatsPerLease
			case ctx.Err() == nil:
				c.Logger.Warn("renew the lease", "session", s.id, "left", s.left(), "error", err)
			}
		}
		if err := c.buryOthers(try, s, &seen); err != nil && ctx.Err() == nil {
			c.Logger.Warn("look at the other coordinators' sessions", "error", err)
		}
		cancel()
	}
}

// buryOthers ends the sessions whose beat has stood still for a whole lease.
func (c *Coordinator) buryOthers(ctx context.Context, s *session, seen *sightings) error {
	var all []store.Session
	if err := c.Store.View(ctx, func(r *store.Reader) (err error) {
		all, err = r.Sessions()
		return err
	}); err != nil {
		return err
	}
	for _, dead := range seen.dead(all, sinceBoot()) {
		if dead.ID == s.id {
			continue
		}
		var ended bool
		if err := c.Store.Update(ctx, func(tx *store.Tx) (err error) {
			ended, err = tx.EndSession(dead)
			return err
		}); err != nil {
			return err
		}
		if ended {
			c.Logger.Warn("a coordinator is silent: what it held is free", "session", dead.ID)
			c.hub.notify(freed())
		}
	}
	return nil
}

// closeSession waits until nobody acts under a session any more, and ends it, so that the others need not wait for its lease.
func (c *Coordinator) closeSession(ctx context.Context, s *session) {
	idle := s.close()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), max(yieldTimeout, c.config.Timing.Lease))
	defer cancel()
	select {
	case <-idle:
	case <-last.Done():
		c.Logger.Warn("work goes on after the lease that it was begun under: it can do nothing any more", "session", s.id)
		return
	}
	if err := c.Store.Update(last, func(tx *store.Tx) error { return tx.CloseSession(s.id) }); err != nil {
		c.Logger.Warn("end the session: the others wait for its lease", "session", s.id, "error", err)
		return
	}
	c.hub.notify(freed())
}

// freed is whom the end of a holding may concern.
func freed() map[string]bool { return map[string]bool{"jobs": true, "duties": true} }

// sightings remembers since when each session has looked the same.
type sightings struct {
	lease time.Duration
	since map[store.Session]time.Duration
}

// dead returns those that have not changed for a whole lease. now is after they were read.
func (s *sightings) dead(all []store.Session, now time.Duration) []store.Session {
	since := make(map[store.Session]time.Duration, len(all))
	var dead []store.Session
	for _, one := range all {
		first, known := s.since[one]
		if !known {
			first = now
		}
		since[one] = first
		if now-first >= s.lease {
			dead = append(dead, one)
		}
	}
	s.since = since
	return dead
}

// hold does a duty of the rack for as long as this coordinator holds it, and waits for it otherwise, until the context ends: exactly one
// coordinator does the work at a time. The work's context ends with the lease, and transactions that the work depends on begin with
// ch.Check(fence). Work that returns gives the duty up; an error is logged, and the duty is wanted again after a pause.
// Drive has to run beside it.
func (c *Coordinator) hold(ctx context.Context, duty string, work func(ctx context.Context, f store.Fence) error) {
	wake, stop := c.hub.subscribe("duties")
	defer stop()
	for ctx.Err() == nil {
		held, err := c.holdOnce(ctx, store.Holding{Duty: duty}, work)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && !errors.Is(err, store.ErrFenced):
			c.Logger.Error("do a duty", "duty", duty, "error", err)
		}
		pause := jitter(c.config.Timing.Lease / beatsPerLease)
		if held {
			sleep(ctx, pause)
			continue
		}
		select {
		case <-ctx.Done():
		case <-wake:
		case <-time.After(pause):
		}
	}
}

// holdOnce claims something and does its work; held is false when another has it.
func (c *Coordinator) holdOnce(ctx context.Context, h store.Holding, work func(ctx context.Context, f store.Fence) error) (held bool, err error) {
	s, err := c.sessions.get(ctx)
	if err != nil {
		return false, err
	}
	defer s.leave()
	var f store.Fence
	err = c.Store.Update(s.ctx, func(tx *store.Tx) (err error) {
		f, held, err = tx.Claim(h, s.id)
		return err
	})
	if err != nil || !held {
		return false, err
	}
	return true, c.workUnder(ctx, s, f, work)
}

// workUnder does work with a context that ends with the session, and whose effects are fenced by it; then the holding is given up.
func (c *Coordinator) workUnder(ctx context.Context, s *session, f store.Fence, work func(ctx context.Context, f store.Fence) error) error {
	inner, cancel := context.WithCancel(fence.With(ctx, s.held))
	stop := context.AfterFunc(s.ctx, cancel)
	err := work(inner, f)
	stop()
	cancel()
	if s.ctx.Err() != nil {
		return err // the session's end frees it
	}
	last, done := context.WithTimeout(context.WithoutCancel(ctx), yieldTimeout)
	defer done()
	if e := c.Store.Update(last, func(tx *store.Tx) error { return tx.Yield(f) }); e != nil {
		return errors.Join(err, e)
	}
	c.hub.notify(freed())
	return err
}

// sleep waits for d or until the context ends.
func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// jitter keeps coordinators from doing things at the same time: it returns d to 1.5 d.
func jitter(d time.Duration) time.Duration { return d + rand.N(d/2+1) }
