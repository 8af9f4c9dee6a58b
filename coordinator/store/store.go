// Package store keeps what a coordinator remembers in dqlite: machines, jobs, leases, boots and events.
// All SQL stands here; callers get typed reads (Reader) and transactions (Tx).
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
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
	// callTimeout bounds one attempt; retryFor bounds all of them (a failover takes up to 6 s).
	callTimeout = 5 * time.Second
	retryFor    = 15 * time.Second
	firstPause  = 5 * time.Millisecond
	longPause   = 500 * time.Millisecond
)

// Options says where a store is.
type Options struct {
	// Dir holds the database's files, mode 0700.
	Dir string
	// SecretFile holds the key that encrypts BMC passwords, mode 0600; it is made when it is not there.
	SecretFile string
	// Now dates what is stored; nil means time.Now.
	Now    func() time.Time
	Logger *slog.Logger
}

// Store is an open database. Its methods may be called from several goroutines.
type Store struct {
	write, read *sql.DB
	stop        func() error
	sealer      *sealer
	now         func() time.Time
	log         *slog.Logger
}

// Open starts the database and brings its schema up to date.
func Open(ctx context.Context, o Options) (*Store, error) {
	seal, err := openSealer(o.SecretFile)
	if err != nil {
		return nil, err
	}
	write, read, stop, err := openDatabase(ctx, o.Dir, o.Logger)
	if err != nil {
		return nil, err
	}
	s := &Store{write: write, read: read, stop: stop, sealer: seal, now: o.Now, log: o.Logger}
	if s.now == nil {
		s.now = time.Now
	}
	if err := migrate(ctx, write); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close ends the pools and the node.
func (s *Store) Close() error {
	return errors.Join(s.read.Close(), s.write.Close(), s.stop())
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
	return retry(ctx, func(ctx context.Context) error {
		tx, err := s.read.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		return f(&Reader{ctx: ctx, q: tx, sealer: s.sealer})
	})
}

// Update calls f in a transaction and commits it unless f fails. f may be called again after a failure that passes.
// A commit whose fate is unknown is not done twice: each update leaves its id.
func (s *Store) Update(ctx context.Context, f func(*Tx) error) error {
	raw := make([]byte, 12)
	if _, err := rand.Read(raw); err != nil {
		return fmt.Errorf("make an operation id: %w", err)
	}
	id, unsure := hex.EncodeToString(raw), false
	return retry(ctx, func(ctx context.Context) error {
		tx, err := s.write.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		if unsure {
			var n int
			if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM operations WHERE id = ?", id).Scan(&n); err != nil {
				return err
			}
			if n > 0 {
				return nil
			}
		}
		t := &Tx{Reader: Reader{ctx: ctx, q: tx, sealer: s.sealer}, tx: tx, now: s.now()}
		if err := f(t); err != nil {
			return err
		}
		if err := t.exec("INSERT INTO operations (id, created) VALUES (?, ?)", id, nanos(t.now)); err != nil {
			return err
		}
		unsure = true
		return tx.Commit()
	})
}

func (t *Tx) exec(query string, args ...any) error {
	_, err := t.tx.ExecContext(t.ctx, query, args...)
	return err
}

// retry runs f until it succeeds, fails for good, or the time is up.
func retry(ctx context.Context, f func(context.Context) error) error {
	until, pause := time.Now().Add(retryFor), firstPause
	for {
		attempt, cancel := context.WithTimeout(ctx, callTimeout)
		err := f(attempt)
		cancel()
		if err == nil || !passes(err) || ctx.Err() != nil || time.Now().After(until) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
		pause = min(2*pause, longPause)
	}
}

// passes tells failures of the database that go away by themselves: there is no busy timeout, and leaders change.
func passes(err error) bool {
	text := err.Error()
	for _, s := range []string{"database is locked", "not leader", "leadership lost", "no available dqlite leader", "checkpoint in progress", "bad connection", "no known leader"} {
		if strings.Contains(text, s) {
			return true
		}
	}
	return false
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
