package coordinator

import (
	"fmt"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// ActionKind is one thing that a driver can do for a job.
type ActionKind string

// Effects are recorded as intended before they are done and as done after; the others only change the store.
const (
	ActPortToProvisioning ActionKind = "port-to-provisioning"
	ActMovePort           ActionKind = "move-port"
	ActPowerOff           ActionKind = "power-off"
	ActPowerOn            ActionKind = "power-on"
	ActBootNetworkOnce    ActionKind = "boot-network-once"
	ActExpectBoot         ActionKind = "expect-boot"

	// ActNewRound begins another boot into the agent.
	ActNewRound ActionKind = "new-round"
	// ActCheckPower and ActProbeSSH look at the world; what they find is in the next call's World.
	ActCheckPower ActionKind = "check-power"
	ActProbeSSH   ActionKind = "probe-ssh"
	ActStartStep  ActionKind = "start-step"
	ActFinishStep ActionKind = "finish-step"
	ActFinishJob  ActionKind = "finish-job"
	ActFailJob    ActionKind = "fail-job"
	ActCancelJob  ActionKind = "cancel-job"
	// ActWait does nothing until Until, unless something wakes the driver before.
	ActWait ActionKind = "wait"
)

// Action is what a driver is to do now.
type Action struct {
	Kind ActionKind
	// Scope is what an effect belongs to: it is done once in it.
	Scope string
	// Network is where ActMovePort moves the port.
	Network string
	// Reason and Message say why a job fails.
	Reason, Message string
	Until           time.Time
}

// World is what Next knows beside the machine and the job. Its times, those of Boot and Actions too, are on the driver's own clock (see stopwatch).
type World struct {
	Boot    *store.Boot
	Actions []store.Action
	// StepStarted is when the current step was, Driven for how long the job has been driven by anyone.
	StepStarted time.Time
	Driven      time.Duration
	// Power is what the BMC said last, at PowerAt; PowerError why it could not be asked then.
	PowerOn    bool
	PowerAt    time.Time
	PowerError string
	// SSHOpen is set once the machine's SSH port answered; SSHAt is the last probe.
	SSHOpen bool
	SSHAt   time.Time
	Timing  Timing
}

const (
	// netbootRounds bounds the boots of a netboot step, allRounds those of a job with its recoveries.
	netbootRounds = 3
	allRounds     = 6
	// maxTries bounds an effect that fails in a way that may pass.
	maxTries = 8
	// wakeTries is for a port that comes back to provisioning: a machine that is started for it takes minutes until it talks.
	wakeTries = 30
	// longestRetry bounds the pause between them.
	longestRetry = 10 * time.Second
	// probeEvery is how often power or SSH is looked at while waiting.
	probeEvery = 2 * time.Second
)

// Next says what the coordinator does now for a job: a function of its arguments only. The last action is a wait, or changes what the next call sees.
func Next(m *bloomeryv1.Machine, j *store.Job, w World, now time.Time) []Action {
	step := j.Current()
	switch {
	case j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING:
		return nil
	case step == nil:
		return one(Action{Kind: ActFinishJob})
	case step.GetStatus() == bloomeryv1.StepStatus_STEP_STATUS_FAILED:
		return fail(step.GetErrorReason(), "step %s: %s", stepName(step), step.GetError())
	case w.Driven > jobLimit(j, w.Timing):
		return fail("JOB_TIMEOUT", "the job was not done within %s; it stood at step %s", jobLimit(j, w.Timing), stepName(step))
	case j.GetCancelRequested() && cancellable(step):
		return one(Action{Kind: ActCancelJob})
	case isAgentStep(step):
		return nextAgent(j, w, m, now)
	case step.GetStatus() == bloomeryv1.StepStatus_STEP_STATUS_PENDING:
		return one(Action{Kind: ActStartStep})
	}
	scope := fmt.Sprintf("step-%d", step.GetIndex())
	switch spec := step.GetSpec().(type) {
	case *bloomeryv1.Step_Netboot:
		if enrolled(j, w) {
			return one(Action{Kind: ActFinishStep})
		}
		return nextBoot(m, j, w, netbootRounds, now)
	case *bloomeryv1.Step_MovePort:
		return inOrder([]Action{{Kind: ActMovePort, Scope: scope, Network: spec.MovePort.GetTo()}}, w, now, ActFinishStep)
	case *bloomeryv1.Step_PowerOff:
		return inOrder([]Action{{Kind: ActPowerOff, Scope: scope}}, w, now, ActFinishStep)
	case *bloomeryv1.Step_AwaitSystem:
		return nextAwait(j, spec.AwaitSystem, w, now)
	}
	return fail("UNKNOWN_STEP", "step %s is not known to this coordinator", stepName(step))
}

// nextAgent watches over the agent while it runs a step: a machine that fell silent is powered into the agent again.
func nextAgent(j *store.Job, w World, m *bloomeryv1.Machine, now time.Time) []Action {
	if !enrolled(j, w) {
		return nextBoot(m, j, w, allRounds, now)
	}
	heard := w.Boot.Enrolled
	if w.Boot.Heard.After(heard) {
		heard = w.Boot.Heard
	}
	silent := now.Sub(heard)
	if silent <= w.Timing.Quiet {
		return wait(heard.Add(w.Timing.Quiet))
	}
	known := w.PowerAt.After(heard) && w.PowerError == ""
	switch {
	case silent > w.Timing.Lost, known && !w.PowerOn:
		if j.BootRound >= allRounds {
			return fail("AGENT_LOST", "the agent was lost during step %s after %d boots", stepName(j.Current()), j.BootRound)
		}
		return one(Action{Kind: ActNewRound, Message: fmt.Sprintf("the agent was silent for %s", silent.Round(time.Second))})
	case now.Sub(w.PowerAt) >= probeEvery:
		return one(Action{Kind: ActCheckPower})
	}
	return wait(w.PowerAt.Add(probeEvery))
}

// nextBoot powers the machine into the agent, round by round.
func nextBoot(m *bloomeryv1.Machine, j *store.Job, w World, rounds int, now time.Time) []Action {
	if j.BootRound == 0 {
		return one(Action{Kind: ActNewRound})
	}
	scope := fmt.Sprintf("round-%d", j.BootRound)
	var do []Action
	if m.GetSwitchPort().GetPort() != "" {
		do = append(do, Action{Kind: ActPortToProvisioning, Scope: scope})
	}
	do = append(do,
		Action{Kind: ActPowerOff, Scope: scope},
		Action{Kind: ActBootNetworkOnce, Scope: scope},
		Action{Kind: ActExpectBoot, Scope: scope},
		Action{Kind: ActPowerOn, Scope: scope},
	)
	if left := inOrder(do, w, now, ""); left != nil {
		return left
	}
	if b := w.Boot; b != nil && b.JobID == j.GetId() && b.Round == j.BootRound && now.Before(b.Created.Add(w.Timing.Boot)) {
		return wait(b.Created.Add(w.Timing.Boot))
	}
	if j.BootRound >= rounds {
		return fail("BOOT_TIMEOUT", "the machine did not enrol within %s of power-on, in %d boots", w.Timing.Boot, j.BootRound)
	}
	return one(Action{Kind: ActNewRound, Message: fmt.Sprintf("the machine did not enrol within %s", w.Timing.Boot)})
}

func nextAwait(j *store.Job, spec *bloomeryv1.AwaitSystemStep, w World, now time.Time) []Action {
	until := w.StepStarted.Add(time.Duration(spec.GetTimeoutSeconds()) * time.Second)
	ssh := spec.GetEvidence() == bloomeryv1.Evidence_EVIDENCE_SSH_PORT
	switch {
	case !ssh && !j.Phoned.IsZero(), ssh && w.SSHOpen:
		return one(Action{Kind: ActFinishStep})
	case now.After(until):
		return fail("SYSTEM_TIMEOUT", "no evidence that the installed system runs came within %d s", spec.GetTimeoutSeconds())
	case ssh && now.Sub(w.SSHAt) >= probeEvery:
		return one(Action{Kind: ActProbeSSH})
	case ssh:
		return wait(w.SSHAt.Add(probeEvery))
	}
	return wait(until)
}

// inOrder returns the effects that are not done yet, or then if all are; it waits or fails where one failed before.
func inOrder(do []Action, w World, now time.Time, then ActionKind) []Action {
	for i, a := range do {
		past, found := find(w.Actions, a)
		switch {
		case found && !past.Done.IsZero():
			continue
		case found && past.Error != "" && past.Tries >= triesOf(a):
			return fail("ACTION_FAILED", "%s failed %d times: %s", a.Kind, past.Tries, past.Error)
		case found && past.Error != "":
			if next := past.Intended.Add(pause(w.Timing.Retry, past.Tries)); now.Before(next) {
				return wait(next)
			}
		}
		return do[i:]
	}
	if then == "" {
		return nil
	}
	return one(Action{Kind: then})
}

func triesOf(a Action) int {
	if a.Kind == ActPortToProvisioning || a.Network == ProvisioningNetwork {
		return wakeTries
	}
	return maxTries
}

func pause(first time.Duration, tries int) time.Duration {
	p := first
	for range tries - 1 {
		p = min(2*p, longestRetry)
	}
	return p
}

func find(actions []store.Action, a Action) (store.Action, bool) {
	for _, past := range actions {
		if past.Scope == a.Scope && past.Kind == string(a.Kind) {
			return past, true
		}
	}
	return store.Action{}, false
}

func enrolled(j *store.Job, w World) bool {
	return w.Boot != nil && w.Boot.JobID == j.GetId() && w.Boot.Round == j.BootRound && !w.Boot.Enrolled.IsZero()
}

// cancellable says that a step may be left where it is: it has not begun, or leaving it destroys nothing.
func cancellable(s *bloomeryv1.Step) bool {
	if s.GetStatus() == bloomeryv1.StepStatus_STEP_STATUS_PENDING {
		return true
	}
	switch s.GetSpec().(type) {
	case *bloomeryv1.Step_Netboot, *bloomeryv1.Step_AwaitSystem:
		return true
	}
	return false
}

// isAgentStep tells the steps that the agent runs from the coordinator's own.
func isAgentStep(s *bloomeryv1.Step) bool {
	switch s.GetSpec().(type) {
	case *bloomeryv1.Step_Inspect, *bloomeryv1.Step_CheckDisks, *bloomeryv1.Step_Wipe, *bloomeryv1.Step_WriteImage,
		*bloomeryv1.Step_GrowRoot, *bloomeryv1.Step_ApplyLayout, *bloomeryv1.Step_UnpackImage, *bloomeryv1.Step_ConfigureSystem, *bloomeryv1.Step_SeedPartition,
		*bloomeryv1.Step_CloudInit, *bloomeryv1.Step_BootEntry, *bloomeryv1.Step_Handover:
		return true
	}
	return false
}

// stepName is a step's kind as people write it: "write-image".
func stepName(s *bloomeryv1.Step) string {
	m := s.ProtoReflect()
	field := m.WhichOneof(m.Descriptor().Oneofs().ByName("spec"))
	if field == nil {
		return "unknown"
	}
	name := []byte(field.Name())
	for i, c := range name {
		if c == '_' {
			name[i] = '-'
		}
	}
	return string(name)
}

func one(a Action) []Action { return []Action{a} }

func wait(until time.Time) []Action { return one(Action{Kind: ActWait, Until: until}) }

func fail(reason, format string, args ...any) []Action {
	return one(Action{Kind: ActFailJob, Reason: reason, Message: fmt.Sprintf(format, args...)})
}
