package store

import (
	"database/sql"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// nextChange numbers the changes of machines and their removals in one order, in which a watcher reads them.
const nextChange = "1 + MAX((SELECT COALESCE(MAX(changed), 0) FROM machines), (SELECT COALESCE(MAX(changed), 0) FROM machine_removals))"

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
	if err := t.addMACs(m.GetName(), m.GetMacs()); err != nil {
		return err
	}
	// No machine of this name that was removed before had a higher revision: each of its changes was counted here too.
	var change int64
	if err := t.q.QueryRowContext(t.ctx, "SELECT "+nextChange).Scan(&change); err != nil {
		return fmt.Errorf("number a change: %w", err)
	}
	m.CreatedAt, m.UpdatedAt, m.Revision = timestamppb.New(t.now), timestamppb.New(t.now), change
	body, err := machineBody(m)
	if err != nil {
		return err
	}
	if err := t.exec("DELETE FROM machine_removals WHERE name = ?", m.GetName()); err != nil {
		return fmt.Errorf("store machine %s: %w", m.GetName(), err)
	}
	err = t.exec("INSERT INTO machines (name, uuid, status, lock_team, job_id, bmc_password, created, updated, changed, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		m.GetName(), nullable(m.GetUuid()), int64(m.GetStatus()), m.GetLock().GetTeam(), m.GetJobId(), sealed, nanos(t.now), nanos(t.now), change, body)
	if isUnique(err) {
		return fmt.Errorf("UUID %s: %w", m.GetUuid(), ErrExists)
	}
	return err
}

// SaveMachine stores a machine that was read in this transaction, but for its inventory and its BMC's password. Its name does not
// change, and a change of its MACs is SetMACs'.
func (t *Tx) SaveMachine(m *bloomeryv1.Machine) error {
	m.UpdatedAt = timestamppb.New(t.now)
	m.Revision++
	body, err := machineBody(m)
	if err != nil {
		return err
	}
	err = t.exec("UPDATE machines SET uuid = ?, status = ?, lock_team = ?, job_id = ?, updated = ?, changed = "+nextChange+", body = ? WHERE name = ?",
		nullable(m.GetUuid()), int64(m.GetStatus()), m.GetLock().GetTeam(), m.GetJobId(), nanos(t.now), body, m.GetName())
	if isUnique(err) {
		return fmt.Errorf("UUID %s: %w", m.GetUuid(), ErrExists)
	}
	return err
}

// SetMACs replaces a machine's MAC addresses in the index, with the leases of those that it has no more. ErrExists when another has one.
func (t *Tx) SetMACs(name string, macs []string) error {
	if err := t.exec("DELETE FROM machine_macs WHERE machine = ?", name); err != nil {
		return fmt.Errorf("drop the MAC addresses of machine %s: %w", name, err)
	}
	if err := t.addMACs(name, macs); err != nil {
		return err
	}
	return t.exec("DELETE FROM leases WHERE machine = ? AND mac NOT IN (SELECT mac FROM machine_macs WHERE machine = ?)", name, name)
}

func (t *Tx) addMACs(name string, macs []string) error {
	for _, mac := range macs {
		other, err := t.MachineByMAC(mac)
		if err == nil {
			return fmt.Errorf("MAC address %s (machine %s): %w", mac, other.GetName(), ErrExists)
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		if err := t.exec("INSERT INTO machine_macs (mac, machine) VALUES (?, ?)", mac, name); err != nil {
			return fmt.Errorf("store MAC address %s: %w", mac, err)
		}
	}
	return nil
}

// SetBMCPassword seals a machine's BMC password; an empty one is forgotten.
func (t *Tx) SetBMCPassword(name, password string) error {
	sealed, err := t.sealer.seal(password, name)
	if err != nil {
		return err
	}
	return t.exec("UPDATE machines SET bmc_password = ? WHERE name = ?", sealed, name)
}

// DeleteMachine forgets a machine and what belongs to it alone; its jobs and events stay on record.
func (t *Tx) DeleteMachine(name string) error {
	for _, query := range []string{
		"INSERT INTO machine_removals (name, changed) VALUES (?, " + nextChange + ") ON CONFLICT (name) DO UPDATE SET changed = excluded.changed",
		"DELETE FROM machines WHERE name = ?",
		"DELETE FROM machine_macs WHERE machine = ?",
		"DELETE FROM leases WHERE machine = ?",
		"DELETE FROM addresses WHERE machine = ?",
		"DELETE FROM boots WHERE machine = ?",
		"DELETE FROM reports WHERE machine = ?",
		"DELETE FROM inventories WHERE machine = ?",
	} {
		if err := t.exec(query, name); err != nil {
			return fmt.Errorf("delete machine %s: %w", name, err)
		}
	}
	return nil
}

// machineBody is the stored form: never with the BMC's password, and without the inventory, which has a table of its own.
func machineBody(m *bloomeryv1.Machine) ([]byte, error) {
	c := proto.CloneOf(m)
	c.Inventory = nil
	if c.GetBmc() != nil {
		c.Bmc.Password = ""
	}
	body, err := proto.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode machine %s: %w", m.GetName(), err)
	}
	return body, nil
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
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("decode a machine: %w", err)
	}
	if m.GetDiskSerial() != "" && len(m.GetCustomerDisks()) == 0 {
		// Stored before schema version 8, when a machine had one disk for a customer.
		m.CustomerDisks = []*bloomeryv1.DiskRef{{Serial: m.GetDiskSerial()}}
	}
	return m, nil
}

// Machines reads all machines, sorted by name. A rack has a thousand at most, so which of them are wanted is decided by its callers.
func (r *Reader) Machines() ([]*bloomeryv1.Machine, error) {
	return r.machines("SELECT body FROM machines ORDER BY name")
}

func (r *Reader) machines(query string, args ...any) ([]*bloomeryv1.Machine, error) {
	rows, err := r.q.QueryContext(r.ctx, query, args...)
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

// MachineChange is where a reader of changes stands: all up to this number were seen.
type MachineChange int64

// LastMachineChange is the newest change of any machine.
func (r *Reader) LastMachineChange() (MachineChange, error) {
	var next int64
	if err := r.q.QueryRowContext(r.ctx, "SELECT "+nextChange).Scan(&next); err != nil {
		return 0, fmt.Errorf("read the last change of a machine: %w", err)
	}
	return MachineChange(next - 1), nil
}

// MachineChanges reads the machines that changed after a number, as they are now, and the names of those that were removed after it.
func (r *Reader) MachineChanges(after MachineChange) (changed []*bloomeryv1.Machine, removed []string, err error) {
	if changed, err = r.machines("SELECT body FROM machines WHERE changed > ? ORDER BY changed", int64(after)); err != nil {
		return nil, nil, err
	}
	rows, err := r.q.QueryContext(r.ctx, "SELECT name FROM machine_removals WHERE changed > ? ORDER BY changed", int64(after))
	if err != nil {
		return nil, nil, fmt.Errorf("read removed machines: %w", err)
	}
	removed, err = collect(rows, func(rows *sql.Rows) (name string, err error) { return name, rows.Scan(&name) })
	return changed, removed, err
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
