package coordinator

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/firmware/bmc"
)

// powerOffTimeout bounds switching a machine off whose job failed; the job ends whether or not it works.
const powerOffTimeout = 10 * time.Second

// newRound ends what the last boot was allowed and counts another.
func (d *driver) newRound(ctx context.Context, a Action) error {
	return d.write(ctx, func(ch *change) error {
		j, err := ch.Job(d.fence.Job)
		if err != nil {
			return err
		}
		j.BootRound++
		if err := ch.DeleteBoot(j.GetMachine()); err != nil {
			return err
		}
		if a.Message != "" {
			if err := ch.note(&bloomeryv1.Event{
				Type: "machine.reboot", Severity: bloomeryv1.Severity_SEVERITY_WARNING, Machine: j.GetMachine(), JobId: j.GetId(), StepId: j.Current().GetId(),
				Message: fmt.Sprintf("machine %s is booted into the agent again: %s", j.GetMachine(), a.Message),
			}, map[string]any{"boot": j.BootRound}); err != nil {
				return err
			}
		}
		return ch.saveJob(j)
	})
}

func (d *driver) startStep(ctx context.Context) error {
	return d.write(ctx, func(ch *change) error {
		j, err := ch.Job(d.fence.Job)
		if err != nil {
			return err
		}
		return startStep(ch, j, "")
	})
}

// startStep marks the current step as running; the event names the attempt.
func startStep(ch *change, j *store.Job, bootID string) error {
	s := j.Current()
	if s.GetStartedAt() == nil {
		s.StartedAt = timestamppb.New(ch.Now())
	}
	s.Status = bloomeryv1.StepStatus_STEP_STATUS_RUNNING
	s.Attempts++
	j.StepBoots[s.GetIndex()] = bootID
	if err := ch.note(&bloomeryv1.Event{Type: "step.started", Machine: j.GetMachine(), JobId: j.GetId(), StepId: s.GetId(), Message: "step " + stepName(s) + " started"},
		map[string]any{"step": stepName(s), "attempt": float64(s.GetAttempts())}); err != nil {
		return err
	}
	return ch.saveJob(j)
}

func (d *driver) finishStep(ctx context.Context) error {
	return d.write(ctx, func(ch *change) error {
		j, err := ch.Job(d.fence.Job)
		if err != nil {
			return err
		}
		return finishStep(ch, j, "")
	})
}

// finishStep marks the current step as done and goes on to the next one.
func finishStep(ch *change, j *store.Job, key string) error {
	s := j.Current()
	s.Status, s.FinishedAt = bloomeryv1.StepStatus_STEP_STATUS_DONE, timestamppb.New(ch.Now())
	j.StepIndex++
	data := map[string]any{"step": stepName(s), "seconds": s.GetFinishedAt().AsTime().Sub(s.GetStartedAt().AsTime()).Seconds()}
	if s.GetWriteImage() != nil || s.GetUnpackImage() != nil {
		data["written_bytes"] = s.GetResult().GetFields()["bytes"].GetNumberValue()
	}
	if err := ch.noteKeyed(&bloomeryv1.Event{Type: "step.done", Machine: j.GetMachine(), JobId: j.GetId(), StepId: s.GetId(), Message: "step " + stepName(s) + " done"},
		data, key); err != nil {
		return err
	}
	return ch.saveJob(j)
}

// finishJob ends a job whose steps are all done.
func (d *driver) finishJob(ctx context.Context) error {
	return d.write(ctx, func(ch *change) error {
		j, m, err := ch.jobAndMachine(d.fence.Job)
		if err != nil || j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING {
			return err
		}
		var event LifecycleEvent
		switch j.GetKind() {
		case bloomeryv1.JobKind_JOB_KIND_INSPECT:
			event = InspectPassed
		case bloomeryv1.JobKind_JOB_KIND_INSTALL:
			event = InstallDone
			m.Image = installedImage(j)
		case bloomeryv1.JobKind_JOB_KIND_RELEASE:
			event = ReleaseDone
			m.Image, m.Address = "", ""
			setCustomerDisks(m, nil)
			if err := ch.ReleaseAddresses(m.GetName()); err != nil {
				return err
			}
		}
		m.FaultCode, m.FaultMessage = "", ""
		return ch.endJob(j, m, event, bloomeryv1.JobStatus_JOB_STATUS_DONE)
	})
}

