package store

import (
	"database/sql"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// Job is a job with what only the coordinator knows of it.
type Job struct {
	*bloomeryv1.Job
	// Driven is for how long coordinators have driven the job, by their own clocks; what the present one has not counted yet is missing.
	Driven time.Duration
	// BootRound counts how often the job has powered the machine into the agent.
	BootRound int
	// TokenHash is SHA-256 of the phone-home token; nil without one, or once it was used.
	TokenHash []byte
	// Phoned is when the installed system phoned home.
	Phoned time.Time
	// StepBoots holds, by step index, the boot id that a step was given to last.
	StepBoots []string
	// saved is what is stored, to write only what has changed.
	saved []*bloomeryv1.Step
	boots []string
}

// Current returns the step that runs or will run next; nil after the last.
func (j *Job) Current() *bloomeryv1.Step {
	if i := int(j.GetStepIndex()); i >= 0 && i < len(j.GetSteps()) {
		return j.GetSteps()[i]
	}
	return nil
}

// JobFilter chooses jobs; zero fields choose all.
type JobFilter struct {
	Machine string
	Status  bloomeryv1.JobStatus
	// Before is where the page before ended.
	Before *JobPosition
	Limit  int
}

// JobPosition is a place in the list of jobs, newest first.
type JobPosition struct {
	Created time.Time
	ID      string
}

// CreateJob stores a new job with its steps, never changed but in their state.
func (t *Tx) CreateJob(j *Job) error {
	body, err := jobBody(j.Job)
	if err != nil {
		return err
	}
	err = t.exec("INSERT INTO jobs (id, machine, kind, status, created, driven, boot_round, token_hash, phoned, owner, epoch, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, '', 0, ?)",
		j.GetId(), j.GetMachine(), int64(j.GetKind()), int64(j.GetStatus()), nanos(j.GetCreatedAt().AsTime()), int64(j.Driven), j.BootRound, nullableBytes(j.TokenHash), body)
	if err != nil {
		return fmt.Errorf("store job %s: %w", j.GetId(), err)
	}
	for i, s := range j.GetSteps() {
		spec, state, err := splitStep(s)
		if err != nil {
			return err
		}
		if err := t.exec("INSERT INTO steps (id, job_id, idx, boot_id, spec, body) VALUES (?, ?, ?, '', ?, ?)", s.GetId(), j.GetId(), i, spec, state); err != nil {
			return fmt.Errorf("store step %s: %w", s.GetId(), err)
		}
	}
	return nil
}

// SaveJob stores a job that was read in this transaction, and those of its steps that have changed.
func (t *Tx) SaveJob(j *Job) error {
	body, err := jobBody(j.Job)
	if err != nil {
		return err
	}
	if err := t.exec("UPDATE jobs SET status = ?, boot_round = ?, token_hash = ?, phoned = ?, body = ? WHERE id = ?",
		int64(j.GetStatus()), j.BootRound, nullableBytes(j.TokenHash), nanos(j.Phoned), body, j.GetId()); err != nil {
		return fmt.Errorf("store job %s: %w", j.GetId(), err)
	}
	for i, s := range j.GetSteps() {
		if proto.Equal(s, j.saved[i]) && j.StepBoots[i] == j.boots[i] {
			continue
		}
		_, state, err := splitStep(s)
		if err != nil {
			return err
		}
		if err := t.exec("UPDATE steps SET boot_id = ?, body = ? WHERE id = ?", j.StepBoots[i], state, s.GetId()); err != nil {
			return fmt.Errorf("store step %s: %w", s.GetId(), err)
		}
	}
	return nil
}

func jobBody(j *bloomeryv1.Job) ([]byte, error) {
	c := proto.Clone(j).(*bloomeryv1.Job)
	c.Steps = nil
	return protojson.Marshal(c)
}

// splitStep separates what never changes (the spec, up to 64 KiB of user data) from the state, which often does.
func splitStep(s *bloomeryv1.Step) (spec, state []byte, err error) {
	onlySpec := &bloomeryv1.Step{Spec: s.GetSpec()}
	if spec, err = protojson.Marshal(onlySpec); err != nil {
		return nil, nil, fmt.Errorf("encode step %s: %w", s.GetId(), err)
	}
	rest := proto.Clone(s).(*bloomeryv1.Step)
	rest.Spec = nil
	if state, err = protojson.Marshal(rest); err != nil {
		return nil, nil, fmt.Errorf("encode step %s: %w", s.GetId(), err)
	}
	return spec, state, nil
}

// Drove adds to the time for which a job has been driven.
func (t *Tx) Drove(id string, d time.Duration) error {
	return t.exec("UPDATE jobs SET driven = driven + ? WHERE id = ?", int64(d), id)
}

const jobColumns = "id, body, driven, boot_round, token_hash, phoned"

// Job reads one job with its steps.
func (r *Reader) Job(id string) (*Job, error) {
	return r.jobBy("SELECT "+jobColumns+" FROM jobs WHERE id = ?", id)
}

// JobByToken reads the job whose phone-home token has a hash; ErrNotFound when none has.
func (r *Reader) JobByToken(hash []byte) (*Job, error) {
	return r.jobBy("SELECT "+jobColumns+" FROM jobs WHERE token_hash = ?", hash)
}

// JobByRequest reads the job that an earlier call with the same request key made.
func (r *Reader) JobByRequest(key string) (*Job, error) {
	return r.jobBy("SELECT "+jobColumns+" FROM jobs WHERE id = (SELECT job_id FROM requests WHERE id = ?)", key)
}

// SaveRequest remembers which job a request key made.
func (t *Tx) SaveRequest(key, jobID string) error {
	return t.exec("INSERT INTO requests (id, job_id, created) VALUES (?, ?, ?)", key, jobID, nanos(t.now))
}

func (r *Reader) jobBy(query string, args ...any) (*Job, error) {
	jobs, err := r.jobs(query, args...)
	if err != nil {
		return nil, err
	}
	if len(jobs) == 0 {
		return nil, fmt.Errorf("job: %w", ErrNotFound)
	}
	return jobs[0], nil
}

// Jobs reads jobs, newest first.
func (r *Reader) Jobs(f JobFilter) ([]*Job, error) {
	before, id := int64(1<<62), ""
	if f.Before != nil {
		before, id = nanos(f.Before.Created), f.Before.ID
	}
	return r.jobs("SELECT "+jobColumns+" FROM jobs WHERE (created < ? OR (created = ? AND id < ?)) AND (? = '' OR machine = ?) AND (? = 0 OR status = ?) ORDER BY created DESC, id DESC LIMIT ?",
		before, before, id, f.Machine, f.Machine, int64(f.Status), int64(f.Status), f.Limit)
}

func (r *Reader) jobs(query string, args ...any) ([]*Job, error) {
	rows, err := r.q.QueryContext(r.ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	jobs, err := collect(rows, func(rows *sql.Rows) (*Job, error) {
		j := &Job{Job: &bloomeryv1.Job{}}
		var id string
		var body []byte
		var phoned int64
		if err := rows.Scan(&id, &body, &j.Driven, &j.BootRound, &j.TokenHash, &phoned); err != nil {
			return nil, err
		}
		j.Phoned = fromNanos(phoned)
		return j, (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, j.Job)
	})
	if err != nil {
		return nil, fmt.Errorf("read jobs: %w", err)
	}
	for _, j := range jobs {
		if err := r.steps(j); err != nil {
			return nil, fmt.Errorf("read the steps of job %s: %w", j.GetId(), err)
		}
	}
	return jobs, nil
}

func (r *Reader) steps(j *Job) error {
	rows, err := r.q.QueryContext(r.ctx, "SELECT spec, body, boot_id FROM steps WHERE job_id = ? ORDER BY idx", j.GetId())
	if err != nil {
		return err
	}
	j.Steps, err = collect(rows, func(rows *sql.Rows) (*bloomeryv1.Step, error) {
		var spec, body []byte
		var bootID string
		if err := rows.Scan(&spec, &body, &bootID); err != nil {
			return nil, err
		}
		s, onlySpec := &bloomeryv1.Step{}, &bloomeryv1.Step{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, s); err != nil {
			return nil, err
		}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(spec, onlySpec); err != nil {
			return nil, err
		}
		s.Spec = onlySpec.GetSpec()
		j.saved = append(j.saved, proto.Clone(s).(*bloomeryv1.Step))
		j.StepBoots = append(j.StepBoots, bootID)
		j.boots = append(j.boots, bootID)
		return s, nil
	})
	return err
}
