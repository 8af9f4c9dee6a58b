package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// batchBytes and batchRows bound a transaction of a restore: dqlite fails above about 1 MB, of which indexes take their part.
const (
	batchBytes = 128 << 10
	batchRows  = 500
)

// aboutNodes are tables whose rows are about coordinators' keys and disks, which are not restored. Who they were stays on record: a
// coordinator of the rack before must be told that it is none any more.
var aboutNodes = []string{"node_certificates", "join_tokens", "image_copies", "archive_copies"}

// Restore makes a new database of a snapshot's tables, which fill writes, and brings its schema up to date. Nothing may be at o.Dir yet.
// The returned store is open.
func Restore(ctx context.Context, o Options, schema int, fill func(*Restorer) error) (*Store, error) {
	all, err := migrations()
	if err != nil {
		return nil, err
	}
	if schema < 1 || schema > len(all) {
		return nil, fmt.Errorf("the backup has schema version %d, this program knows 1 to %d: use a newer bloomeryd", schema, len(all))
	}
	s, err := openAt(ctx, o, schema)
	if err != nil {
		return nil, err
	}
	if err := s.restore(ctx, fill); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	if err := migrate(ctx, s.write, len(all)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Store) restore(ctx context.Context, fill func(*Restorer) error) error {
	r := &Restorer{ctx: ctx, db: s.write}
	var err error
	if r.known, err = tables(ctx, s.write); err != nil {
		return err
	}
	// Migrations may have put rows into their tables; the backup's rows hold what has become of them.
	for _, t := range r.known {
		if err := r.write([]statement{{"DELETE FROM " + quoted(t.Name), nil}}); err != nil {
			return fmt.Errorf("empty table %s: %w", t.Name, err)
		}
	}
	if err := fill(r); err != nil {
		return err
	}
	if err := r.flush(); err != nil {
		return err
	}
	for _, t := range r.known {
		if slices.Contains(aboutNodes, t.Name) {
			if err := r.write([]statement{{"DELETE FROM " + quoted(t.Name), nil}}); err != nil {
				return fmt.Errorf("forget the earlier coordinators in table %s: %w", t.Name, err)
			}
		}
	}
	return nil
}

// Restorer writes the rows of a restored database in bounded transactions.
type Restorer struct {
	ctx     context.Context
	db      *sql.DB
	known   []Table
	table   string
	insert  string
	columns int
	pending []statement
	bytes   int
}

type statement struct {
	query string
	args  []any
}

// Table begins a table; rows that follow are its. A table or column that the schema does not have is an error.
func (r *Restorer) Table(t Table) error {
	if err := r.flush(); err != nil {
		return err
	}
	i := slices.IndexFunc(r.known, func(k Table) bool { return k.Name == t.Name })
	if i < 0 {
		return fmt.Errorf("table %.64q is not of this schema version", t.Name)
	}
	if !slices.Equal(slices.Sorted(slices.Values(t.Columns)), slices.Sorted(slices.Values(r.known[i].Columns))) {
		return fmt.Errorf("table %s has the columns %q, want %q", t.Name, t.Columns, r.known[i].Columns)
	}
	r.table, r.columns = t.Name, len(t.Columns)
	r.insert = fmt.Sprintf("INSERT INTO %s (%s) VALUES (?%s)", quoted(t.Name), quotedList(t.Columns), strings.Repeat(", ?", len(t.Columns)-1))
	if t.Sequence == nil {
		return nil
	}
	err := r.write([]statement{
		{"DELETE FROM sqlite_sequence WHERE name = ?", []any{t.Name}},
		{"INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", []any{t.Name, *t.Sequence}},
	})
	if err != nil {
		return fmt.Errorf("set the sequence of table %s: %w", t.Name, err)
	}
	return nil
}

// Row adds a row to the table that was begun last; the values become the Restorer's.
func (r *Restorer) Row(values []any) error {
	if r.table == "" || len(values) != r.columns {
		return fmt.Errorf("row of %d values in table %q of %d columns", len(values), r.table, r.columns)
	}
	r.pending = append(r.pending, statement{r.insert, values})
	for _, v := range values {
		r.bytes += 16
		switch v := v.(type) {
		case string:
			r.bytes += len(v)
		case []byte:
			r.bytes += len(v)
		}
	}
	if r.bytes < batchBytes && len(r.pending) < batchRows {
		return nil
	}
	return r.flush()
}

func (r *Restorer) flush() error {
	if len(r.pending) == 0 {
		return nil
	}
	if err := r.write(r.pending); err != nil {
		return fmt.Errorf("fill table %s: %w", r.table, err)
	}
	r.pending, r.bytes = r.pending[:0], 0
	return nil
}

// write is one transaction. Nobody else uses the database, so that a commit whose fate is unknown does not happen.
func (r *Restorer) write(statements []statement) error {
	return retry(r.ctx, func(ctx context.Context) error {
		tx, err := r.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		for _, s := range statements {
			if _, err := tx.ExecContext(ctx, s.query, s.args...); err != nil {
				return err
			}
		}
		return tx.Commit()
	})
}
