package coordinator

import (
	"testing"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

func TestNext(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	timing := DefaultTiming()
	netbootSpec := &bloomeryv1.Step{Spec: &bloomeryv1.Step_Netboot{}}
	wipe := &bloomeryv1.Step{Spec: &bloomeryv1.Step_Wipe{}}
	await := &bloomeryv1.Step{Spec: &bloomeryv1.Step_AwaitSystem{AwaitSystem: &bloomeryv1.AwaitSystemStep{TimeoutSeconds: 600}}}
	pending, runs, failed := bloomeryv1.StepStatus_STEP_STATUS_PENDING, bloomeryv1.StepStatus_STEP_STATUS_RUNNING, bloomeryv1.StepStatus_STEP_STATUS_FAILED
	did := func(scope string, kinds ...ActionKind) []store.Action {
		var all []store.Action
		for _, k := range kinds {
			all = append(all, store.Action{Scope: scope, Kind: string(k), Intended: now, Done: now, Tries: 1})
		}
		return all
	}
	booted := did("round-1", ActPowerOff, ActBootNetworkOnce, ActExpectBoot, ActPowerOn)
	boot := func(round int, heard time.Duration) *store.Boot {
		return &store.Boot{JobID: "j", Round: round, Created: now, Enrolled: now.Add(-time.Hour), Heard: now.Add(-heard)}
	}
	for name, tc := range map[string]struct {
		step   *bloomeryv1.Step
		status bloomeryv1.StepStatus
		round  int
		cancel bool
		phoned bool
		world  World
		late   bool
		want   ActionKind
		reason string
	}{
		"all done":                     {want: ActFinishJob},
		"failed step":                  {step: wipe, status: failed, want: ActFailJob, reason: "X"},
		"deadline":                     {step: wipe, status: runs, late: true, want: ActFailJob, reason: "JOB_TIMEOUT"},
		"start":                        {step: netbootSpec, status: pending, want: ActStartStep},
		"first round":                  {step: netbootSpec, status: runs, want: ActNewRound},
		"power off first":              {step: netbootSpec, status: runs, round: 1, want: ActPowerOff},
		"intended and not done, again": {step: netbootSpec, status: runs, round: 1, world: World{Actions: []store.Action{{Scope: "round-1", Kind: string(ActPowerOff), Intended: now, Tries: 1}}}, want: ActPowerOff},
		"failed lately":                {step: netbootSpec, status: runs, round: 1, world: World{Actions: []store.Action{{Scope: "round-1", Kind: string(ActPowerOff), Intended: now, Tries: 1, Error: "x"}}}, want: ActWait},
		"failed often":                 {step: netbootSpec, status: runs, round: 1, world: World{Actions: []store.Action{{Scope: "round-1", Kind: string(ActPowerOff), Intended: now, Tries: 8, Error: "x"}}}, want: ActFailJob, reason: "ACTION_FAILED"},
		"boots":                        {step: netbootSpec, status: runs, round: 1, world: World{Actions: booted, Boot: &store.Boot{JobID: "j", Round: 1, Created: now}}, want: ActWait},
		"did not boot":                 {step: netbootSpec, status: runs, round: 1, world: World{Actions: booted, Boot: &store.Boot{JobID: "j", Round: 1, Created: now.Add(-timing.Boot)}}, want: ActNewRound},
		"did not boot thrice":          {step: netbootSpec, status: runs, round: 3, world: World{Actions: did("round-3", ActPowerOff, ActBootNetworkOnce, ActExpectBoot, ActPowerOn)}, want: ActFailJob, reason: "BOOT_TIMEOUT"},
		"enrolled":                     {step: netbootSpec, status: runs, round: 1, world: World{Actions: booted, Boot: boot(1, 0)}, want: ActFinishStep},
		"enrolled for another round":   {step: netbootSpec, status: runs, round: 2, world: World{Boot: boot(1, 0)}, want: ActPowerOff},
		"agent works":                  {step: wipe, status: runs, round: 1, world: World{Boot: boot(1, time.Second)}, want: ActWait},
		"agent quiet":                  {step: wipe, status: runs, round: 1, world: World{Boot: boot(1, 50*time.Second)}, want: ActCheckPower},
		"agent quiet, machine on":      {step: wipe, status: runs, round: 1, world: World{Boot: boot(1, 50*time.Second), PowerOn: true, PowerAt: now}, want: ActWait},
		"agent quiet, machine off":     {step: wipe, status: runs, round: 1, world: World{Boot: boot(1, 50*time.Second), PowerAt: now}, want: ActNewRound},
		"quiet, BMC does not answer":   {step: wipe, status: runs, round: 1, world: World{Boot: boot(1, 50*time.Second), PowerAt: now, PowerError: "x"}, want: ActWait},
		"agent lost":                   {step: wipe, status: runs, round: 1, world: World{Boot: boot(1, 4*time.Minute), PowerOn: true, PowerAt: now}, want: ActNewRound},
		"agent lost too often":         {step: wipe, status: runs, round: 6, world: World{Boot: boot(6, 4*time.Minute)}, want: ActFailJob, reason: "AGENT_LOST"},
		"cancelled before a step":      {step: wipe, status: pending, cancel: true, want: ActCancelJob},
		"destructive step goes on":     {step: wipe, status: runs, round: 1, cancel: true, world: World{Boot: boot(1, 0)}, want: ActWait},
		"waits for the system":         {step: await, status: runs, want: ActWait},
		"system phoned":                {step: await, status: runs, phoned: true, want: ActFinishStep},
	} {
		t.Run(name, func(t *testing.T) {
			j := &store.Job{BootRound: tc.round, Job: &bloomeryv1.Job{Id: "j", Status: bloomeryv1.JobStatus_JOB_STATUS_RUNNING, CancelRequested: tc.cancel}}
			if tc.step != nil {
				j.Steps = []*bloomeryv1.Step{{Status: tc.status, Spec: tc.step.GetSpec(), ErrorReason: "X"}}
				tc.world.StepStarted = now
			}
			if tc.late {
				tc.world.Driven = timing.Job + 1
			}
			if tc.phoned {
				j.Phoned = now
			}
			tc.world.Timing = timing
			got := Next(&bloomeryv1.Machine{Name: "m1"}, j, tc.world, now)
			if len(got) == 0 || got[0].Kind != tc.want || got[0].Reason != tc.reason {
				t.Errorf("got %+v, want %s %s", got, tc.want, tc.reason)
			}
		})
	}
}
