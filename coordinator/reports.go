package coordinator

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/partition/wipe/certificate"
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
		// What JSON cannot hold must not fail in the middle of storing it.
		if !finite(report.GetFinished().GetResult()) || !finite(report.GetLog().GetData()) ||
			!isFinite(report.GetProgress().GetBytesPerSecond()) || !isFinite(report.GetBootPhase().GetSeconds()) {
			return invalid(field, "NOT_A_NUMBER", "want finite numbers")
		}
	}
	return nil
}

func finite(s *structpb.Struct) bool {
	return !slices.ContainsFunc(slices.Collect(maps.Values(s.GetFields())), notFinite)
}

func notFinite(v *structpb.Value) bool {
	return !isFinite(v.GetNumberValue()) || !finite(v.GetStructValue()) || slices.ContainsFunc(v.GetListValue().GetValues(), notFinite)
}

func isFinite(f float64) bool { return !math.IsNaN(f) && !math.IsInf(f, 0) }

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

// alienJob says that a machine reported on a job that is not its own: nothing of that call is stored.
type alienJob struct{ id string }

func (e *alienJob) Error() string { return "job " + e.id + " is another machine's" }

// storeGroup stores what a group of calls reports in one transaction, and sets what came of each. A call whose reports cannot be stored
// does not keep the others' from being so.
func (c *Coordinator) storeGroup(ctx context.Context, group []*reportCall) {
	for left := group; len(left) > 0; {
		var g *reportGroup
		err := c.update(ctx, func(ch *change) error {
			g = &reportGroup{ch: ch, heardEvery: c.heardEvery(), certify: c.certify}
			return g.store(left)
		})
		if err == nil {
			return
		}
		if g == nil || g.failed == nil {
			for _, call := range left {
				call.err = err
			}
			return
		}
		failed := g.failed
		failed.err = err
		left = slices.DeleteFunc(slices.Clone(left), func(call *reportCall) bool { return call == failed })
	}
}

// reportGroup is one transaction of several calls.
type reportGroup struct {
	ch         *change
	heardEvery time.Duration
	// certify signs what is known of a disk's wipe.
	certify func(certificate.Certificate) ([]byte, error)
	// states and jobs are what the transaction read, with what it changed since; acknowledged is what it raised.
	states       map[string]store.ReportState
	jobs         map[string]*store.Job
	acknowledged map[store.Acknowledgement]int64
	heard        []string
	// failed is the call that is to blame for an error.
	failed *reportCall
}

func (g *reportGroup) store(calls []*reportCall) error {
	if err := g.read(calls); err != nil {
		return err
	}
	for _, call := range calls {
		call.acknowledged, call.err = 0, nil
		if alien := g.alien(call); alien != nil {
			call.err = alien
			continue
		}
		g.ch.who = call.who
		if err := g.apply(call); err != nil {
			g.failed = call
			return err
		}
	}
	jobs := slices.Collect(maps.Values(g.jobs))
	slices.SortFunc(jobs, func(a, b *store.Job) int { return strings.Compare(a.GetId(), b.GetId()) })
	if err := g.ch.saveJobs(jobs); err != nil {
		return err
	}
	if err := g.ch.Heard(g.heard); err != nil {
		return err
	}
	raised := make([]store.Acknowledgement, 0, len(g.acknowledged))
	for key, sequence := range g.acknowledged {
		key.Sequence = sequence
		raised = append(raised, key)
	}
	return g.ch.SetAcknowledged(raised)
}

// read reads what the calls need, each table once.
func (g *reportGroup) read(calls []*reportCall) (err error) {
	g.acknowledged = map[store.Acknowledgement]int64{}
	machines, jobs := map[string]bool{}, map[string]bool{}
	for _, call := range calls {
		machines[call.who.Name] = true
		for _, r := range call.reports {
			if r.GetJobId() != "" {
				jobs[r.GetJobId()] = true
			}
		}
	}
	if g.states, err = g.ch.ReportStates(slices.Collect(maps.Keys(machines))); err != nil {
		return err
	}
	g.jobs, err = g.ch.JobsByID(slices.Collect(maps.Keys(jobs)))
	return err
}

// alien finds a job that is not the caller's own in what was not stored before.
func (g *reportGroup) alien(call *reportCall) error {
	for _, r := range call.reports {
		id := r.GetJobId()
		if j := g.jobs[id]; id != "" && (j == nil || j.GetMachine() != call.who.Name) {
			return &alienJob{id}
		}
	}
	return nil
}

// apply applies what of a call was not stored before.
func (g *reportGroup) apply(call *reportCall) error {
	machine := call.who.Name
	state := g.states[machine]
	key := store.Acknowledgement{Machine: machine, BootID: call.bootID}
	acknowledged, err := g.acknowledgedOf(key, state)
	if err != nil {
		return err
	}
	s := &reportStore{ch: g.ch, machine: machine, bootID: call.bootID, current: currentBoot(state.Boot, call.who, call.bootID), boot: state.Boot, jobs: g.jobs, certify: g.certify}
	for _, r := range call.reports {
		if r.GetSequence() <= acknowledged {
			continue
		}
		if err := s.apply(r); err != nil {
			return fmt.Errorf("store report %d of machine %s: %w", r.GetSequence(), machine, err)
		}
		acknowledged = r.GetSequence()
		g.acknowledged[key] = acknowledged
	}
	call.acknowledged = acknowledged
	switch {
	case s.handedOver:
		// Nothing more is expected of this boot: firmware that asks again gets no agent.
		delete(g.states, machine)
		return g.ch.DeleteBoot(machine)
	case s.current && longAgo(state.Boot.Heard, g.ch.Now(), g.heardEvery):
		state.Boot.Heard = g.ch.Now()
		g.heard = append(g.heard, machine)
	}
	return nil
}

// acknowledgedOf is how far a boot's reports are stored; those of a boot that is over are looked for by themselves.
func (g *reportGroup) acknowledgedOf(key store.Acknowledgement, state store.ReportState) (int64, error) {
	if n, ok := g.acknowledged[key]; ok {
		return n, nil
	}
	if state.Boot != nil && state.Boot.BootID == key.BootID {
		return state.Acknowledged, nil
	}
	return g.ch.Acknowledged(key.Machine, key.BootID)
}

// reportStore applies the reports of one batch.
type reportStore struct {
	ch              *change
	machine, bootID string
	// current says that the reporter may change its job's steps; any of the machine's agents may add to the record.
	current    bool
	boot       *store.Boot
	jobs       map[string]*store.Job
	handedOver bool
	certify    func(certificate.Certificate) ([]byte, error)
}

func (s *reportStore) apply(r *bloomeryv1.Report) error {
	j := s.jobs[r.GetJobId()]
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
	if step.GetWipe() != nil {
		if err := s.wiped(e, m, j, step, f); err != nil {
			return err
		}
	}
	if w := step.GetWipe(); w != nil && f.GetOk() && j.GetKind() == bloomeryv1.JobKind_JOB_KIND_INSTALL && containsDisk(m.GetCustomerDisks(), w.GetDisk()) {
		// A release strikes off all disks at its end only: cut off in the middle, it is a release that is done again.
		strikeCustomerDisk(m, w.GetDisk())
		if err := s.ch.saveMachine(m); err != nil {
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
