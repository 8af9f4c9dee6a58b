package coordinator

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

const (
	maxReports = 200
	// maxReportBytes bounds a call; batchBytes one transaction (dqlite fails above about 1 MB, and a result is stored twice).
	maxReportBytes = 1 << 20
	batchBytes     = 128 << 10
	// maxResult bounds a step's result, maxText a message and maxData an event's data, in bytes.
	maxResult = 256 << 10
	maxText   = 2 << 10
	maxData   = 4 << 10
	// clockSkew is how far a report's time may be from the coordinator's before the latter is taken.
	clockSkew = 24 * time.Hour
)

// checkReports validates a batch from outside.
func checkReports(r *bloomeryv1.ReportRequest) error {
	if !bootIDPattern.MatchString(r.GetBootId()) {
		return invalid("boot_id", "BOOT_ID_INVALID", "want 32 lower-case hex digits")
	}
	if len(r.GetReports()) == 0 || len(r.GetReports()) > maxReports {
		return invalid("reports", "OUT_OF_RANGE", "%d reports: want 1 to %d", len(r.GetReports()), maxReports)
	}
	if n := proto.Size(r); n > maxReportBytes {
		return invalid("reports", "TOO_LARGE", "%d bytes are more than %d", n, maxReportBytes)
	}
	last := int64(0)
	for i, report := range r.GetReports() {
		field := fmt.Sprintf("reports[%d]", i)
		if report.GetSequence() <= last {
			return invalid(field+".sequence", "NOT_RISING", "%d comes after %d: want numbers that rise from 1", report.GetSequence(), last)
		}
		last = report.GetSequence()
		if report.GetBody() == nil {
			return invalid(field+".body", "REQUIRED", "a report says something")
		}
		if n := proto.Size(report.GetFinished().GetResult()); n > maxResult {
			return invalid(field+".finished.result", "TOO_LARGE", "%d bytes are more than %d", n, maxResult)
		}
		if p := report.GetProgress(); p != nil && !(p.GetPercent() >= 0 && p.GetPercent() <= 100) {
			return invalid(field+".progress.percent", "OUT_OF_RANGE", "want 0 to 100")
		}
	}
	return nil
}

// batches cuts reports into parts that fit into a transaction each.
func batches(reports []*bloomeryv1.Report) [][]*bloomeryv1.Report {
	var all [][]*bloomeryv1.Report
	size := 0
	for i, r := range reports {
		n := proto.Size(r)
		if i == 0 || size+n > batchBytes {
			all, size = append(all, nil), 0
		}
		all[len(all)-1] = append(all[len(all)-1], r)
		size += n
	}
	return all
}

// storeReports stores what was not stored before. foreign names a job that is not the machine's own, and nothing is stored then.
func storeReports(ch *change, who caller, bootID string, reports []*bloomeryv1.Report) (acknowledged int64, foreign string, err error) {
	acknowledged, err = ch.Acknowledged(who.Name, bootID)
	if err != nil {
		return 0, "", err
	}
	boot, err := ch.Boot(who.Name)
	if err != nil {
		return 0, "", err
	}
	s := &reportStore{ch: ch, machine: who.Name, bootID: bootID, current: currentBoot(boot, who, bootID), boot: boot, jobs: map[string]*store.Job{}}
	for _, r := range reports {
		if r.GetSequence() <= acknowledged {
			continue
		}
		if err := s.apply(r); err != nil {
			var alien *alienJob
			if errors.As(err, &alien) {
				return 0, alien.id, err
			}
			return 0, "", fmt.Errorf("store report %d of machine %s: %w", r.GetSequence(), who.Name, err)
		}
		acknowledged = r.GetSequence()
	}
	for _, j := range s.jobs {
		if err := ch.saveJob(j); err != nil {
			return 0, "", err
		}
	}
	if s.current {
		if err := ch.Heard(who.Name, bootID); err != nil {
			return 0, "", err
		}
	}
	if s.handedOver {
		// Nothing more is expected of this boot: firmware that asks again gets no agent.
		if err := ch.DeleteBoot(who.Name); err != nil {
			return 0, "", err
		}
	}
	return acknowledged, "", ch.SetAcknowledged(who.Name, bootID, acknowledged)
}

