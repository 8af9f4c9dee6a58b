package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	pb "bloomery/api/bloomery/v1"
	"bloomery/checks"
	"bloomery/partition"
	"bloomery/partition/wipe"
)

func wipeStep(id, serial string) *pb.Step {
	return &pb.Step{Id: id, Spec: &pb.Step_Wipe{Wipe: &pb.WipeStep{Disk: &pb.DiskRef{Serial: serial}}}}
}

func TestBootAndSteps(t *testing.T) {
	disk := &pb.DiskRef{Serial: "S1"}
	c := newFakeCoordinator(t,
		&pb.Step{Id: "a", Spec: &pb.Step_Inspect{Inspect: &pb.InspectStep{}}},
		&pb.Step{Id: "b", Spec: &pb.Step_CheckDisks{CheckDisks: &pb.CheckDisksStep{}}},
		wipeStep("c", "S1"),
		&pb.Step{Id: "d", Spec: &pb.Step_GrowRoot{GrowRoot: &pb.GrowRootStep{Disk: disk, Partition: 2}}},
		&pb.Step{Id: "e", Spec: &pb.Step_CloudInit{CloudInit: &pb.CloudInitStep{Disk: disk, Partition: 2, MetaData: []byte("a: b"), UserData: []byte("#cloud-config\nsecret: hunter2\n")}}},
		&pb.Step{Id: "f", Spec: &pb.Step_BootEntry{BootEntry: &pb.BootEntryStep{Disk: disk, EspPartition: 1, LoaderPath: `\EFI\x.efi`}}},
		&pb.Step{Id: "g", Spec: &pb.Step_Handover{Handover: &pb.HandoverStep{}}},
	)
	m := newFakeMachine()
	startAgent(t, c, m)
	select {
	case <-m.rebooted:
	case <-time.After(15 * time.Second):
		t.Fatal("the machine was not restarted")
	}
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g"} {
		ends := c.ends(id)
		if len(ends) != 1 || !ends[0].Ok {
			t.Errorf("step %s ended as %v", id, ends)
		}
	}
	result := c.ends("a")[0].Result.AsMap()
	if nic := result["nics"].([]any)[0].(map[string]any); nic["lldp"].(map[string]any)["port_id"] != "Ethernet1" {
		t.Errorf("inventory has no neighbour: %v", nic)
	}
	if bmc := result["bmc"].(map[string]any); bmc["firmware"] != "1.2" {
		t.Errorf("inventory has no BMC: %v", bmc)
	}
	phases := map[string]bool{}
	progress := 0
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.reports {
		if p := r.GetBootPhase(); p != nil {
			phases[p.Name] = p.Ok
		}
		if r.GetProgress() != nil {
			progress++
		}
		if strings.Contains(r.String(), "hunter2") {
			t.Errorf("user-data is in a report: %v", r)
		}
	}
	for _, name := range []string{"mounts", "drivers", "links", "clock", "enrol", "inventory"} {
		if !phases[name] {
			t.Errorf("phase %s is not reported as done: %v", name, phases)
		}
	}
	if progress > 5 {
		t.Errorf("%d progress reports for a step of milliseconds", progress)
	}
}

