package store

import (
	"database/sql"
	"errors"
	"fmt"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// A session is a running coordinator's claim to be alive: a row with a number that it raises again and again. What it holds, jobs and
// duties, names the session as its owner and counts its owners (epoch). No time of any clock stands in these rows: whoever has watched a
// beat stand still for a lease's length on a clock of its own may end that session, which frees all that it held.

// Session is a session's id and beat.
type Session struct {
	ID   string
	Beat int64
}

// Holding names what one coordinator at a time holds: a job, or a duty of the rack. One field is set.
type Holding struct{ Job, Duty string }

// String names a holding as error texts and logs do.
func (h Holding) String() string {
	if h.Job != "" {
		return "job " + h.Job
	}
	return "duty " + h.Duty
}

func (h Holding) row() (table, column, key string) {
	if h.Job != "" {
		return "jobs", "id", h.Job
	}
	return "duties", "name", h.Duty
}

// Fence is one holding by one session: whoever lost it cannot write under it any more.
type Fence struct {
	Holding
	Owner string
	Epoch int64
}

// OpenSession begins a session.
func (t *Tx) OpenSession(id string) error {
	if err := t.exec("INSERT INTO sessions (id, beat, opened) VALUES (?, 0, ?)", id, nanos(t.now)); err != nil {
		return fmt.Errorf("open session %s: %w", id, err)
	}
	return nil
}

// Beat shows that a session lives. ErrFenced when somebody has ended it.
func (t *Tx) Beat(s Session) error {
	n, err := t.change("UPDATE sessions SET beat = ? WHERE id = ?", s.Beat, s.ID)
	if err != nil {
		return fmt.Errorf("keep session %s: %w", s.ID, err)
	}
	if n == 0 {
		return fmt.Errorf("session %s: %w", s.ID, ErrFenced)
	}
	return nil
}

// EndSession ends a session that still stands as it was seen, and so frees what it holds; ok is false when it does not.
func (t *Tx) EndSession(seen Session) (ok bool, err error) {
	n, err := t.change("DELETE FROM sessions WHERE id = ? AND beat = ?", seen.ID, seen.Beat)
	if err != nil {
		return false, fmt.Errorf("end session %s: %w", seen.ID, err)
	}
	return n > 0, nil
}

// CloseSession ends a session for its own coordinator, which does nothing under it any more.
func (t *Tx) CloseSession(id string) error {
	if err := t.exec("DELETE FROM sessions WHERE id = ?", id); err != nil {
		return fmt.Errorf("close session %s: %w", id, err)
	}
	return nil
}

// Sessions reads all sessions.
func (r *Reader) Sessions() ([]Session, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT id, beat FROM sessions")
	if err != nil {
		return nil, fmt.Errorf("read the sessions: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (s Session, err error) { return s, rows.Scan(&s.ID, &s.Beat) })
}

// RunningJob is what of a running job is looked at often.
type RunningJob struct {
	ID, Machine string
	// Revision is raised by every change but progress.
	Revision int64
	// Free says that the asking session holds the job or may claim it.
	Free bool
}

// RunningJobs reads the jobs that have not ended, the oldest first.
func (r *Reader) RunningJobs(session string) ([]RunningJob, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT id, machine, revision, owner NOT IN (SELECT id FROM sessions WHERE id <> ?) FROM jobs WHERE status = ? ORDER BY created",
		session, int64(bloomeryv1.JobStatus_JOB_STATUS_RUNNING))
	if err != nil {
		return nil, fmt.Errorf("read the running jobs: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (j RunningJob, err error) {
		return j, rows.Scan(&j.ID, &j.Machine, &j.Revision, &j.Free)
	})
}

// Claim takes a running job or a duty for a session if no other living session holds it; ok is false when one does. What the session holds
// itself is taken anew: an earlier claim may have been stored although it failed. ErrFenced when the claiming session was ended.
func (t *Tx) Claim(h Holding, session string) (fence Fence, ok bool, err error) {
	var alive int
	if err := t.q.QueryRowContext(t.ctx, "SELECT COUNT(*) FROM sessions WHERE id = ?", session).Scan(&alive); err != nil {
		return Fence{}, false, fmt.Errorf("claim %s: %w", h, err)
	}
	if alive == 0 {
		return Fence{}, false, fmt.Errorf("claim %s: session %s: %w", h, session, ErrFenced)
	}
	if h.Duty != "" {
		if err := t.exec("INSERT INTO duties (name, owner, epoch) VALUES (?, '', 0) ON CONFLICT DO NOTHING", h.Duty); err != nil {
			return Fence{}, false, fmt.Errorf("claim %s: %w", h, err)
		}
	}
	table, column, key := h.row()
	running := ""
	if h.Job != "" {
		running = fmt.Sprintf(" AND status = %d", bloomeryv1.JobStatus_JOB_STATUS_RUNNING)
	}
	n, err := t.change("UPDATE "+table+" SET owner = ?, epoch = epoch + 1 WHERE "+column+" = ? AND owner NOT IN (SELECT id FROM sessions WHERE id <> ?)"+running, session, key, session)
	if err != nil {
		return Fence{}, false, fmt.Errorf("claim %s: %w", h, err)
	}
	if n == 0 {
		return Fence{}, false, nil
	}
	fence = Fence{Holding: h, Owner: session}
	if err := t.q.QueryRowContext(t.ctx, "SELECT epoch FROM "+table+" WHERE "+column+" = ?", key).Scan(&fence.Epoch); err != nil {
		return Fence{}, false, fmt.Errorf("claim %s: %w", h, err)
	}
	return fence, true, nil
}

// ClaimJobs takes those of running jobs for a session that no other living session holds, as Claim does, in two statements for all.
func (t *Tx) ClaimJobs(ids []string, session string) ([]Fence, error) {
	keys, err := list(ids)
	if err != nil {
		return nil, err
	}
	n, err := t.change("UPDATE jobs SET owner = ?, epoch = epoch + 1 WHERE id IN (SELECT value FROM json_each(?)) AND status = ? "+
		"AND owner NOT IN (SELECT id FROM sessions WHERE id <> ?) AND EXISTS (SELECT 1 FROM sessions WHERE id = ?)",
		session, keys, int64(bloomeryv1.JobStatus_JOB_STATUS_RUNNING), session, session)
	if err != nil {
		return nil, fmt.Errorf("claim %d jobs: %w", len(ids), err)
	}
	if n == 0 {
		return nil, nil
	}
	rows, err := t.q.QueryContext(t.ctx, "SELECT id, epoch FROM jobs WHERE owner = ? AND status = ? AND id IN (SELECT value FROM json_each(?))",
		session, int64(bloomeryv1.JobStatus_JOB_STATUS_RUNNING), keys)
	if err != nil {
		return nil, fmt.Errorf("claim %d jobs: %w", len(ids), err)
	}
	return collect(rows, func(rows *sql.Rows) (Fence, error) {
		f := Fence{Owner: session}
		return f, rows.Scan(&f.Job, &f.Epoch)
	})
}

// Check fails with ErrFenced when a fence is not the holder's any more. What else the transaction does is then safe.
func (t *Tx) Check(f Fence) error {
	table, column, key := f.row()
	var owner string
	var epoch int64
	err := t.q.QueryRowContext(t.ctx, "SELECT owner, epoch FROM "+table+" WHERE "+column+" = ?", key).Scan(&owner, &epoch)
	if errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("%s: %w", f.Holding, ErrFenced)
	}
	if err != nil {
		return fmt.Errorf("read who holds %s: %w", f.Holding, err)
	}
	if owner != f.Owner || epoch != f.Epoch {
		return fmt.Errorf("%s: %w", f.Holding, ErrFenced)
	}
	return nil
}

// Yield gives a holding up, so that another session may take it at once. Whoever lost it yields nothing.
func (t *Tx) Yield(f Fence) error {
	table, column, key := f.row()
	if err := t.exec("UPDATE "+table+" SET owner = '' WHERE "+column+" = ? AND owner = ? AND epoch = ?", key, f.Owner, f.Epoch); err != nil {
		return fmt.Errorf("give up %s: %w", f.Holding, err)
	}
	return nil
}

// change runs a statement and says how many rows it changed.
func (t *Tx) change(query string, args ...any) (int64, error) {
	result, err := t.tx.ExecContext(t.ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}