type alienJob struct{ id string }

func (e *alienJob) Error() string { return "job " + e.id + " is another machine's" }

// reportStore applies the reports of one batch.
type reportStore struct {
	ch              *change
	machine, bootID string
	// current says that the reporter may change its job's steps; any of the machine's agents may add to the record.
	current    bool
	boot       *store.Boot
	jobs       map[string]*store.Job
	handedOver bool
}

func (s *reportStore) apply(r *bloomeryv1.Report) error {
	j, err := s.job(r.GetJobId())
	if err != nil {
		return err
	}
	at := r.GetTime()
	if d := s.ch.Now().Sub(at.AsTime()); at == nil || d > clockSkew || d < -clockSkew {
		at = nil
	}
	e := &bloomeryv1.Event{Time: at, Machine: s.machine, JobId: r.GetJobId()}
	key := fmt.Sprintf("%s/%s/%d", s.machine, s.bootID, r.GetSequence())
	step := s.step(j, r.GetStepId())
	if step != nil {
		e.StepId = step.GetId()
	}
	switch body := r.GetBody().(type) {
	case *bloomeryv1.Report_Log:
		e.Type, e.Severity, e.Message = "agent.log", body.Log.GetSeverity(), clipTo(body.Log.GetMessage(), maxText)
		return s.ch.noteKeyed(e, bounded(body.Log.GetData()), key)
	case *bloomeryv1.Report_BootPhase:
		p := body.BootPhase
		e.Type, e.Message = "agent.phase", fmt.Sprintf("phase %s done in %.1f s", clip(p.GetName()), p.GetSeconds())
		if !p.GetOk() {
			e.Severity, e.Message = bloomeryv1.Severity_SEVERITY_ERROR, clipTo(fmt.Sprintf("phase %s failed: %s", clip(p.GetName()), p.GetError()), maxText)
		}
		return s.ch.noteKeyed(e, map[string]any{"phase": clip(p.GetName()), "ok": p.GetOk(), "seconds": p.GetSeconds()}, key)
	}
	if !s.runs(j, step) {
		e.Type, e.Severity = "step.stale_report", bloomeryv1.Severity_SEVERITY_WARNING
		e.Message = fmt.Sprintf("a report on step %s was recorded and changed nothing: the step is not running in this boot", clip(r.GetStepId()))
		return s.ch.noteKeyed(e, nil, key)
	}
	switch body := r.GetBody().(type) {
	case *bloomeryv1.Report_Started:
		e.Type, e.Message = "step.begun", "the agent began step "+stepName(step)
		return s.ch.noteKeyed(e, map[string]any{"step": stepName(step)}, key)
	case *bloomeryv1.Report_Progress:
		return s.progress(e, step, body.Progress, key)
	case *bloomeryv1.Report_Finished:
		return s.finished(e, j, step, body.Finished, key)
	}
	return nil
}

// job returns one of the machine's own jobs, nil for a report that names none.
func (s *reportStore) job(id string) (*store.Job, error) {
	if id == "" {
		return nil, nil
	}
	if j := s.jobs[id]; j != nil {
		return j, nil
	}
	j, err := s.ch.Job(id)
	if errors.Is(err, store.ErrNotFound) || (err == nil && j.GetMachine() != s.machine) {
		return nil, &alienJob{id}
	}
	if err != nil {
		return nil, err
	}
	s.jobs[id] = j
	return j, nil
}

func (s *reportStore) step(j *store.Job, id string) *bloomeryv1.Step {
	if j == nil || id == "" {
		return nil
	}
	for _, step := range j.GetSteps() {
		if step.GetId() == id {
			return step
		}
	}
	return nil
}

// runs says that a step is the one that this boot was given to run.
func (s *reportStore) runs(j *store.Job, step *bloomeryv1.Step) bool {
	return s.current && step != nil && j.Current() == step && j.GetStatus() == bloomeryv1.JobStatus_JOB_STATUS_RUNNING &&
		step.GetStatus() == bloomeryv1.StepStatus_STEP_STATUS_RUNNING && s.boot.JobID == j.GetId() && j.StepBoots[step.GetIndex()] == s.bootID
}