func TestEnrolIsRetriedAfterRefusals(t *testing.T) {
	c := newFakeCoordinator(t, &pb.Step{Id: "a", Spec: &pb.Step_Inspect{Inspect: &pb.InspectStep{}}})
	c.refuse = 3
	startAgent(t, c, newFakeMachine())
	eventually(t, "step done", func() bool { return len(c.ends("a")) == 1 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.enrols != 4 {
		t.Errorf("%d enrolments, want 4", c.enrols)
	}
	// A coordinator that has signed, and whose answer was lost, signs again for the same key only.
	for i, key := range c.keys {
		if !bytes.Equal(key, c.keys[0]) {
			t.Errorf("try %d was for another key", i+1)
		}
	}
}

func TestCertificateIsRenewed(t *testing.T) {
	c := newFakeCoordinator(t)
	c.lifetime = 3 * time.Second
	startAgent(t, c, newFakeMachine())
	eventually(t, "renewals", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.enrols >= 3
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.keys {
		if want := map[bool]string{true: strconv.Itoa(i)}[i > 0]; c.shown[i] != want {
			t.Errorf("enrolment %d showed certificate %q, want %q", i+1, c.shown[i], want)
		}
		if i > 0 && bytes.Equal(c.keys[i], c.keys[i-1]) {
			t.Errorf("renewal %d is for the old key", i)
		}
	}
}

func TestCoordinatorRestartLosesAndDoublesNothing(t *testing.T) {
	c := newFakeCoordinator(t, wipeStep("a", "S1"), wipeStep("b", "S2"))
	m := newFakeMachine()
	var once bool
	m.during = func() {
		if !once {
			once = true
			c.restart(2 * time.Second)
		}
	}
	startAgent(t, c, m)
	eventually(t, "both steps done", func() bool { return len(c.ends("a")) == 1 && len(c.ends("b")) == 1 })
	if a, b := m.count("wipe /dev/vda"), m.count("wipe /dev/vdb"); a != 1 || b != 1 {
		t.Errorf("wiped %d and %d times, want once each", a, b)
	}
	started := 0
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.reports {
		if r.GetStarted() != nil {
			started++
		}
	}
	if started != 2 {
		t.Errorf("%d starts are stored, want 2", started)
	}
}

func TestFinishedStepIsNotRunAgain(t *testing.T) {
	c := newFakeCoordinator(t, wipeStep("a", "S1"))
	c.again["a"] = 2
	m := newFakeMachine()
	startAgent(t, c, m)
	eventually(t, "three ends", func() bool { return len(c.ends("a")) == 3 })
	if n := m.count("wipe /dev/vda"); n != 1 {
		t.Errorf("wiped %d times", n)
	}
	for _, end := range c.ends("a") {
		if !end.Ok || end.Result.AsMap()["method"] != "discard" {
			t.Errorf("result was not told again: %v", end)
		}
	}
}

func TestFailures(t *testing.T) {
	broken := checks.Result{Component: "S1", Verdict: checks.Fail, Code: checks.DiskSMARTFailing, Message: "failing"}
	for _, c := range []struct {
		name   string
		step   *pb.Step
		change func(*fakeMachine)
		reason string
		faulty bool
	}{
		{"wrong serial", wipeStep("a", "S9"), func(*fakeMachine) {}, "DISK_MISSING", true},
		{"kernel's name instead of a serial", wipeStep("a", "vda"), func(*fakeMachine) {}, "DISK_MISSING", true},
		{"wipe of a disk that is not to be wiped", wipeStep("a", "S1"), func(m *fakeMachine) { m.wipeErr = wipe.ErrRefused }, "DISK_REFUSED", false},
		{"no serial", wipeStep("a", ""), func(*fakeMachine) {}, "DISK_REF_EMPTY", false},
		{"two of one serial", wipeStep("a", "S1"), func(m *fakeMachine) { m.disks[1].Serial = "S1" }, "DISK_AMBIGUOUS", false},
		{"damaged image", wipeStep("a", "S1"), func(m *fakeMachine) { m.damage = errImageDamaged }, "AGENT_IMAGE_CORRUPT", false},
		{"wipe fails", wipeStep("a", "S1"), func(m *fakeMachine) { m.wipeErr = errors.New("no") }, "WIPE_FAILED", true},
		{"wipe of a disk in use", wipeStep("a", "S1"), func(m *fakeMachine) { m.wipeErr = partition.ErrInUse }, "DISK_IN_USE", false},
		{"panic", wipeStep("a", "S1"), func(m *fakeMachine) { m.during = func() { panic("oh") } }, "INTERNAL", false},
		{"broken disk", &pb.Step{Id: "a", Spec: &pb.Step_CheckDisks{CheckDisks: &pb.CheckDisksStep{}}}, func(m *fakeMachine) { m.results = []checks.Result{broken} }, "DISK_SMART_FAILING", true},
		{"not the agent's", &pb.Step{Id: "a", Spec: &pb.Step_PowerOff{PowerOff: &pb.PowerOffStep{}}}, func(*fakeMachine) {}, "STEP_UNKNOWN", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			coordinator, m := newFakeCoordinator(t, c.step), newFakeMachine()
			c.change(m)
			startAgent(t, coordinator, m)
			eventually(t, "step ended", func() bool { return len(coordinator.ends("a")) == 1 })
			end := coordinator.ends("a")[0]
			if end.Ok || end.ErrorReason != c.reason || end.MachineFaulty != c.faulty {
				t.Errorf("ended as %v, want reason %s, faulty %v", end, c.reason, c.faulty)
			}
			if !strings.Contains(c.name, "wipe") && c.name != "panic" && m.count("wipe /dev/vda")+m.count("wipe /dev/vdb") > 0 {
				t.Error("a disk was wiped")
			}
		})
	}
}

func TestQueue(t *testing.T) {
	var q queue
	progress := func(step string, n int64) *pb.Report {
		return &pb.Report{StepId: step, Body: &pb.Report_Progress{Progress: &pb.Progress{DoneBytes: n}}}
	}
	for i := range int64(100) {
		q.add(progress("a", i))
		q.add(progress("b", i))
	}
	if len(q.reports) != 2 || q.reports[0].GetProgress().DoneBytes != 99 {
		t.Errorf("progress did not coalesce: %v", q.reports)
	}
	for i := range 5000 {
		q.add(&pb.Report{Body: &pb.Report_Log{Log: &pb.Log{Message: fmt.Sprint(i)}}})
	}
	last := q.add(&pb.Report{Body: &pb.Report_Finished{Finished: &pb.StepFinished{}}})
	if len(q.reports) != maxQueueReports || q.reports[0].GetProgress() == nil {
		t.Errorf("queue of %d reports begins with %v", len(q.reports), q.reports[0])
	}
	if n := len(q.batch()); n != maxBatchReports {
		t.Errorf("batch of %d reports", n)
	}
	q.acknowledge(last)
	if len(q.reports) != 1 || !strings.Contains(q.reports[0].GetLog().GetMessage(), "3003 log lines were dropped") {
		t.Errorf("after the acknowledgement: %v", q.reports)
	}
	q.acknowledge(last + 1)
	big := strings.Repeat("x", 100<<10)
	for range 5 {
		q.add(&pb.Report{Body: &pb.Report_Log{Log: &pb.Log{Message: big}}})
	}
	if n := len(q.batch()); n != 2 {
		t.Errorf("batch of %d reports of 100 KiB, want 2", n)
	}
	q.acknowledge(1 << 40)
	if q.bytes != 0 {
		t.Errorf("%d bytes are counted in an empty queue", q.bytes)
	}
}

// A report that the coordinator will never take costs only itself.
func TestRefusedReportIsDropped(t *testing.T) {
	var mu sync.Mutex
	stored := map[string]bool{}
	r := newReporter(func(_ context.Context, batch []*pb.Report) (int64, error) {
		mu.Lock()
		defer mu.Unlock()
		for _, report := range batch {
			if report.GetLog().GetMessage() == "bad" {
				return 0, connect.NewError(connect.CodeInvalidArgument, errors.New("bad report"))
			}
		}
		for _, report := range batch {
			stored[report.GetLog().GetMessage()] = true
		}
		return batch[len(batch)-1].Sequence, nil
	}, slog.New(slog.DiscardHandler), func(string, ...any) {})
	var last int64
	for _, message := range []string{"one", "bad", "two", "three"} {
		last = r.add("", "", &pb.Report{Body: &pb.Report_Log{Log: &pb.Log{Message: message}}})
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.run(ctx) }()
	if err := r.wait(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	cancel()
	<-done
	if len(stored) != 3 {
		t.Errorf("stored %v, want one, two and three", stored)
	}
}
