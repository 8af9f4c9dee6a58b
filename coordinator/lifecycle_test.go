package coordinator

import (
	"flag"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func update() bool {
	f := flag.Lookup("update")
	return f != nil && f.Value.String() == "true"
}

var _ = flag.Bool("update", false, "write golden files")

func TestLifecycleExhaustive(t *testing.T) {
	events := map[LifecycleEvent]bool{}
	allowed := map[bloomeryv1.MachineStatus]map[LifecycleEvent]bloomeryv1.MachineStatus{}
	for _, tr := range Transitions() {
		events[tr.Event] = true
		if allowed[tr.From] == nil {
			allowed[tr.From] = map[LifecycleEvent]bloomeryv1.MachineStatus{}
		}
		if _, twice := allowed[tr.From][tr.Event]; twice {
			t.Errorf("%v %s stands twice", tr.From, tr.Event)
		}
		allowed[tr.From][tr.Event] = tr.To
	}
	for n := range bloomeryv1.MachineStatus_name {
		from := bloomeryv1.MachineStatus(n)
		for event := range events {
			want, ok := allowed[from][event]
			got, err := NextStatus(from, event)
			if (err == nil) != ok || (ok && got != want) {
				t.Errorf("%v %s: %v %v, want %v %v", from, event, got, err, want, ok)
			}
		}
	}
	// A job that was started can always end, whatever happens.
	for _, kind := range []bloomeryv1.JobKind{bloomeryv1.JobKind_JOB_KIND_INSPECT, bloomeryv1.JobKind_JOB_KIND_INSTALL, bloomeryv1.JobKind_JOB_KIND_RELEASE} {
		for _, tr := range Transitions() {
			if tr.Event != startEvent(kind) {
				continue
			}
			for _, end := range []LifecycleEvent{failureEvent(kind), Condemned} {
				if _, err := NextStatus(tr.To, end); err != nil {
					t.Errorf("a %s cannot end: %v", kindName(kind), err)
				}
			}
		}
	}
	if s, err := NextStatus(running, InstallStarted); err == nil {
		t.Errorf("a running machine can be installed over: %v", s)
	}
}

func TestLifecyclePage(t *testing.T) {
	golden(t, "../docs/lifecycle.md", LifecyclePage())
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if update() {
		must(t, os.WriteFile(path, []byte(got), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s is not up to date (-file +generated); run with -update:\n%s", path, d)
	}
}
