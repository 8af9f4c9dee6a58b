package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// One connection writes at a time, and dqlite ends its transaction with the connection only. A coordinator that was stopped or cut off in
// the middle of one keeps all others out for as long as its connection lives. So the leader looks whether anybody gets through, hangs up on
// everybody when nobody does, and at last ends itself.
//
// A disk that is full is worse (dqlite 1.11, libraft 0.15). A leader keeps a transaction that it could not write to its log half done in its
// memory, where others read it as if it were stored, and can keep the lock for good; a follower's log gets a hole, with which its node never starts
// again. So nothing is written to a disk that is nearly full: a leader gives the leadership away, or refuses to write while there is nobody else;
// a follower ends itself, and does not start until there is room.

const (
	// guardEvery is how often the leader looks; stuckAfter how long nobody has got through when it hangs up, and deadAfter how long
	// it waits from then on before it ends itself: on a host that is out of breath one honest transaction takes seconds.
	guardEvery = 250 * time.Millisecond
	stuckAfter = 1500 * time.Millisecond
	deadAfter  = 6 * time.Second
	// handEvery is how often a leader without room tries to give the leadership away.
	handEvery = time.Second
	// roomToLead is what a leader must have left on its disk, and anyone who starts; roomToFollow what a follower must. The replicated log grows by
	// segments of 8 MiB, of which some are made beforehand.
	roomToLead, roomToFollow = 32 << 20, 16 << 20
)

// ErrDiskFull says that this coordinator's disk has no room for the replicated log.
var ErrDiskFull = errors.New("the coordinator's disk is full")

var errStuck = errors.New("the database on this coordinator lets nobody write, whoever is hung up on; it must be started again")

// attempts counts what became of this process's updates.
type attempts struct{ done, locked, failed atomic.Int64 }

func (a *attempts) note(err error) {
	switch {
	case err == nil:
		a.done.Add(1)
	case busy(err):
		a.locked.Add(1)
	case strings.Contains(err.Error(), "disk I/O error"):
		a.failed.Add(1)
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
	patience := stuckAfter
	if g.hungUp {
		patience = deadAfter
	}
	if g.watching && (locked == g.locked || now.Sub(g.since) < patience) {
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
	var triedToHand time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(guardEvery):
		}
		left := room(s.dir, s.log)
		switch {
		case left < roomToLead && s.Leading() && s.attempts.failed.Swap(0) > 0:
			s.giveUp(fmt.Errorf("%w: a change could not be written, and what this coordinator has in memory is not to be trusted", ErrDiskFull))
			return
		case left < roomToLead && s.Leading():
			if time.Since(triedToHand) >= handEvery {
				s.leadNoMore(ctx, left)
				triedToHand = time.Now()
			}
		case left < roomToFollow && s.Leader() != "":
			s.giveUp(noRoom(s.dir, left, roomToFollow))
			return
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
			s.giveUp(errStuck)
			return
		}
	}
}

// giveUp ends the store. Nobody is to read here any more, or to follow this leader, while the rest of the process ends in good order.
func (s *Store) giveUp(err error) {
	s.node.isolate()
	select {
	case s.lost <- err:
	default: // it has ended for another reason already
	}
}

// room is how many bytes are left on a folder's disk.
func room(dir string, log *slog.Logger) int64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		log.Warn("look how full the disk is", "dir", dir, "error", err)
		return math.MaxInt64
	}
	return int64(fs.Bavail) * fs.Bsize
}

func noRoom(dir string, left, needed int64) error {
	return fmt.Errorf("%w: %s has %d bytes left, %d are needed", ErrDiskFull, dir, left, needed)
}

// leadWithRoom is an error when this node leads and has no room on its disk to go on with it.
func (s *Store) leadWithRoom() error {
	if !s.Leading() {
		return nil
	}
	if left := room(s.dir, s.log); left < roomToLead {
		return noRoom(s.dir, left, roomToLead)
	}
	return nil
}

// leadNoMore gives the leadership away.
func (s *Store) leadNoMore(ctx context.Context, left int64) {
	s.log.Error("the disk is full: another coordinator shall lead", "dir", s.dir, "free_bytes", left)
	ctx, cancel := context.WithTimeout(ctx, handoverTimeout)
	defer cancel()
	if err := s.node.transfer(ctx); err != nil && ctx.Err() == nil {
		s.log.Warn("give the leadership away", "error", err)
	}
}
