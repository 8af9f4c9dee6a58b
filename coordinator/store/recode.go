package store

import (
	"context"
	"database/sql"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// oldMachine tells a machine that was stored before schema version 4: as JSON, with its inventory inside. No message's first byte is '{'.
const oldMachine = "substr(body, 1, 1) = x'7b'"

// recodeMachines brings machines of before schema version 4 to their present form. It may be interrupted, and done on several nodes at
// once: each machine is a transaction of its own (an inventory may take 256 KiB), and one that was done is not found again.
func recodeMachines(ctx context.Context, db *sql.DB) error {
	var names []string
	err := retry(ctx, func(ctx context.Context) error {
		rows, err := db.QueryContext(ctx, "SELECT name FROM machines WHERE "+oldMachine)
		if err != nil {
			return err
		}
		names, err = collect(rows, func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) })
		return err
	})
	if err != nil {
		return fmt.Errorf("find machines of an earlier version: %w", err)
	}
	for _, name := range names {
		if err := retry(ctx, func(ctx context.Context) error { return recodeMachine(ctx, db, name) }); err != nil {
			return fmt.Errorf("bring machine %s to the present form: %w", name, err)
		}
	}
	return nil
}

func recodeMachine(ctx context.Context, db *sql.DB, name string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	rows, err := tx.QueryContext(ctx, "SELECT body, updated FROM machines WHERE name = ? AND "+oldMachine, name)
	if err != nil {
		return err
	}
	type stored struct {
		body    []byte
		updated int64
	}
	found, err := collect(rows, func(rows *sql.Rows) (s stored, err error) { return s, rows.Scan(&s.body, &s.updated) })
	if err != nil || len(found) == 0 {
		return err
	}
	m := &bloomeryv1.Machine{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(found[0].body, m); err != nil {
		return fmt.Errorf("decode it: %w", err)
	}
	if m.GetInventory() != nil {
		data, err := proto.Marshal(m.GetInventory())
		if err != nil {
			return fmt.Errorf("encode its inventory: %w", err)
		}
		product := m.GetInventory().GetFields()["product"].GetStructValue().GetFields()
		m.Model, m.Serial = product["name"].GetStringValue(), product["serial"].GetStringValue()
		// When it was taken is not on record; not after the machine changed last.
		if _, err := tx.ExecContext(ctx, "INSERT INTO inventories (machine, taken, seen, job_id, body) VALUES (?, ?, ?, '', ?) ON CONFLICT DO NOTHING",
			name, found[0].updated, found[0].updated, data); err != nil {
			return fmt.Errorf("move its inventory: %w", err)
		}
	}
	body, err := machineBody(m)
	if err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE machines SET body = ? WHERE name = ?", body, name); err != nil {
		return err
	}
	return tx.Commit()
}
