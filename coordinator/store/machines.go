package store

import (
	"database/sql"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// MachineFilter chooses machines; zero fields choose all.
type MachineFilter struct {
	Status   bloomeryv1.MachineStatus
	LockTeam string
	// After is the last name of the page before.
	After string
	Limit int
}

// CreateMachine stores a new machine. It returns ErrExists, wrapped with what is taken, when its name, UUID or a MAC is.
func (t *Tx) CreateMachine(m *bloomeryv1.Machine, bmcPassword string) error {
	sealed, err := t.sealer.seal(bmcPassword, m.GetName())
	if err != nil {
		return err
	}
	if _, err := t.Machine(m.GetName()); err == nil {
		return fmt.Errorf("name %s: %w", m.GetName(), ErrExists)
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	for _, mac := range m.GetMacs() {
		other, err := t.MachineByMAC(mac)
		if err == nil {
			return fmt.Errorf("MAC address %s (machine %s): %w", mac, other.GetName(), ErrExists)
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		if err := t.exec("INSERT INTO machine_macs (mac, machine) VALUES (?, ?)", mac, m.GetName()); err != nil {
			return fmt.Errorf("store MAC address %s: %w", mac, err)
		}
	}
	m.CreatedAt, m.UpdatedAt = timestamppb.New(t.now), timestamppb.New(t.now)
	body, err := machineBody(m)
	if err != nil {
		return err
	}
	err = t.exec("INSERT INTO machines (name, uuid, status, lock_team, job_id, bmc_password, created, updated, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
		m.GetName(), nullable(m.GetUuid()), int64(m.GetStatus()), m.GetLock().GetTeam(), m.GetJobId(), sealed, nanos(t.now), nanos(t.now), body)
	if isUnique(err) {
		return fmt.Errorf("UUID %s: %w", m.GetUuid(), ErrExists)
	}
	return err
}

// SaveMachine stores a machine that was read in this transaction; its name and MACs do not change.
func (t *Tx) SaveMachine(m *bloomeryv1.Machine) error {
	m.UpdatedAt = timestamppb.New(t.now)
	body, err := machineBody(m)
	if err != nil {
		return err
	}
	err = t.exec("UPDATE machines SET uuid = ?, status = ?, lock_team = ?, job_id = ?, updated = ?, body = ? WHERE name = ?",
		nullable(m.GetUuid()), int64(m.GetStatus()), m.GetLock().GetTeam(), m.GetJobId(), nanos(t.now), body, m.GetName())
	if isUnique(err) {
		return fmt.Errorf("UUID %s: %w", m.GetUuid(), ErrExists)
	}
	return err
}

// machineBody never holds the BMC's password.
func machineBody(m *bloomeryv1.Machine) ([]byte, error) {
	c := proto.Clone(m).(*bloomeryv1.Machine)
	if c.GetBmc() != nil {
		c.Bmc.Password = ""
	}
	return protojson.Marshal(c)
}

// Machine reads one machine by its name.
func (r *Reader) Machine(name string) (*bloomeryv1.Machine, error) {
	return r.machine("SELECT body FROM machines WHERE name = ?", name)
}

// MachineByMAC reads the machine that has a MAC address (lower case with colons).
func (r *Reader) MachineByMAC(mac string) (*bloomeryv1.Machine, error) {
	return r.machine("SELECT m.body FROM machines m JOIN machine_macs a ON a.machine = m.name WHERE a.mac = ?", mac)
}

func (r *Reader) machine(query, key string) (*bloomeryv1.Machine, error) {
	var body []byte
	err := r.q.QueryRowContext(r.ctx, query, key).Scan(&body)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("machine %s: %w", key, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read machine %s: %w", key, err)
	}
	return decodeMachine(body)
}

func decodeMachine(body []byte) (*bloomeryv1.Machine, error) {
	m := &bloomeryv1.Machine{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("decode a machine: %w", err)
	}
	return m, nil
}

// Machines reads machines sorted by name.
func (r *Reader) Machines(f MachineFilter) ([]*bloomeryv1.Machine, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT body FROM machines WHERE name > ? AND (? = 0 OR status = ?) AND (? = '' OR lock_team = ?) ORDER BY name LIMIT ?",
		f.After, int64(f.Status), int64(f.Status), f.LockTeam, f.LockTeam, f.Limit)
	if err != nil {
		return nil, fmt.Errorf("read machines: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (*bloomeryv1.Machine, error) {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			return nil, err
		}
		return decodeMachine(body)
	})
}

// BMCPassword reads a machine's BMC password in clear.
func (r *Reader) BMCPassword(name string) (string, error) {
	var sealed []byte
	err := r.q.QueryRowContext(r.ctx, "SELECT bmc_password FROM machines WHERE name = ?", name).Scan(&sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("machine %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("read the BMC password of machine %s: %w", name, err)
	}
	return r.sealer.open(sealed, name)
}

// collect reads all rows; a cursor that is left open would block a reader of the pool.
func collect[T any](rows *sql.Rows, scan func(*sql.Rows) (T, error)) ([]T, error) {
	defer func() { _ = rows.Close() }()
	var all []T
	for rows.Next() {
		v, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}

// nullableBytes keeps nothing from being stored as an empty value, which a unique index would take for a duplicate.
func nullableBytes(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}