// endJob ends a job that failed or was cancelled. The machine is switched off first: nobody watches over it any more.
func (d *driver) endJob(ctx context.Context, m *bloomeryv1.Machine, status bloomeryv1.JobStatus, reason, message string) error {
	off, cancel := context.WithTimeout(ctx, powerOffTimeout)
	powerErr := d.c.withBMC(off, m, func(b bmc.Driver) error { return powerOff(off, b) })
	cancel()
	return d.write(ctx, func(ch *change) error {
		j, m, err := ch.jobAndMachine(d.fence.Job)
		if err != nil || j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING {
			return err
		}
		j.Error, j.ErrorReason = clipTo(message, 2000), reason
		if s := j.Current(); s.GetStatus() == bloomeryv1.StepStatus_STEP_STATUS_RUNNING {
			s.Status, s.FinishedAt = bloomeryv1.StepStatus_STEP_STATUS_FAILED, timestamppb.New(ch.Now())
			s.Error, s.ErrorReason = j.GetError(), reason
		}
		event := failureEvent(j.GetKind())
		switch {
		case m.GetFaultCode() != "":
			event = Condemned
		case event == ReleaseFailed:
			m.FaultCode, m.FaultMessage = "RELEASE_FAILED", j.GetError()
		case event == InstallFailed:
			m.Image, m.Address = "", ""
			if err := ch.ReleaseAddresses(m.GetName()); err != nil {
				return err
			}
		}
		if powerErr != nil {
			if err := ch.note(&bloomeryv1.Event{Type: "power.error", Severity: bloomeryv1.Severity_SEVERITY_WARNING, Machine: m.GetName(), JobId: j.GetId(),
				Message: clipTo("the machine could not be switched off after its job ended: "+powerErr.Error(), 500)}, nil); err != nil {
				return err
			}
		}
		return ch.endJob(j, m, event, status)
	})
}

func failureEvent(kind bloomeryv1.JobKind) LifecycleEvent {
	switch kind {
	case bloomeryv1.JobKind_JOB_KIND_INSTALL:
		return InstallFailed
	case bloomeryv1.JobKind_JOB_KIND_RELEASE:
		return ReleaseFailed
	}
	return InspectFailed
}

func (ch *change) jobAndMachine(id string) (*store.Job, *bloomeryv1.Machine, error) {
	j, err := ch.Job(id)
	if err != nil {
		return nil, nil, err
	}
	m, err := ch.Machine(j.GetMachine())
	return j, m, err
}

// endJob writes the end of a job: its machine is free, its boot and its token are worth nothing any more, its secrets are gone.
func (ch *change) endJob(j *store.Job, m *bloomeryv1.Machine, event LifecycleEvent, status bloomeryv1.JobStatus) error {
	j.Status, j.FinishedAt, j.TokenHash = status, timestamppb.New(ch.Now()), nil
	m.JobId = ""
	if err := ch.move(m, event, j.GetId()); err != nil {
		return err
	}
	if err := ch.DeleteBoot(m.GetName()); err != nil {
		return err
	}
	if err := ch.DropJobSecrets(j.GetId()); err != nil {
		return err
	}
	if err := ch.saveMachine(m); err != nil {
		return err
	}
	e := &bloomeryv1.Event{Type: "job.done", Machine: m.GetName(), JobId: j.GetId(), Message: fmt.Sprintf("%s of machine %s done", kindName(j.GetKind()), m.GetName())}
	switch status {
	case bloomeryv1.JobStatus_JOB_STATUS_FAILED:
		e.Type, e.Severity = "job.failed", bloomeryv1.Severity_SEVERITY_ERROR
		e.Message = fmt.Sprintf("%s of machine %s failed: %s", kindName(j.GetKind()), m.GetName(), j.GetError())
	case bloomeryv1.JobStatus_JOB_STATUS_CANCELLED:
		e.Type, e.Severity = "job.cancelled", bloomeryv1.Severity_SEVERITY_WARNING
		e.Message = fmt.Sprintf("%s of machine %s was cancelled", kindName(j.GetKind()), m.GetName())
	}
	if err := ch.note(e, map[string]any{"reason": j.GetErrorReason()}); err != nil {
		return err
	}
	return ch.saveJob(j)
}

func installedImage(j *store.Job) string {
	for _, s := range j.GetSteps() {
		if name := imageOf(s); name != "" {
			return name
		}
	}
	return ""
}

// imageOf is the image that a step puts onto the machine's disks; empty for any other step.
func imageOf(s *bloomeryv1.Step) string {
	if w := s.GetWriteImage(); w != nil {
		return w.GetImage()
	}
	return s.GetUnpackImage().GetImage()
}

func kindName(k bloomeryv1.JobKind) string {
	switch k {
	case bloomeryv1.JobKind_JOB_KIND_INSPECT:
		return "inspection"
	case bloomeryv1.JobKind_JOB_KIND_INSTALL:
		return "install"
	case bloomeryv1.JobKind_JOB_KIND_RELEASE:
		return "release"
	}
	return "job"
}
