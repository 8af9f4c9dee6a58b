package store

import (
	"database/sql"
	"errors"
	"fmt"
)

// ReportState is what decides over an agent's reports.
type ReportState struct {
	// Boot is nil when the machine is not expected to run the agent.
	Boot *Boot
	// Acknowledged is the highest stored sequence number of this boot's reports.
	Acknowledged int64
}

// ReportStates reads the boots of machines and how far each boot's reports are stored. A machine without a boot is not in the answer.
func (r *Reader) ReportStates(machines []string) (map[string]ReportState, error) {
	keys, err := list(machines)
	if err != nil {
		return nil, err
	}
	rows, err := r.q.QueryContext(r.ctx, `SELECT b.machine, `+bootColumns+`, COALESCE(a.acknowledged, 0) FROM boots b
LEFT JOIN reports a ON a.machine = b.machine AND a.boot_id = b.boot_id WHERE b.machine IN (SELECT value FROM json_each(?))`, keys)
	if err != nil {
		return nil, fmt.Errorf("read the boots of %d machines: %w", len(machines), err)
	}
	all, err := collect(rows, func(rows *sql.Rows) (s ReportState, err error) {
		s.Boot = &Boot{}
		return s, scanBoot(s.Boot, func(into ...any) error {
			return rows.Scan(append(append([]any{&s.Boot.Machine}, into...), &s.Acknowledged)...)
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the boots of %d machines: %w", len(machines), err)
	}
	states := make(map[string]ReportState, len(all))
	for _, s := range all {
		states[s.Boot.Machine] = s
	}
	return states, nil
}

// Acknowledged returns the highest sequence number of a boot's reports that is stored; 0 when none is.
func (r *Reader) Acknowledged(machine, bootID string) (int64, error) {
	var n int64
	err := r.q.QueryRowContext(r.ctx, "SELECT acknowledged FROM reports WHERE machine = ? AND boot_id = ?", machine, bootID).Scan(&n)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read what of machine %s is acknowledged: %w", machine, err)
	}
	return n, nil
}

// Acknowledgement is how far the reports of a machine's boot are stored.
type Acknowledgement struct {
	Machine, BootID string
	Sequence        int64
}

// SetAcknowledged raises the highest stored sequence numbers of boots' reports.
func (t *Tx) SetAcknowledged(all []Acknowledgement) error {
	rows := make([][]any, 0, len(all))
	for _, a := range all {
		rows = append(rows, []any{a.Machine, a.BootID, a.Sequence, nanos(t.now)})
	}
	if err := t.execRows("INSERT INTO reports (machine, boot_id, acknowledged, updated) SELECT "+columns(4)+
		" FROM json_each(?) WHERE true ON CONFLICT (machine, boot_id) DO UPDATE SET acknowledged = excluded.acknowledged, updated = excluded.updated", rows); err != nil {
		return fmt.Errorf("store what is acknowledged: %w", err)
	}
	return nil
}

// Heard notes that the agents of machines' present boots called.
func (t *Tx) Heard(machines []string) error {
	if len(machines) == 0 {
		return nil
	}
	keys, err := list(machines)
	if err != nil {
		return err
	}
	if err := t.exec("UPDATE boots SET heard = ? WHERE machine IN (SELECT value FROM json_each(?))", nanos(t.now), keys); err != nil {
		return fmt.Errorf("note that %d agents were heard: %w", len(machines), err)
	}
	return nil
}
