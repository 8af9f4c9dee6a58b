package coordinator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

const (
	// maxWait bounds a long poll.
	maxWait = 60 * time.Second
	// heardPart of Timing.Quiet is how often it is noted that an agent was heard, be it by reports or by a poll that is held (the
	// connection is checked by HTTP/2 pings).
	heardPart = 4
)

// currentBoot says that a caller is the agent that enrolled for the boot that the machine's job is in.
func currentBoot(b *store.Boot, who caller, bootID string) bool {
	if b == nil || b.Enrolled.IsZero() || b.BootID != bootID {
		return false
	}
	sum := sha256.Sum256(who.Certificate)
	for hash := range slices.Chunk(b.CertificateHash, sha256.Size) {
		if bytes.Equal(sum[:], hash) {
			return true
		}
	}
	return false
}

// NextStep implements bloomery.v1.AgentService. It answers at once when the machine has something to do.
func (c *Coordinator) NextStep(ctx context.Context, r *connect.Request[bloomeryv1.NextStepRequest]) (*connect.Response[bloomeryv1.NextStepResponse], error) {
	wait := time.Duration(r.Msg.GetWaitSeconds()) * time.Second
	if wait < 0 || wait > maxWait {
		return nil, invalid("wait_seconds", "OUT_OF_RANGE", "%d: want 0 to 60", r.Msg.GetWaitSeconds())
	}
	who := callerOf(ctx)
	wake, stop := c.hub.subscribe("machine/" + who.Name)
	defer stop()
	until := time.Now().Add(wait)
	for {
		ready, heard, err := c.lookForStep(ctx, who, r.Msg.GetBootId())
		if err != nil {
			return nil, err
		}
		if ready {
			response, err := c.giveStep(ctx, who, r.Msg.GetBootId())
			if err != nil {
				return nil, err
			}
			if response.GetStep() != nil {
				return connect.NewResponse(response), nil
			}
		}
		if longAgo(heard, c.config.Now(), c.heardEvery()) { // stored with others' reports
			if err := c.committer.submit(ctx, &reportCall{who: who, bootID: r.Msg.GetBootId()}, c.storeOrForward); err != nil {
				return nil, err
			}
		}
		if !time.Now().Before(until) {
			return connect.NewResponse(&bloomeryv1.NextStepResponse{}), nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-wake:
		case <-time.After(min(time.Until(until), c.heardEvery())):
		}
	}
}

func (c *Coordinator) heardEvery() time.Duration { return c.config.Timing.Quiet / heardPart }

// longAgo says that something was last done at least d ago, or at a time that has not come yet by this coordinator's clock.
func longAgo(last, now time.Time, d time.Duration) bool {
	return now.Sub(last) >= d || last.After(now)
}

// lookForStep says, without a write, whether there is a step to give, and when the agent was heard last.
func (c *Coordinator) lookForStep(ctx context.Context, who caller, bootID string) (ready bool, heard time.Time, err error) {
	err = c.Store.View(ctx, func(r *store.Reader) error {
		j, boot, err := c.currentJob(r, who, bootID)
		if err != nil {
			return err
		}
		ready, heard = stepFor(j) != nil, boot.Heard
		return nil
	})
	return ready, heard, err
}

func (c *Coordinator) currentJob(r *store.Reader, who caller, bootID string) (*store.Job, *store.Boot, error) {
	boot, err := r.Boot(who.Name)
	if err != nil {
		return nil, nil, err
	}
	if !currentBoot(boot, who, bootID) {
		return nil, nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("this boot is over: the machine is not, or not any more, expected to run the agent"))
	}
	j, err := r.Job(boot.JobID)
	return j, boot, err
}

// stepFor returns the step that a job wants the agent to run now.
func stepFor(j *store.Job) *bloomeryv1.Step {
	s := j.Current()
	switch {
	case j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING || s == nil || !isAgentStep(s):
		return nil
	case j.GetCancelRequested() && cancellable(s):
		return nil
	case s.GetStatus() == bloomeryv1.StepStatus_STEP_STATUS_PENDING, s.GetStatus() == bloomeryv1.StepStatus_STEP_STATUS_RUNNING:
		return s
	}
	return nil
}

