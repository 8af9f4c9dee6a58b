package store

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// One connection writes at a time, and dqlite ends its transaction with the connection only. A coordinator that was stopped or cut off in
// the middle of one keeps all others out for as long as its connection lives, and a leader whose disk was full for a moment can keep
// the lock for good. So the leader looks whether anybody gets through, hangs up on everybody when nobody does, and at last ends itself.

const (
	// guardEvery is how often the leader looks; stuckAfter how long nobody has got through when it hangs up, and again when it ends itself.
	guardEvery = 250 * time.Millisecond
	stuckAfter = 1500 * time.Millisecond
)

var errStuck = errors.New("the database on this coordinator lets nobody write, whoever is hung up on; it must be started again (its disk may have been full)")

// attempts counts what became of this process's updates.
type attempts struct{ done, locked atomic.Int64 }

func (a *attempts) note(err error) {
	switch {
	case err == nil:
		a.done.Add(1)
	case busy(err):
		a.locked.Add(1)
	}
}

// remedy is what the leader does for those who cannot write.
type remedy uint8

const (
	remedyNone remedy = iota
	remedyHangUp
	remedyEnd
)

// guard finds out from counts whether anybody gets through.
type guard struct {
	watching     bool
	since        time.Time
	done, locked int64
	newest       int64
	hungUp       bool
}

// look takes what this process's updates met until now, and how to ask for the newest update of anyone, which is asked for only when they meet a lock.
func (g *guard) look(now time.Time, leading bool, done, locked int64, newest func() (int64, error)) (remedy, error) {
	if !leading || done != g.done || locked == g.locked && !g.watching {
		*g = guard{done: done, locked: locked}
		return remedyNone, nil
	}
	if g.watching && (locked == g.locked || now.Sub(g.since) < stuckAfter) {
		return remedyNone, nil
	}
	n, err := newest()
	if err != nil {
		return remedyNone, err
	}
	if !g.watching || n != g.newest {
		*g = guard{watching: true, since: now, done: done, locked: locked, newest: n}
		return remedyNone, nil
	}
	g.since, g.locked = now, locked
	if g.hungUp {
		return remedyEnd, nil
	}
	g.hungUp = true
	return remedyHangUp, nil
}

// keepWritable does what the guard finds necessary until the context ends.
func (s *Store) keepWritable(ctx context.Context) {
	var g guard
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(guardEvery):
		}
		do, err := g.look(time.Now(), s.Leading(), s.attempts.done.Load(), s.attempts.locked.Load(), func() (n int64, err error) {
			ask, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			return n, s.read.QueryRowContext(ask, "SELECT COALESCE(MAX(rowid), 0) FROM operations").Scan(&n)
		})
		switch {
		case err != nil && ctx.Err() == nil:
			s.log.Debug("look whether anybody can write", "error", err)
		case do == remedyHangUp:
			s.log.Warn("nobody could write for a while: all connections to the database are ended", "for", stuckAfter)
			s.node.hangUp()
		case do == remedyEnd:
			s.lost <- errStuck
			return
		}
	}
}
