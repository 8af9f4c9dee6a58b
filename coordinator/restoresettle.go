package coordinator

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// maxRunningJobs bounds how many are read: a machine has one job at a time.
const maxRunningJobs = 100_000

// settle decides about running jobs and records the restore.
func (r *restore) settle(ctx context.Context, db *store.Store) error {
	err := db.View(ctx, func(s *store.Reader) error {
		jobs, err := s.Jobs(store.JobFilter{Status: bloomeryv1.JobStatus_JOB_STATUS_RUNNING, Limit: maxRunningJobs})
		r.done.Jobs = nil
		for _, j := range jobs {
			r.done.Jobs = append(r.done.Jobs, j.GetId())
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read the running jobs: %w", err)
	}
	if len(r.done.Jobs) > 0 && r.o.RunningJobs == "" {
		return fmt.Errorf("jobs %v were running when the backup was made at %s: say whether to continue them, which powers their machines and may write their disks again, "+
			"or to fail them, which makes the machines faulty until somebody has looked at them", r.done.Jobs, r.done.Header.GetCreatedAt().AsTime().Format(time.RFC3339))
	}
	if r.o.RunningJobs == FailJobs {
		for _, id := range r.done.Jobs {
			if err := db.Update(ctx, func(tx *store.Tx) error { return failRestored(tx, id) }); err != nil {
				return fmt.Errorf("fail job %s: %w", id, err)
			}
		}
	}
	return db.Update(ctx, func(tx *store.Tx) error {
		h := r.done.Header
		// The coordinators that held images are gone; those that are still here find theirs again.
		if err := tx.DropImageCopies(""); err != nil {
			return err
		}
		ch := newChange(tx)
		if err := ch.note(&bloomeryv1.Event{Type: "rack.restored", Severity: bloomeryv1.Severity_SEVERITY_SECURITY,
			Message: fmt.Sprintf("rack %s was restored from the backup of %s", h.GetRack(), h.GetCreatedAt().AsTime().Format(time.RFC3339))},
			map[string]any{"created": h.GetCreatedAt().AsTime().Format(time.RFC3339), "node": h.GetNode(), "version": h.GetVersion(), "running_jobs": len(r.done.Jobs)}); err != nil {
			return err
		}
		return ch.flush()
	})
}

// succeed makes this node the only coordinator on record. With a fresh certificate, the one of a node of the same name that made the backup
// no longer opens the database.
func (r *restore) succeed(tx *store.Tx, fresh bool) error {
	nodes, err := tx.Nodes()
	if err != nil {
		return err
	}
	for _, n := range nodes {
		switch {
		case n.Name != r.config.Node && n.Present():
			n.Removed, n.Address = tx.Now(), ""
		case n.Name == r.config.Node:
			n.Removed = time.Time{}
			if fresh {
				n.NotBefore = tx.Now()
			}
		}
		if err := tx.SaveNode(n); err != nil {
			return fmt.Errorf("take coordinator %s off the record: %w", n.Name, err)
		}
	}
	return nil
}

// forgetArchive gives up archived events whose files are not here, and which no coordinator can have any more.
func (r *restore) forgetArchive(tx *store.Tx) error {
	segments, err := tx.Segments(0)
	if err != nil {
		return err
	}
	oldest, err := tx.OldestEvent()
	if err != nil {
		return err
	}
	r.done.EventsLost = 0
	for _, s := range segments {
		if s.Dropped || s.First >= oldest && oldest > 0 {
			continue
		}
		if _, err := readSegmentFile(filepath.Join(r.config.Data, archiveFolder), s); err != nil {
			r.done.EventsLost = s.Last
		}
	}
	if r.done.EventsLost == 0 {
		return nil
	}
	return tx.DropSegments(r.done.EventsLost)
}

// restoredFault is the fault code of a machine whose job was failed by a restore.
const restoredFault = "RESTORED"

func failRestored(tx *store.Tx, id string) error {
	ch := newChange(tx)
	j, m, err := ch.jobAndMachine(id)
	if err != nil {
		return err
	}
	j.ErrorReason, j.Error = restoredFault, "the rack was restored from a backup that was made while this job ran"
	m.FaultCode, m.FaultMessage = restoredFault, "its job "+id+" was cut off by a restore: look at the machine and its disks before it is used"
	if err := ch.endJob(j, m, Condemned, bloomeryv1.JobStatus_JOB_STATUS_FAILED); err != nil {
		return err
	}
	return ch.flush()
}