// giveStep hands the current step out. The same boot that asks again gets the same attempt; another boot gets the next one, with what was reached before.
func (c *Coordinator) giveStep(ctx context.Context, who caller, bootID string) (response *bloomeryv1.NextStepResponse, err error) {
	err = c.update(ctx, func(ch *change) error {
		response = &bloomeryv1.NextStepResponse{}
		j, _, err := c.currentJob(&ch.Reader, who, bootID)
		if err != nil {
			return err
		}
		if err := ch.Heard([]string{who.Name}); err != nil {
			return err
		}
		s := stepFor(j)
		if s == nil {
			return nil
		}
		if s.GetStatus() == bloomeryv1.StepStatus_STEP_STATUS_PENDING || j.StepBoots[s.GetIndex()] != bootID {
			if err := startStep(ch, j, bootID); err != nil {
				return err
			}
			if err := ch.markDirty(who.Name, s); err != nil {
				return err
			}
		}
		response.JobId, response.Step = j.GetId(), s
		if err := ch.giveImageKeys(response); err != nil {
			return err
		}
		if needsTarget(s) {
			p, err := ch.JobTarget(j.GetId())
			if err != nil {
				return err
			}
			response.Target = &bloomeryv1.LayoutTarget{Plan: p.Plan, Secrets: p.Secrets}
		}
		return nil
	})
	return response, err
}

// needsTarget says that a step works on the filesystems of its job's plan: it comes with the plan, and with what opens them.
func needsTarget(s *bloomeryv1.Step) bool {
	switch spec := s.GetSpec().(type) {
	case *bloomeryv1.Step_ApplyLayout, *bloomeryv1.Step_UnpackImage, *bloomeryv1.Step_ConfigureSystem:
		return true
	case *bloomeryv1.Step_CloudInit:
		return spec.CloudInit.GetDisk() == nil
	case *bloomeryv1.Step_Handover:
		return spec.Handover.GetDisk() == nil && spec.Handover.GetKernel() != ""
	}
	return false
}

// markDirty remembers, before the first byte is written, which disks a step makes carry a customer's data.
func (ch *change) markDirty(machine string, s *bloomeryv1.Step) error {
	disks := s.GetApplyLayout().GetDisks()
	if w := s.GetWriteImage(); w != nil {
		disks = []*bloomeryv1.DiskRef{w.GetDisk()}
	}
	if len(disks) == 0 {
		return nil
	}
	m, err := ch.Machine(machine)
	if err != nil {
		return err
	}
	m.Image = ""
	for _, disk := range disks {
		addCustomerDisk(m, disk)
	}
	return ch.saveMachine(m)
}

// Report implements bloomery.v1.AgentService. What is acknowledged is stored.
func (c *Coordinator) Report(ctx context.Context, r *connect.Request[bloomeryv1.ReportRequest]) (*connect.Response[bloomeryv1.ReportResponse], error) {
	who := callerOf(ctx)
	if err := checkReports(r.Msg); err != nil {
		return nil, err
	}
	c.metrics.batch.Observe(float64(len(r.Msg.GetReports())))
	var acknowledged int64
	for _, batch := range batches(r.Msg.GetReports()) {
		call := &reportCall{who: who, bootID: r.Msg.GetBootId(), reports: batch}
		err := c.committer.submit(ctx, call, c.storeOrForward)
		var alien *alienJob
		if errors.As(err, &alien) {
			c.security(ctx, "security.report_refused", who.Name, who, fmt.Sprintf("machine %s reported on job %s, which is not its own", who.Name, clip(alien.id)))
			return nil, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("job %s is not this machine's", clip(alien.id)))
		}
		if err != nil {
			return nil, err
		}
		acknowledged = call.acknowledged
	}
	return connect.NewResponse(&bloomeryv1.ReportResponse{Acknowledged: acknowledged}), nil
}
