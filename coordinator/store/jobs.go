package store

import (
	"database/sql"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

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
	saved *savedJob
}

// savedJob is a job without its steps, and its steps without their specs, as they are stored.
type savedJob struct {
	job       *bloomeryv1.Job
	round     int
	token     bool
	phoned    time.Time
	steps     []*bloomeryv1.Step
	stepBoots []string
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
		spec, err := protojson.Marshal(&bloomeryv1.Step{Spec: s.GetSpec()})
		if err != nil {
			return fmt.Errorf("encode step %s: %w", s.GetId(), err)
		}
		state, err := protojson.Marshal(stepState(s))
		if err != nil {
			return fmt.Errorf("encode step %s: %w", s.GetId(), err)
		}
		if err := t.exec("INSERT INTO steps (id, job_id, idx, boot_id, spec, body) VALUES (?, ?, ?, '', ?, ?)", s.GetId(), j.GetId(), i, spec, state); err != nil {
			return fmt.Errorf("store step %s: %w", s.GetId(), err)
		}
	}
	return nil
}

// SaveJob stores a job that was read in this transaction, and those of its steps that have changed.
func (t *Tx) SaveJob(j *Job) error { return t.SaveJobs([]*Job{j}) }

// SaveJobs stores jobs that were read in this transaction: what of them has changed.
func (t *Tx) SaveJobs(jobs []*Job) error {
	var rows, steps [][]any
	for _, j := range jobs {
		if j.Moved() {
			body, err := jobBody(j.Job)
			if err != nil {
				return fmt.Errorf("encode job %s: %w", j.GetId(), err)
			}
			rows = append(rows, []any{j.GetId(), int64(j.GetStatus()), int64(j.BootRound), int64(0), nanos(j.Phoned), string(body)})
			if j.TokenHash != nil {
				rows[len(rows)-1][3] = int64(1)
			}
		}
		for i, s := range j.GetSteps() {
			if j.StepBoots[i] == j.saved.stepBoots[i] && proto.Equal(stepState(s), j.saved.steps[i]) {
				continue
			}
			state, err := protojson.Marshal(stepState(s))
			if err != nil {
				return fmt.Errorf("encode step %s: %w", s.GetId(), err)
			}
			steps = append(steps, []any{s.GetId(), j.StepBoots[i], string(state)})
		}
	}
	if err := t.execRows("UPDATE jobs SET status = r.value->>1, boot_round = r.value->>2, token_hash = CASE r.value->>3 WHEN 1 THEN token_hash END, phoned = r.value->>4, "+
		"body = CAST(r.value->>5 AS BLOB), revision = revision + 1 FROM json_each(?) r WHERE jobs.id = r.value->>0", rows); err != nil {
		return fmt.Errorf("store %d jobs: %w", len(rows), err)
	}
	if err := t.execRows("UPDATE steps SET boot_id = r.value->>1, body = CAST(r.value->>2 AS BLOB) FROM json_each(?) r WHERE steps.id = r.value->>0", steps); err != nil {
		return fmt.Errorf("store %d steps: %w", len(steps), err)
	}
	for _, j := range jobs {
		j.remember()
	}
	return nil
}

// TouchJob tells the job's driver, wherever it is, that something it looks at has changed.
func (t *Tx) TouchJob(id string) error {
	if err := t.exec("UPDATE jobs SET revision = revision + 1 WHERE id = ?", id); err != nil {
		return fmt.Errorf("touch job %s: %w", id, err)
	}
	return nil
}

// Moved says that more of a job than the progress of its steps differs from what is stored.
func (j *Job) Moved() bool {
	was := j.saved
	if j.BootRound != was.round || (j.TokenHash != nil) != was.token || !j.Phoned.Equal(was.phoned) || !slices.Equal(j.StepBoots, was.stepBoots) || !proto.Equal(withoutSteps(j.Job), was.job) {
		return true
	}
	for i, s := range j.GetSteps() {
		if s.GetStatus() != was.steps[i].GetStatus() || s.GetAttempts() != was.steps[i].GetAttempts() {
			return true
		}
	}
	return false
}

// Drove adds to the time for which a job has been driven.
func (t *Tx) Drove(id string, d time.Duration) error {
	return t.exec("UPDATE jobs SET driven = driven + ? WHERE id = ?", int64(d), id)
}

func (j *Job) remember() {
	j.saved = &savedJob{job: proto.CloneOf(withoutSteps(j.Job)), round: j.BootRound, token: j.TokenHash != nil, phoned: j.Phoned, stepBoots: slices.Clone(j.StepBoots)}
	for _, s := range j.GetSteps() {
		j.saved.steps = append(j.saved.steps, proto.CloneOf(stepState(s)))
	}
}

