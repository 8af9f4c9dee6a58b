package store

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store/storetest"
)

// dumped is a snapshot in memory.
type dumped struct {
	schema int
	tables []Table
	rows   map[string][][]any
}

func dump(t *testing.T, s *Store) (d dumped) {
	t.Helper()
	err := s.Snapshot(t.Context(), func(snapshot *Snapshot) error {
		d = dumped{snapshot.Schema, snapshot.Tables, map[string][][]any{}}
		for _, table := range snapshot.Tables {
			err := snapshot.Rows(table, func(values []any) error {
				d.rows[table.Name] = append(d.rows[table.Name], slices.Clone(values))
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (d dumped) fill(r *Restorer) error {
	for _, table := range d.tables {
		if err := r.Table(table); err != nil {
			return err
		}
		for _, row := range d.rows[table.Name] {
			if err := r.Row(slices.Clone(row)); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestRestoreIsTheSnapshot(t *testing.T) {
	dir := t.TempDir()
	storetest.Unpack(t, schema1, dir)
	s := openSchema1(t, dir)
	// Rows that are large, empty and many.
	for i := range 3 {
		update(t, s, func(tx *Tx) error {
			for j := range 300 {
				if err := tx.AppendEvent(&bloomeryv1.Event{Type: "test.bulk", Message: fmt.Sprint(i, j)}, ""); err != nil {
					return err
				}
			}
			return tx.AppendEvent(&bloomeryv1.Event{Type: "test.large", Message: strings.Repeat("x", 300<<10)}, "")
		})
	}
	update(t, s, func(tx *Tx) error {
		return errors.Join(
			tx.exec("INSERT INTO views (name, body) VALUES ('empty', X'')"),
			tx.exec("DELETE FROM events WHERE sequence = (SELECT MAX(sequence) FROM events)"),
			tx.exec("INSERT INTO node_certificates (node, authority, not_after) VALUES ('c1', 'a', 1)"),
		)
	})
	want := dump(t, s)
	var last int64
	for _, table := range want.tables {
		if table.Name == "events" {
			last = *table.Sequence
		}
	}
	closed(t, s)

	restored, err := Restore(t.Context(), Options{Dir: filepath.Join(t.TempDir(), "db"), SecretFile: filepath.Join(dir, "secret.key"), Logger: s.log}, want.schema, want.fill)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, restored)
	got := dump(t, restored)
	for _, table := range want.tables {
		wantRows := want.rows[table.Name]
		if slices.Contains(aboutNodes, table.Name) {
			wantRows = nil
		}
		if len(got.rows[table.Name]) != len(wantRows) {
			t.Errorf("table %s has %d rows, want %d", table.Name, len(got.rows[table.Name]), len(wantRows))
			continue
		}
		for i, row := range wantRows {
			if fmt.Sprintf("%T %v", row, row) != fmt.Sprintf("%T %v", got.rows[table.Name][i], got.rows[table.Name][i]) {
				t.Errorf("table %s, row %d: %.200v, want %.200v", table.Name, i, got.rows[table.Name][i], row)
			}
		}
	}
	if blob, ok := got.rows["views"][0][1].([]byte); !ok || !bytes.Equal(blob, []byte{}) {
		t.Errorf("an empty blob came back as %#v", got.rows["views"][0][1])
	}
	checkSchema1(t, restored)
	update(t, restored, func(tx *Tx) error { return tx.AppendEvent(&bloomeryv1.Event{Type: "test.next"}, "") })
	err = restored.View(t.Context(), func(r *Reader) error {
		events, err := r.Events(EventFilter{TypePrefix: "test.next", Limit: 1})
		if err == nil && events[0].GetSequence() != last+1 {
			t.Errorf("the next event has number %d, want %d: the last one's was deleted, and must not come again", events[0].GetSequence(), last+1)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestRestoreOfAnEarlierSchema(t *testing.T) {
	dir := t.TempDir()
	storetest.Unpack(t, schema1, dir)
	s, err := openAt(t.Context(), schema1Options(dir), 1)
	if err != nil {
		t.Fatal(err)
	}
	old := dump(t, s)
	closed(t, s)
	if old.schema != 1 {
		t.Fatalf("schema version %d, want 1", old.schema)
	}
	s, err = Restore(t.Context(), Options{Dir: filepath.Join(t.TempDir(), "db"), SecretFile: filepath.Join(dir, "secret.key"), Logger: s.log}, 1, old.fill)
	if err != nil {
		t.Fatal(err)
	}
	defer closed(t, s)
	checkSchema1(t, s)
	all, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	if now := dump(t, s).schema; now != len(all) {
		t.Errorf("schema version %d, want %d", now, len(all))
	}
}

func TestRestoreRefuses(t *testing.T) {
	all, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		schema int
		fill   func(*Restorer) error
		says   string
	}{
		"newer schema":   {len(all) + 1, nil, "use a newer bloomeryd"},
		"unknown table":  {len(all), func(r *Restorer) error { return r.Table(Table{Name: "x; DROP", Columns: []string{"a"}}) }, "not of this schema"},
		"unknown column": {len(all), func(r *Restorer) error { return r.Table(Table{Name: "views", Columns: []string{"name", "b"}}) }, `want ["name" "body"]`},
		"short row": {len(all), func(r *Restorer) error {
			return errors.Join(r.Table(Table{Name: "views", Columns: []string{"name", "body"}}), r.Row([]any{"x"}))
		}, "of 2 columns"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := Restore(t.Context(), schema1Options(dir), tc.schema, tc.fill)
			if err == nil {
				closed(t, s)
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%q does not say %q", err, tc.says)
			}
		})
	}
}
