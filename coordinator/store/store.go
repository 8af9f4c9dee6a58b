// Package store keeps what a coordinator remembers in dqlite: machines, jobs, leases, boots and events.
// All SQL stands here; callers get typed reads (Reader) and transactions (Tx).
package store

import (
	"context"
	cryptorand "crypto/rand"
	"database/sql"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Errors that callers tell apart.
var (
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("already exists")
	// ErrFenced says that a job, a duty or a session is another's now, or nobody's.
	ErrFenced = errors.New("held by another coordinator now")
	// ErrExhausted says that a range has no free address.
	ErrExhausted = errors.New("no free address is left")
)

const (
	// callTimeout bounds one attempt, retryFor all of them; a failover takes below a second.
	callTimeout = 2500 * time.Millisecond
	retryFor    = 5 * time.Second
	// hopelessAfter is how long a failover could take at most; without a leader for longer there is no majority.
	hopelessAfter = 2 * time.Second
	firstPause    = 5 * time.Millisecond
	longPause     = 100 * time.Millisecond
	busyPause     = 4 * time.Millisecond
	// openPatience is how long Open waits for other nodes; after it, calls say that there is no majority until there is one.
	openPatience = 5 * time.Second
	// handoverTimeout bounds the handing over of the leadership when a node stops.
	handoverTimeout = 2 * time.Second
)

// Options says where a store is.
type Options struct {
	// Dir holds the database's files, mode 0700.
	Dir string
	// SecretFile holds the key that encrypts BMC passwords, mode 0600; it is made when it is not there.
	SecretFile string
	// Now dates what is stored; nil means time.Now.
	Now func() time.Time
	// Cluster is nil in a rack of one coordinator.
	Cluster *Cluster
	Logger  *slog.Logger
}

// Store is an open database. Its methods may be called from several goroutines.
type Store struct {
	observer    atomic.Pointer[Observer]
	write, read *sql.DB
	node        engine
	sealer      *sealer
	specs       *specs
	now         func() time.Time
	log         *slog.Logger
	dir         string

	// usable is closed once the schema is known to be right; lost gives the error after which nothing goes on.
	usable   chan struct{}
	lost     chan error
	attempts attempts
	lock     *os.File
	stop     context.CancelFunc
	wg       sync.WaitGroup
}

// Open starts the database and brings its schema up to date. Without a majority of the nodes it gives up waiting after
// a few seconds: the store is returned, and becomes usable when the majority is there.
func Open(ctx context.Context, o Options) (*Store, error) {
	all, err := migrations()
	if err != nil {
		return nil, err
	}
	return openAt(ctx, o, len(all))
}

// openAt is Open with the schema version to migrate to.
func openAt(ctx context.Context, o Options, schema int) (*Store, error) {
	seal, err := openSealer(o.SecretFile)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	if left := room(o.Dir, o.Logger); left < roomToLead {
		return nil, errors.Join(noRoom(o.Dir, left, roomToLead), lock.Close())
	}
	node, err := startEngine(ctx, o)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	s := &Store{node: node, sealer: seal, specs: newSpecs(), now: o.Now, log: o.Logger, dir: o.Dir, usable: make(chan struct{}), lost: make(chan error, 1), lock: lock}
	if s.now == nil {
		s.now = time.Now
	}
	s.write, s.read = node.pools()
	var life context.Context
	life, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	node.tidy(s.addresses)
	s.wg.Go(func() { s.prepare(life, schema) })
	select {
	case <-s.usable:
		return s, nil
	case err := <-s.lost:
		return nil, errors.Join(err, s.Close())
	case <-ctx.Done():
		return nil, errors.Join(ctx.Err(), s.Close())
	case <-time.After(openPatience):
		o.Logger.Warn("the database has no majority yet; waiting for other coordinators", "members", memberAddresses(ctx, node))
		return s, nil
	}
}

// prepare makes the store usable when the database is, and watches for its end.
func (s *Store) prepare(ctx context.Context, schema int) {
	select {
	case <-ctx.Done():
		return
	case err := <-s.node.failed():
		s.lost <- err
		return
	case <-s.node.ready():
	}
	for {
		err := migrate(ctx, s.write, schema)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return
		}
		if !errors.Is(err, ErrNoMajority) {
			s.lost <- err
			return
		}
	}
	close(s.usable)
	s.wg.Go(func() { s.keepWritable(ctx) })
	select {
	case <-ctx.Done():
	case err := <-s.node.failed():
		s.lost <- err
	}
}

// addresses are those of the present coordinators; nil while there is no list.
func (s *Store) addresses(ctx context.Context) (map[string]bool, error) {
	select {
	case <-s.usable:
	default:
		return nil, nil
	}
	var all map[string]bool
	err := s.View(ctx, func(r *Reader) error {
		nodes, err := r.Nodes()
		all = nil
		for _, n := range nodes {
			if all == nil {
				all = map[string]bool{}
			}
			if n.Present() {
				all[n.Address] = true
			}
		}
		return err
	})
	return all, err
}

// Close hands the leadership over, and ends the pools and the node.
func (s *Store) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), handoverTimeout)
	defer cancel()
	if err := s.node.transfer(ctx); err != nil {
		s.log.Info("hand the database's leadership over", "error", err)
	}
	s.stop()
	err := s.node.close()
	s.wg.Wait()
	return errors.Join(err, s.lock.Close())
}

// wait returns when the schema is right.
func (s *Store) wait(ctx context.Context) error {
	select {
	case <-s.usable:
		return nil
	default:
	}
	patience, cancel := context.WithTimeout(ctx, retryFor)
	defer cancel()
	select {
	case <-s.usable:
		return nil
	case <-patience.Done():
		return fmt.Errorf("open the database: %w", errors.Join(ErrNoMajority, ctx.Err()))
	}
}

