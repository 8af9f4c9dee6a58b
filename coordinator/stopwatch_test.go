package coordinator

import (
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// TestStopwatch shows that what is written by clocks that are hours away counts from when it is seen.
func TestStopwatch(t *testing.T) {
	start := time.Now()
	heard := start.Add(27 * time.Hour)
	var s stopwatch
	look := func(after time.Duration) World {
		w := World{
			Boot:    &store.Boot{Created: start.Add(-27 * time.Hour), Heard: heard},
			Actions: []store.Action{{Scope: "round-1", Kind: "power-on", Intended: start.Add(time.Hour), Error: "x"}},
		}
		j := &store.Job{Job: &bloomeryv1.Job{Steps: []*bloomeryv1.Step{{StartedAt: timestamppb.New(start.Add(-99 * time.Hour))}}}}
		s.look(&w, j, start.Add(after))
		return w
	}
	look(0)
	w := look(time.Minute)
	for what, at := range map[string]time.Time{"boot": w.Boot.Created, "call": w.Boot.Heard, "action": w.Actions[0].Intended, "step": w.StepStarted} {
		if !at.Equal(start) {
			t.Errorf("%s: was seen %s after the start, not at it", what, at.Sub(start))
		}
	}
	if !w.Boot.Enrolled.IsZero() {
		t.Error("nobody has enrolled")
	}
	heard = heard.Add(-30 * time.Hour) // another coordinator writes the next call
	if w := look(2 * time.Minute); !w.Boot.Heard.Equal(start.Add(2*time.Minute)) || !w.Boot.Created.Equal(start) {
		t.Errorf("the call was seen %s after the start, the boot %s", w.Boot.Heard.Sub(start), w.Boot.Created.Sub(start))
	}
}
