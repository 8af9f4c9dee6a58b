package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// snapshotTimeout bounds one snapshot: it holds back dqlite's checkpoints, so whoever takes one must not wait for slow readers.
const snapshotTimeout = 2 * time.Minute

// ownTables are the store's bookkeeping: a restored database makes its own.
var ownTables = []string{"operations", "schema_versions"}

// Snapshot is the whole database at one moment, without meaning: tables, columns and values.
type Snapshot struct {
	// Schema is the version of the schema.
	Schema int
	Tables []Table
	reader *Reader
}

// Table is one table of a snapshot.
type Table struct {
	Name    string
	Columns []string
	// Sequence is the last number that the table gave away; nil for tables that do not number their rows.
	Sequence *int64
}

// Snapshot calls f with everything that is stored. f may be called again after a failure that passes.
func (s *Store) Snapshot(ctx context.Context, f func(*Snapshot) error) error {
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	for pause := firstPause; ; pause = min(2*pause, longPause) {
		err := s.snapshot(ctx, f)
		if err == nil || !passes(err) || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

func (s *Store) snapshot(ctx context.Context, f func(*Snapshot) error) error {
	tx, err := s.read.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	snapshot := &Snapshot{reader: &Reader{ctx: ctx, q: tx}}
	if err := tx.QueryRowContext(ctx, "SELECT MAX(version) FROM schema_versions").Scan(&snapshot.Schema); err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if snapshot.Tables, err = tables(ctx, tx); err != nil {
		return err
	}
	return f(snapshot)
}

// tables lists the tables that hold what a rack knows.
func tables(ctx context.Context, q querier) ([]Table, error) {
	sequences := map[string]int64{}
	numbered, err := q.QueryContext(ctx, "SELECT name, seq FROM sqlite_sequence")
	if err != nil {
		return nil, fmt.Errorf("read the tables' sequences: %w", err)
	}
	if _, err := collect(numbered, func(rows *sql.Rows) (struct{}, error) {
		var name string
		var last int64
		err := rows.Scan(&name, &last)
		sequences[name] = last
		return struct{}{}, err
	}); err != nil {
		return nil, fmt.Errorf("read the tables' sequences: %w", err)
	}
	rows, err := q.QueryContext(ctx, `SELECT t.name, c.name FROM sqlite_master t JOIN pragma_table_info(t.name) c
WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite\_%' ESCAPE '\' ORDER BY t.name, c.cid`)
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	columns, err := collect(rows, func(rows *sql.Rows) (c [2]string, err error) {
		err = rows.Scan(&c[0], &c[1])
		return c, err
	})
	if err != nil {
		return nil, fmt.Errorf("list the tables: %w", err)
	}
	var all []Table
	for _, c := range columns {
		if slices.Contains(ownTables, c[0]) {
			continue
		}
		if len(all) == 0 || all[len(all)-1].Name != c[0] {
			all = append(all, Table{Name: c[0]})
			if last, ok := sequences[c[0]]; ok {
				all[len(all)-1].Sequence = &last
			}
		}
		all[len(all)-1].Columns = append(all[len(all)-1].Columns, c[1])
	}
	return all, nil
}

// Rows calls f with each row of a table: its values are nil, int64, float64, string or []byte, and f's only until it returns.
func (s *Snapshot) Rows(table Table, f func(values []any) error) error {
	rows, err := s.reader.q.QueryContext(s.reader.ctx, "SELECT "+quotedList(table.Columns)+" FROM "+quoted(table.Name))
	if err != nil {
		return fmt.Errorf("read table %s: %w", table.Name, err)
	}
	defer func() { _ = rows.Close() }()
	values, targets := make([]any, len(table.Columns)), make([]any, len(table.Columns))
	for i := range values {
		targets[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(targets...); err != nil {
			return fmt.Errorf("read table %s: %w", table.Name, err)
		}
		if err := f(values); err != nil {
			return err
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read table %s: %w", table.Name, err)
	}
	return nil
}

// quoted is a name as SQL takes it.
func quoted(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func quotedList(names []string) string {
	all := make([]string, len(names))
	for i, name := range names {
		all[i] = quoted(name)
	}
	return strings.Join(all, ", ")
}