// querier is what a transaction and a pool have in common.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// Reader reads the store.
type Reader struct {
	ctx    context.Context
	q      querier
	sealer *sealer
	specs  *specs
}

// Tx reads and changes the store in one transaction.
type Tx struct {
	Reader
	tx  *sql.Tx
	now time.Time
}

// Now is the transaction's time.
func (t *Tx) Now() time.Time { return t.now }

// View calls f with one snapshot. f may be called again after a failure that passes, so it must set its results afresh.
func (s *Store) View(ctx context.Context, f func(*Reader) error) error {
	tries := 0
	defer s.observe("view", time.Now(), &tries)
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.retry(ctx, func(ctx context.Context) error {
		tries++
		tx, err := s.read.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		return f(&Reader{ctx: ctx, q: tx, sealer: s.sealer, specs: s.specs})
	})
}

// Update calls f in a transaction and commits it unless f fails. f may be called again after a failure that passes.
// A commit whose fate is unknown is not done twice: each update leaves its id.
func (s *Store) Update(ctx context.Context, f func(*Tx) error) error {
	raw := make([]byte, 12)
	if _, err := cryptorand.Read(raw); err != nil {
		return fmt.Errorf("make an operation id: %w", err)
	}
	if err := s.wait(ctx); err != nil {
		return err
	}
	tries := 0
	defer s.observe("update", time.Now(), &tries)
	id, unsure := hex.EncodeToString(raw), false
	err := s.retry(ctx, func(ctx context.Context) (err error) {
		defer func() { s.attempts.note(err) }()
		tries++
		if err := s.leadWithRoom(); err != nil {
			return err // another one may lead in a moment
		}
		tx, err := s.write.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		t := &Tx{Reader: Reader{ctx: ctx, q: tx, sealer: s.sealer, specs: s.specs}, tx: tx, now: s.now()}
		// The first statement writes, so that this transaction is the only one from its beginning: one that reads first cannot
		// write any more once another was committed meanwhile.
		if err := t.exec("INSERT INTO operations (id, created) VALUES (?, ?)", id, nanos(t.now)); err != nil {
			if unsure && isUnique(err) {
				// Read where the change may be half done (see guard.go): it is stored if another one can follow it.
				if err := t.exec("UPDATE operations SET created = created WHERE id = ?", id); err != nil {
					return err
				}
				return tx.Commit()
			}
			return err
		}
		if err := f(t); err != nil {
			return err
		}
		unsure = true
		return tx.Commit()
	})
	if err != nil && unsure && (errors.Is(err, ErrNoMajority) || ctx.Err() != nil) {
		return errors.Join(ErrUnsure, err)
	}
	return err
}

func (t *Tx) exec(query string, args ...any) error {
	_, err := t.tx.ExecContext(t.ctx, query, args...)
	return err
}

// retry runs f until it succeeds, fails for good, or the time is up: then the database has no majority.
func retry(ctx context.Context, f func(context.Context) error) error {
	return retryUnless(ctx, func() bool { return false }, f)
}

// retry is like the function of that name, but where there has been no leader for a while one try is enough: callers pile up otherwise.
func (s *Store) retry(ctx context.Context, f func(context.Context) error) error {
	return retryUnless(ctx, func() bool {
		leader, since, _ := s.node.leader()
		return leader == "" && time.Since(since) > hopelessAfter
	}, f)
}

func retryUnless(ctx context.Context, hopeless func() bool, f func(context.Context) error) error {
	until, pause := time.Now().Add(retryFor), firstPause
	bounded, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for {
		attempt, cancel := context.WithTimeout(bounded, callTimeout)
		err := f(attempt)
		late := attempt.Err() != nil
		cancel()
		switch {
		case err == nil:
			return nil
		case !late && !passes(err):
			return err
		case ctx.Err() != nil || hopeless():
			return errors.Join(ctx.Err(), unavailable(err))
		}
		wait := pause
		if busy(err) {
			wait = busyPause // nobody queues for the database: whoever waited longer must not ask less often
		} else {
			pause = min(2*pause, longPause)
		}
		select {
		case <-bounded.Done():
			return errors.Join(ctx.Err(), unavailable(err))
		case <-time.After(wait/2 + rand.N(wait)):
		}
	}
}

// unavailable names what kept a call from being done.
func unavailable(err error) error {
	if busy(err) || errors.Is(err, ErrDiskFull) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoMajority, err)
}

// passes tells failures of the database that go away by themselves: there is no busy timeout, and leaders change.
func passes(err error) bool {
	if busy(err) || errors.Is(err, ErrDiskFull) || errors.Is(err, driver.ErrBadConn) || errors.Is(err, ErrNoMajority) {
		return true
	}
	var network *net.OpError
	if errors.As(err, &network) {
		return true
	}
	text := err.Error()
	// The last is what dqlite 1.11 says, with code 7, to a write while the leadership is handed over.
	for _, s := range []string{"not leader", "leadership lost", "no available dqlite leader", "no known leader", "no more rows available"} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
}

// busy says that another transaction was in the way.
func busy(err error) bool {
	text := err.Error()
	return strings.Contains(text, "database is locked") || strings.Contains(text, "checkpoint in progress")
}

// isUnique says that a statement broke a unique index.
func isUnique(err error) bool {
	return err != nil && strings.Contains(err.Error(), "UNIQUE constraint")
}

// nanos stores a time; the zero time is 0.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromNanos(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}
