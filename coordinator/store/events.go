package store

import (
	"database/sql"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// EventFilter chooses events; zero fields choose all.
type EventFilter struct {
	Machine, JobID, TypePrefix string
	Since                      time.Time
	// After is a sequence number: only events above it. UpTo, unless 0, is the last one.
	After, UpTo int64
	Limit       int
}

// KeyedEvent is an event with the key that keeps it from being stored twice; an empty one keeps nothing.
type KeyedEvent struct {
	*bloomeryv1.Event
	Key string
}

// AppendEvent stores an event; its sequence number and, unless set, its time are the store's.
// An event with a key that is there already changes nothing.
func (t *Tx) AppendEvent(e *bloomeryv1.Event, key string) error {
	return t.AppendEvents([]KeyedEvent{{e, key}})
}

// AppendEvents stores events in their order.
func (t *Tx) AppendEvents(events []KeyedEvent) error {
	rows := make([][]any, 0, len(events))
	for _, e := range events {
		at := t.now
		if e.GetTime() != nil {
			at = e.GetTime().AsTime()
		}
		var data any
		if e.GetData() != nil {
			text, err := protojson.Marshal(e.GetData())
			if err != nil {
				return fmt.Errorf("encode event %s: %w", e.GetType(), err)
			}
			data = string(text)
		}
		rows = append(rows, []any{nanos(at), e.GetType(), int64(e.GetSeverity()), e.GetMachine(), e.GetJobId(), e.GetStepId(), e.GetMessage(), data, nullable(e.Key), e.GetActor(), e.GetSource()})
	}
	return t.execRows(`INSERT INTO events (time, type, severity, machine, job_id, step_id, message, data, key, actor, source)
SELECT `+columns(7)+`, CAST(value->>7 AS BLOB), value->>8, value->>9, value->>10 FROM json_each(?) WHERE true ORDER BY key ON CONFLICT DO NOTHING`, rows)
}

// Events reads events in the order in which they were stored.
func (r *Reader) Events(f EventFilter) ([]*bloomeryv1.Event, error) {
	rows, err := r.q.QueryContext(r.ctx, `SELECT sequence, time, type, severity, machine, job_id, step_id, message, data, actor, source FROM events
WHERE sequence > ? AND (? = 0 OR sequence <= ?) AND (? = '' OR machine = ?) AND (? = '' OR job_id = ?) AND (? = '' OR substr(type, 1, ?) = ?) AND time >= ? ORDER BY sequence LIMIT ?`,
		f.After, f.UpTo, f.UpTo, f.Machine, f.Machine, f.JobID, f.JobID, f.TypePrefix, len(f.TypePrefix), f.TypePrefix, nanos(f.Since), f.Limit)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (*bloomeryv1.Event, error) {
		e := &bloomeryv1.Event{}
		var at, severity int64
		var data []byte
		if err := rows.Scan(&e.Sequence, &at, &e.Type, &severity, &e.Machine, &e.JobId, &e.StepId, &e.Message, &data, &e.Actor, &e.Source); err != nil {
			return nil, err
		}
		e.Time, e.Severity = timestamppb.New(fromNanos(at)), bloomeryv1.Severity(severity)
		if len(data) > 0 {
			e.Data = &structpb.Struct{}
			if err := protojson.Unmarshal(data, e.Data); err != nil {
				return nil, fmt.Errorf("decode event %d: %w", e.GetSequence(), err)
			}
		}
		return e, nil
	})
}

// pruneBatch is how many rows one transaction deletes at most: each may touch a page of 4 KiB in each of its table's indexes, and dqlite fails
// above about 1 MB.
const pruneBatch = 64

// DeleteEvents deletes the oldest events up to a sequence number, some at a time, and says whether there may be more.
func (t *Tx) DeleteEvents(upTo int64) (more bool, err error) {
	return t.deleteSome("DELETE FROM events WHERE sequence IN (SELECT sequence FROM events WHERE sequence <= ? ORDER BY sequence LIMIT ?)", upTo)
}

// PruneNotes drops the notes that make calls idempotent once nobody can repeat them, some at a time, and says whether there may be more.
func (t *Tx) PruneNotes(before time.Time) (more bool, err error) {
	for _, d := range []struct {
		query string
		limit time.Time
	}{
		{"DELETE FROM operations WHERE rowid IN (SELECT rowid FROM operations WHERE created < ? ORDER BY rowid LIMIT ?)", before},
		{"DELETE FROM reports WHERE rowid IN (SELECT rowid FROM reports WHERE updated < ? LIMIT ?)", before.Add(-7 * 24 * time.Hour)},
		{"DELETE FROM requests WHERE rowid IN (SELECT rowid FROM requests WHERE created < ? LIMIT ?)", before.Add(-7 * 24 * time.Hour)},
	} {
		again, err := t.deleteSome(d.query, nanos(d.limit))
		if err != nil {
			return false, fmt.Errorf("prune notes: %w", err)
		}
		more = more || again
	}
	return more, nil
}

func (t *Tx) deleteSome(query string, limit int64) (more bool, err error) {
	result, err := t.tx.ExecContext(t.ctx, query, limit, pruneBatch)
	if err != nil {
		return false, err
	}
	n, err := result.RowsAffected()
	return n >= pruneBatch, err
}
