package store

import (
	"bytes"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// ErrArchiveDiffers says that a coordinator would archive something else than what is on record.
var ErrArchiveDiffers = errors.New("the archive's record says otherwise")

// Segment is a part of the event archive: the events of a range of sequence numbers, as JSON lines in a file on every coordinator.
type Segment struct {
	First, Last int64
	Events      int
	// SHA256 is of the uncompressed lines; Chain of the chain value before, followed by SHA256.
	SHA256, Chain []byte
	// Newest is the time of the newest event in it.
	Newest, Created time.Time
	// Dropped says that its files were removed; the row before the first that is there anchors the chain.
	Dropped bool
	// Copies are the names of the coordinators that hold its file.
	Copies []string
}

// Segments reads the segments that end after a sequence number, in order, with those who hold them.
func (r *Reader) Segments(after int64) ([]*Segment, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT first, last, events, sha256, chain, newest, created, dropped FROM archive_segments WHERE last > ? ORDER BY first", after)
	if err != nil {
		return nil, fmt.Errorf("read the archive's segments: %w", err)
	}
	all, err := collect(rows, func(rows *sql.Rows) (*Segment, error) {
		s := &Segment{}
		var newest, created, dropped int64
		if err := rows.Scan(&s.First, &s.Last, &s.Events, &s.SHA256, &s.Chain, &newest, &created, &dropped); err != nil {
			return nil, err
		}
		s.Newest, s.Created, s.Dropped = fromNanos(newest), fromNanos(created), dropped != 0
		return s, nil
	})
	if err != nil || len(all) == 0 {
		return all, err
	}
	type held struct {
		first int64
		node  string
	}
	rows, err = r.q.QueryContext(r.ctx, "SELECT first, node FROM archive_copies WHERE first >= ? ORDER BY first, node", all[0].First)
	if err != nil {
		return nil, fmt.Errorf("read the archive's copies: %w", err)
	}
	copies, err := collect(rows, func(rows *sql.Rows) (c held, err error) { return c, rows.Scan(&c.first, &c.node) })
	if err != nil {
		return nil, err
	}
	for _, s := range all {
		for len(copies) > 0 && copies[0].first < s.First {
			copies = copies[1:]
		}
		for len(copies) > 0 && copies[0].first == s.First {
			s.Copies = append(s.Copies, copies[0].node)
			copies = copies[1:]
		}
	}
	return all, nil
}

// LastSegment reads the newest segment; nil when there is none.
func (r *Reader) LastSegment() (*Segment, error) {
	var last int64
	if err := r.q.QueryRowContext(r.ctx, "SELECT COALESCE(MAX(last), 0) FROM archive_segments").Scan(&last); err != nil || last == 0 {
		return nil, err
	}
	all, err := r.Segments(last - 1)
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[len(all)-1], nil
}

// OldestEvent returns the lowest sequence number that is in the database; 0 when none is.
func (r *Reader) OldestEvent() (sequence int64, err error) {
	return sequence, r.q.QueryRowContext(r.ctx, "SELECT COALESCE(MIN(sequence), 0) FROM events").Scan(&sequence)
}

// AddSegment puts a segment on record, together with the first copy; it may be there already if it is the same one.
func (t *Tx) AddSegment(s *Segment, node string) error {
	last, err := t.LastSegment()
	if err != nil {
		return err
	}
	if last != nil && s.First <= last.Last {
		all, err := t.Segments(s.First - 1)
		if err != nil {
			return err
		}
		if len(all) == 0 || all[0].First != s.First || all[0].Last != s.Last || !bytes.Equal(all[0].Chain, s.Chain) {
			return fmt.Errorf("segment of events %d to %d: %w", s.First, s.Last, ErrArchiveDiffers)
		}
		return t.AddCopy(s.First, node)
	}
	if last != nil && s.First != last.Last+1 {
		return fmt.Errorf("segment of events %d to %d does not follow %d: %w", s.First, s.Last, last.Last, ErrArchiveDiffers)
	}
	if err := t.exec("INSERT INTO archive_segments (first, last, events, sha256, chain, newest, created, dropped) VALUES (?, ?, ?, ?, ?, ?, ?, 0)",
		s.First, s.Last, s.Events, s.SHA256, s.Chain, nanos(s.Newest), nanos(t.now)); err != nil {
		return err
	}
	return t.AddCopy(s.First, node)
}

// AddCopy notes that a coordinator holds a segment's file.
func (t *Tx) AddCopy(first int64, node string) error {
	return t.exec("INSERT INTO archive_copies (first, node) VALUES (?, ?) ON CONFLICT DO NOTHING", first, node)
}

// DropCopy notes that a coordinator does not hold a segment's file.
func (t *Tx) DropCopy(first int64, node string) error {
	return t.exec("DELETE FROM archive_copies WHERE first = ? AND node = ?", first, node)
}

// DropSegments gives up segments up to a sequence number. The last one's row stays, as the anchor of the chain.
func (t *Tx) DropSegments(upTo int64) error {
	return errors.Join(
		t.exec("UPDATE archive_segments SET dropped = 1 WHERE last = ?", upTo),
		t.exec("DELETE FROM archive_segments WHERE last < ?", upTo),
		t.exec("DELETE FROM archive_copies WHERE first <= ?", upTo),
	)
}
