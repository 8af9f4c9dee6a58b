package store

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// maxInventories is how many states of a machine's hardware are kept; dqlite holds them in memory, tens of KiB each.
const maxInventories = 20

// Inventory is one state of a machine's hardware. Body is nil where only the times were asked for.
type Inventory struct {
	Taken, Seen time.Time
	JobID       string
	Body        *structpb.Struct
}

// AddInventory stores a new state of a machine's hardware and drops the oldest above the bound.
func (t *Tx) AddInventory(machine, jobID string, body *structpb.Struct) error {
	data, err := proto.Marshal(body)
	if err != nil {
		return fmt.Errorf("encode the inventory of machine %s: %w", machine, err)
	}
	// A clock that went back must not put the new state before the old one.
	if err := t.exec("INSERT INTO inventories (machine, taken, seen, job_id, body) VALUES (?, MAX(?, 1 + (SELECT COALESCE(MAX(taken), 0) FROM inventories WHERE machine = ?)), ?, ?, ?)",
		machine, nanos(t.now), machine, nanos(t.now), jobID, data); err != nil {
		return fmt.Errorf("store the inventory of machine %s: %w", machine, err)
	}
	return t.exec("DELETE FROM inventories WHERE machine = ? AND taken NOT IN (SELECT taken FROM inventories WHERE machine = ? ORDER BY taken DESC LIMIT ?)",
		machine, machine, maxInventories)
}

// SawInventory notes that the last state of a machine's hardware was found again.
func (t *Tx) SawInventory(machine string) error {
	return t.exec("UPDATE inventories SET seen = ? WHERE machine = ? AND taken = (SELECT MAX(taken) FROM inventories WHERE machine = ?)", nanos(t.now), machine, machine)
}

// Inventory reads the state of a machine's hardware that was known at a time, the last one for the zero time. ErrNotFound when there is none.
func (r *Reader) Inventory(machine string, at time.Time) (*Inventory, error) {
	latest := nanos(at)
	if at.IsZero() {
		latest = 1<<63 - 1
	}
	var taken, seen int64
	var data []byte
	i := &Inventory{Body: &structpb.Struct{}}
	err := r.q.QueryRowContext(r.ctx, "SELECT taken, seen, job_id, body FROM inventories WHERE machine = ? AND taken <= ? ORDER BY taken DESC LIMIT 1", machine, latest).Scan(&taken, &seen, &i.JobID, &data)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("inventory of machine %s: %w", machine, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read the inventory of machine %s: %w", machine, err)
	}
	i.Taken, i.Seen = fromNanos(taken), fromNanos(seen)
	if err := proto.Unmarshal(data, i.Body); err != nil {
		return nil, fmt.Errorf("decode the inventory of machine %s: %w", machine, err)
	}
	return i, nil
}

// Inventories reads when a machine's hardware changed, newest first, without the inventories themselves.
func (r *Reader) Inventories(machine string) ([]Inventory, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT taken, seen, job_id FROM inventories WHERE machine = ? ORDER BY taken DESC", machine)
	if err != nil {
		return nil, fmt.Errorf("read the inventories of machine %s: %w", machine, err)
	}
	return collect(rows, func(rows *sql.Rows) (Inventory, error) {
		var i Inventory
		var taken, seen int64
		err := rows.Scan(&taken, &seen, &i.JobID)
		i.Taken, i.Seen = fromNanos(taken), fromNanos(seen)
		return i, err
	})
}

// WithInventory reads a machine together with the last state of its hardware, if any is known.
func (r *Reader) WithInventory(name string) (*bloomeryv1.Machine, error) {
	m, err := r.Machine(name)
	if err != nil {
		return nil, err
	}
	i, err := r.Inventory(name, time.Time{})
	if errors.Is(err, ErrNotFound) {
		return m, nil
	}
	if err != nil {
		return nil, err
	}
	m.Inventory = i.Body
	return m, nil
}