// progress updates the step; an event is stored for each tenth only.
func (s *reportStore) progress(e *bloomeryv1.Event, step *bloomeryv1.Step, p *bloomeryv1.Progress, key string) error {
	before := step.GetProgress()
	p.Message = clipTo(p.GetMessage(), maxText)
	p.ResumeFrame = max(p.GetResumeFrame(), before.GetResumeFrame())
	step.Progress = p
	if int(p.GetPercent()/10) <= int(before.GetPercent()/10) {
		return nil
	}
	e.Type, e.Message = "step.progress", fmt.Sprintf("step %s: %.0f %%", stepName(step), p.GetPercent())
	return s.ch.noteKeyed(e, map[string]any{
		"step": stepName(step), "percent": p.GetPercent(), "done_bytes": p.GetDoneBytes(), "total_bytes": p.GetTotalBytes(), "bytes_per_second": p.GetBytesPerSecond(),
	}, key)
}

func (s *reportStore) finished(e *bloomeryv1.Event, j *store.Job, step *bloomeryv1.Step, f *bloomeryv1.StepFinished, key string) error {
	step.Result = f.GetResult()
	if err := s.verdict(e, step, f.GetResult()); err != nil {
		return err
	}
	m, err := s.ch.Machine(s.machine)
	if err != nil {
		return err
	}
	if step.GetInspect() != nil && f.GetResult() != nil {
		found := f.GetResult()
		if inner := found.GetFields()["inventory"].GetStructValue(); inner != nil {
			found = inner
		}
		if err := s.ch.saveInventory(m, j.GetId(), found); err != nil {
			return err
		}
	}
	if f.GetOk() {
		s.handedOver = step.GetHandover() != nil
		return finishStep(s.ch, j, key)
	}
	step.Status, step.Error, step.ErrorReason = bloomeryv1.StepStatus_STEP_STATUS_FAILED, clipTo(f.GetError(), maxText), clip(f.GetErrorReason())
	if f.GetMachineFaulty() {
		m.FaultCode, m.FaultMessage = step.GetErrorReason(), step.GetError()
		if m.GetFaultCode() == "" {
			m.FaultCode = "CONDEMNED"
		}
		if err := s.ch.saveMachine(m); err != nil {
			return err
		}
	}
	e.Type, e.Severity = "step.failed", bloomeryv1.Severity_SEVERITY_ERROR
	e.Message = fmt.Sprintf("step %s failed: %s", stepName(step), step.GetError())
	return s.ch.noteKeyed(e, map[string]any{"step": stepName(step), "reason": step.GetErrorReason(), "machine_faulty": f.GetMachineFaulty()}, key)
}

// verdict notes what a check found; the result itself stays in the step.
func (s *reportStore) verdict(e *bloomeryv1.Event, step *bloomeryv1.Step, result *structpb.Struct) error {
	verdict := clip(result.GetFields()["verdict"].GetStringValue())
	if step.GetCheckDisks() == nil || verdict == "" {
		return nil
	}
	results, failed := result.GetFields()["results"].GetListValue().GetValues(), 0
	for _, r := range results {
		if r.GetStructValue().GetFields()["verdict"].GetStringValue() == "fail" {
			failed++
		}
	}
	found := &bloomeryv1.Event{Type: "check.verdict", Time: e.GetTime(), Machine: e.GetMachine(), JobId: e.GetJobId(), StepId: e.GetStepId(),
		Message: fmt.Sprintf("step %s of machine %s: %s, %d of %d failed", stepName(step), s.machine, verdict, failed, len(results))}
	switch verdict {
	case "warn":
		found.Severity = bloomeryv1.Severity_SEVERITY_WARNING
	case "fail":
		found.Severity = bloomeryv1.Severity_SEVERITY_ERROR
	}
	return s.ch.note(found, map[string]any{"step": stepName(step), "verdict": verdict, "results": len(results), "failed": failed})
}

// bounded keeps an event's data small; what is too large is left out and said so.
func bounded(data *structpb.Struct) map[string]any {
	if n := proto.Size(data); n > maxData {
		return map[string]any{"dropped_bytes": n}
	}
	return data.AsMap()
}
