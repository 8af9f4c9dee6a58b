package store

import (
	"database/sql"
	"fmt"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// Counts is how much of everything there is.
type Counts struct {
	Machines map[bloomeryv1.MachineStatus]int64
	Jobs     map[JobCount]int64
	// Events are those in the database; Newest is the highest sequence number that was given.
	Events, Newest int64
	// Segments and Archived are the archive's files and the events in them; Missing are the files that the node of the question lacks.
	Segments, Archived, Missing int64
}

// JobCount is what jobs are counted by.
type JobCount struct {
	Kind   bloomeryv1.JobKind
	Status bloomeryv1.JobStatus
}

// Counts counts; node is the one whose archive is looked at.
func (r *Reader) Counts(node string) (Counts, error) {
	c := Counts{Machines: map[bloomeryv1.MachineStatus]int64{}, Jobs: map[JobCount]int64{}}
	err := r.q.QueryRowContext(r.ctx, `SELECT (SELECT COUNT(*) FROM events), `+newestEvent+`, COUNT(*), COALESCE(SUM(s.events), 0),
COALESCE(SUM(NOT EXISTS (SELECT 1 FROM archive_copies c WHERE c.first = s.first AND c.node = ?)), 0) FROM archive_segments s WHERE dropped = 0`, node).
		Scan(&c.Events, &c.Newest, &c.Segments, &c.Archived, &c.Missing)
	if err != nil {
		return c, fmt.Errorf("count events: %w", err)
	}
	rows, err := r.q.QueryContext(r.ctx, "SELECT status, 0, COUNT(*), 0 FROM machines GROUP BY status UNION ALL SELECT status, kind, COUNT(*), 1 FROM jobs GROUP BY kind, status")
	if err != nil {
		return c, fmt.Errorf("count machines and jobs: %w", err)
	}
	_, err = collect(rows, func(rows *sql.Rows) (struct{}, error) {
		var status, kind, n, job int64
		if err := rows.Scan(&status, &kind, &n, &job); err != nil {
			return struct{}{}, err
		}
		if job == 0 {
			c.Machines[bloomeryv1.MachineStatus(status)] = n
		} else {
			c.Jobs[JobCount{bloomeryv1.JobKind(kind), bloomeryv1.JobStatus(status)}] = n
		}
		return struct{}{}, nil
	})
	return c, err
}
