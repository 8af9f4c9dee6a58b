package store

import (
	"database/sql"
	"fmt"
	"time"
)

// Action is one thing that a driver does for a job: written as intended before it is done and as done after.
// What is intended and not done when a coordinator starts is looked at again.
type Action struct {
	// Scope is what the action belongs to: a boot round or a step's attempt. Kind is unique in it.
	Scope, Kind string
	Done        time.Time
	Intended    time.Time
	// Tries counts how often it was begun; Error is why the last try failed.
	Tries int
	Error string
}

// Actions reads what a job's drivers did or meant to do.
func (r *Reader) Actions(jobID string) ([]Action, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT scope, kind, done, intended, tries, error FROM actions WHERE job_id = ? ORDER BY intended", jobID)
	if err != nil {
		return nil, fmt.Errorf("read the actions of job %s: %w", jobID, err)
	}
	return collect(rows, func(rows *sql.Rows) (Action, error) {
		var a Action
		var done, intended int64
		err := rows.Scan(&a.Scope, &a.Kind, &done, &intended, &a.Tries, &a.Error)
		a.Done, a.Intended = fromNanos(done), fromNanos(intended)
		return a, err
	})
}

// Intend notes that an action is about to be tried.
func (t *Tx) Intend(jobID, scope, kind string) error {
	return t.exec("INSERT INTO actions (job_id, scope, kind, done, tries, intended, error) VALUES (?, ?, ?, 0, 1, ?, '') ON CONFLICT (job_id, scope, kind) DO UPDATE SET tries = tries + 1, intended = excluded.intended",
		jobID, scope, kind, nanos(t.now))
}

// Outcome notes how a try of an action ended; an empty text means that it is done.
func (t *Tx) Outcome(jobID, scope, kind, failure string) error {
	done := nanos(t.now)
	if failure != "" {
		done = 0
	}
	return t.exec("UPDATE actions SET done = ?, error = ? WHERE job_id = ? AND scope = ? AND kind = ?", done, failure, jobID, scope, kind)
}
