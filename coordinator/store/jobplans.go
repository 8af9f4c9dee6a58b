package store

import (
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
)

// JobPlan is what an install with a layout makes of the machine's disks, and what opens them.
type JobPlan struct {
	// Plan is bloomery.plan/v1, JSON; it holds no secrets and stays on record with its job.
	Plan []byte
	// Secrets by name; nil once the job has ended.
	Secrets map[string][]byte
}

// sealedPlan is what a job's secrets are bound to; no machine has such a name.
func sealedPlan(jobID string) string { return "job/" + jobID }

// CreateJobPlan stores the plan of a new job, and seals its secrets.
func (t *Tx) CreateJobPlan(jobID string, p JobPlan) error {
	var sealed []byte
	if len(p.Secrets) > 0 {
		plain, err := json.Marshal(p.Secrets)
		if err != nil {
			return fmt.Errorf("encode the secrets of job %s: %w", jobID, err)
		}
		if sealed, err = t.sealer.seal(string(plain), sealedPlan(jobID)); err != nil {
			return err
		}
	}
	if err := t.exec("INSERT INTO job_plans (job_id, plan, secrets) VALUES (?, ?, ?)", jobID, p.Plan, nullableBytes(sealed)); err != nil {
		return fmt.Errorf("store the plan of job %s: %w", jobID, err)
	}
	return nil
}

// JobPlan reads a job's plan without its secrets; ErrNotFound for a job that has none.
func (r *Reader) JobPlan(jobID string) ([]byte, error) {
	p, _, err := r.jobPlan(jobID)
	return p, err
}

// JobTarget reads a job's plan with its secrets in clear; ErrNotFound for a job that has no plan.
func (r *Reader) JobTarget(jobID string) (JobPlan, error) {
	plan, sealed, err := r.jobPlan(jobID)
	if err != nil || len(sealed) == 0 {
		return JobPlan{Plan: plan}, err
	}
	plain, err := r.sealer.open(sealed, sealedPlan(jobID))
	if err != nil {
		return JobPlan{}, fmt.Errorf("read the secrets of job %s: %w", jobID, err)
	}
	p := JobPlan{Plan: plan}
	if err := json.Unmarshal([]byte(plain), &p.Secrets); err != nil {
		return JobPlan{}, fmt.Errorf("decode the secrets of job %s: not what was stored", jobID) // the cause might quote one
	}
	return p, nil
}

func (r *Reader) jobPlan(jobID string) (plan, sealed []byte, err error) {
	err = r.q.QueryRowContext(r.ctx, "SELECT plan, secrets FROM job_plans WHERE job_id = ?", jobID).Scan(&plan, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil, fmt.Errorf("plan of job %s: %w", jobID, ErrNotFound)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the plan of job %s: %w", jobID, err)
	}
	return plan, sealed, nil
}

// DropJobSecrets forgets the secrets of a job that ends.
func (t *Tx) DropJobSecrets(jobID string) error {
	if err := t.exec("UPDATE job_plans SET secrets = NULL WHERE job_id = ?", jobID); err != nil {
		return fmt.Errorf("drop the secrets of job %s: %w", jobID, err)
	}
	return nil
}