// withoutSteps is a job's own fields, in a copy that shares what they point to.
func withoutSteps(j *bloomeryv1.Job) *bloomeryv1.Job {
	c := &bloomeryv1.Job{}
	j.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.Name() != "steps" {
			c.ProtoReflect().Set(f, v)
		}
		return true
	})
	return c
}

// stepState is what of a step changes, in a copy that shares what it points to.
func stepState(s *bloomeryv1.Step) *bloomeryv1.Step {
	c := &bloomeryv1.Step{}
	s.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if f.ContainingOneof() == nil {
			c.ProtoReflect().Set(f, v)
		}
		return true
	})
	return c
}

func jobBody(j *bloomeryv1.Job) ([]byte, error) { return protojson.Marshal(withoutSteps(j)) }

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

// JobsByID reads jobs with their steps; one that is not there is not in the answer.
func (r *Reader) JobsByID(ids []string) (map[string]*Job, error) {
	if len(ids) == 0 {
		return nil, nil
	}
	keys, err := list(ids)
	if err != nil {
		return nil, err
	}
	jobs, err := r.jobs("SELECT "+jobColumns+" FROM jobs WHERE id IN (SELECT value FROM json_each(?))", keys)
	if err != nil {
		return nil, err
	}
	byID := make(map[string]*Job, len(jobs))
	for _, j := range jobs {
		byID[j.GetId()] = j
	}
	return byID, nil
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
	if err := r.addSteps(jobs); err != nil {
		return nil, fmt.Errorf("read the steps of jobs: %w", err)
	}
	return jobs, nil
}

// addSteps reads the steps of jobs. A step's spec never changes: it is decoded once.
func (r *Reader) addSteps(jobs []*Job) error {
	if len(jobs) == 0 {
		return nil
	}
	byID, ids := make(map[string]*Job, len(jobs)), make([]string, 0, len(jobs))
	for _, j := range jobs {
		byID[j.GetId()] = j
		ids = append(ids, j.GetId())
	}
	keys, err := list(ids)
	if err != nil {
		return err
	}
	rows, err := r.q.QueryContext(r.ctx, "SELECT id, job_id, body, boot_id FROM steps WHERE job_id IN (SELECT value FROM json_each(?)) ORDER BY job_id, idx", keys)
	if err != nil {
		return err
	}
	var unknown []string
	steps, err := collect(rows, func(rows *sql.Rows) (*bloomeryv1.Step, error) {
		s := &bloomeryv1.Step{}
		var id, jobID, bootID string
		var body []byte
		if err := rows.Scan(&id, &jobID, &body, &bootID); err != nil {
			return nil, err
		}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, s); err != nil {
			return nil, fmt.Errorf("decode step %s: %w", id, err)
		}
		if spec := r.specs.get(id); spec != nil {
			s.Spec = spec.GetSpec()
		} else {
			unknown = append(unknown, id)
		}
		j := byID[jobID]
		j.Steps, j.StepBoots = append(j.Steps, s), append(j.StepBoots, bootID)
		return s, nil
	})
	if err != nil {
		return err
	}
	if err := r.addSpecs(steps, unknown); err != nil {
		return err
	}
	for _, j := range jobs {
		j.remember()
	}
	return nil
}

func (r *Reader) addSpecs(steps []*bloomeryv1.Step, unknown []string) error {
	if len(unknown) == 0 {
		return nil
	}
	keys, err := list(unknown)
	if err != nil {
		return err
	}
	rows, err := r.q.QueryContext(r.ctx, "SELECT id, spec FROM steps WHERE id IN (SELECT value FROM json_each(?))", keys)
	if err != nil {
		return err
	}
	read := map[string]*bloomeryv1.Step{}
	if _, err := collect(rows, func(rows *sql.Rows) (struct{}, error) {
		s := &bloomeryv1.Step{}
		var id string
		var spec []byte
		if err := rows.Scan(&id, &spec); err != nil {
			return struct{}{}, err
		}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(spec, s); err != nil {
			return struct{}{}, fmt.Errorf("decode the spec of step %s: %w", id, err)
		}
		read[id] = s
		r.specs.put(id, s, len(spec))
		return struct{}{}, nil
	}); err != nil {
		return err
	}
	for _, s := range steps {
		if s.GetSpec() == nil {
			s.Spec = read[s.GetId()].GetSpec()
		}
	}
	return nil
}
