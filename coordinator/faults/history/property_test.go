package history

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// world makes the history of a rack that does everything right, out of random choices.
type world struct {
	*rand.Rand
	now     time.Duration
	entries []Entry
	final   State
	nodes   []string
}

func (w *world) log(e Entry) {
	w.now += time.Duration(1+w.IntN(1000)) * time.Microsecond
	e.At = w.now
	w.entries = append(w.entries, e)
}

func (w *world) store(e Event) {
	e.Sequence = 1
	if n := len(w.final.Events); n > 0 {
		e.Sequence = w.final.Events[n-1].Sequence + 1 + int64(w.IntN(3)/2)
	}
	w.final.Events = append(w.final.Events, e)
	w.log(Entry{Kind: Watched, Sequence: e.Sequence, Node: w.node()})
}

func (w *world) node() string { return w.nodes[w.IntN(len(w.nodes))] }

// goodHistory lets machines have jobs and agents talk.
func goodHistory(seed uint64) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 1)), nodes: []string{"c1", "c2", "c3"}}
	for job := range 3 + w.IntN(5) {
		w.job(fmt.Sprintf("m%d", w.IntN(3)), fmt.Sprintf("j%d", job))
	}
	return w
}

// job is one inspection, with owners that follow one another and agents that are booted again.
func (w *world) job(machine, id string) {
	w.log(Entry{Kind: JobAsked, Machine: machine, Request: id, Value: "inspect"})
	w.store(Event{Type: "job.created", Machine: machine, Job: id})
	if w.IntN(2) == 0 {
		w.log(Entry{Kind: JobAccepted, Machine: machine, Request: id, Job: id, Node: w.node()})
	}
	epoch, owner := int64(0), ""
	take := func() {
		epoch, owner = epoch+1, w.node()
		w.log(Entry{Kind: JobTaken, Job: id, Node: owner, Epoch: epoch})
	}
	act := func(action string, changed bool) {
		if w.IntN(3) == 0 {
			take()
		}
		w.log(Entry{Kind: Acted, Machine: machine, Node: owner, Action: action, Changed: changed})
	}
	take()
	boots := 1 + w.IntN(2)
	for n := range boots {
		act(PowerOff, n > 0)
		act(BootDevice, true)
		w.store(Event{Type: "boot.expected", Machine: machine, Job: id})
		act(PowerOn, true)
		if w.IntN(2) == 0 {
			act(PowerOn, false)
		}
		w.agent(machine, id, fmt.Sprintf("%s-b%d", id, n), n == boots-1)
	}
	act(PowerOff, true)
	status := []string{"done", "failed"}[w.IntN(2)]
	w.store(Event{Type: "job." + status, Machine: machine, Job: id})
	w.log(Entry{Kind: JobEnded, Job: id, Value: status, Node: w.node()})
	w.final.Jobs = append(w.final.Jobs, Job{ID: id, Machine: machine, Kind: "inspect", Status: status})
}

// agent sends reports of which some are never answered, and finishes a step if it is the last one.
func (w *world) agent(machine, job, boot string, last bool) {
	reports := int64(3 + w.IntN(5))
	for n := int64(1); n <= reports; n++ {
		w.log(Entry{Kind: ReportSent, Machine: machine, Boot: boot, Sequence: n})
		w.store(Event{Type: "agent.log", Machine: machine, Boot: boot, Report: n})
		if w.IntN(3) > 0 {
			w.log(Entry{Kind: ReportAcked, Machine: machine, Boot: boot, Sequence: n, Node: w.node()})
		}
	}
	w.log(Entry{Kind: ReportAcked, Machine: machine, Boot: boot, Sequence: reports, Node: w.node()})
	if !last {
		return
	}
	w.log(Entry{Kind: ReportSent, Machine: machine, Boot: boot, Sequence: reports + 1, Step: job + "-1"})
	w.store(Event{Type: "step.done", Machine: machine, Job: job, Step: job + "-1"})
	w.log(Entry{Kind: ReportAcked, Machine: machine, Boot: boot, Sequence: reports + 1, Node: w.node()})
}

// pick returns the place of a random one of those that fit.
func pick[T any](r *rand.Rand, all []T, fits func(T) bool) int {
	var places []int
	for i, x := range all {
		if fits(x) {
			places = append(places, i)
		}
	}
	return places[r.IntN(len(places))]
}

func isLog(e Event) bool { return e.Boot != "" }

// mutations break a good history each in one way, which the check must find.
var mutations = map[string]func(w *world){
	Lost: func(w *world) {
		i := pick(w.Rand, w.final.Events, func(e Event) bool { return isLog(e) || e.Type == "step.done" })
		w.final.Events = slices.Delete(w.final.Events, i, i+1)
	},
	Doubled: func(w *world) {
		e := w.final.Events[pick(w.Rand, w.final.Events, func(e Event) bool { return isLog(e) || e.Type == "step.done" })]
		w.store(e)
	},
	Reordered: func(w *world) {
		i := pick(w.Rand, w.final.Events, func(e Event) bool { return isLog(e) && e.Report > 1 })
		j := slices.IndexFunc(w.final.Events, func(e Event) bool {
			return e.Boot == w.final.Events[i].Boot && e.Report == w.final.Events[i].Report-1
		})
		w.final.Events[i].Report, w.final.Events[j].Report = w.final.Events[j].Report, w.final.Events[i].Report
	},
	Gap: func(w *world) {
		i := pick(w.Rand, w.final.Events, func(e Event) bool { return isLog(e) && e.Report == 1 })
		gone := w.final.Events[i]
		w.final.Events = slices.Delete(w.final.Events, i, i+1)
		w.entries = slices.DeleteFunc(w.entries, func(e Entry) bool { return e.Kind == ReportAcked && e.Boot == gone.Boot })
	},
	Invented: func(w *world) {
		e := w.final.Events[pick(w.Rand, w.final.Events, isLog)]
		e.Report = 1000
		w.store(e)
	},
	Unended: func(w *world) { w.final.Jobs[w.IntN(len(w.final.Jobs))].Status = "running" },
	Restarted: func(w *world) {
		w.final.Jobs[w.IntN(len(w.final.Jobs))].Status = "cancelled"
	},
	JobDoubled: func(w *world) {
		j := w.final.Jobs[w.IntN(len(w.final.Jobs))]
		w.log(Entry{Kind: JobAccepted, Machine: j.Machine, Request: j.ID, Job: j.ID, Node: "c1"})
		w.log(Entry{Kind: JobAccepted, Machine: j.Machine, Request: j.ID, Job: j.ID + "x", Node: "c2"})
	},
	JobsOverlap: func(w *world) {
		i := pick(w.Rand, w.final.Events, func(e Event) bool { return e.Type == "boot.expected" })
		w.final.Events[i].Type, w.final.Events[i].Job = "job.created", "other"
	},
	OwnersOverlap: func(w *world) {
		e := w.entries[pick(w.Rand, w.entries, func(e Entry) bool { return e.Kind == JobTaken })]
		e.At, e.Node = e.At+1, "c4"
		w.entries = append(w.entries, e)
	},
	Stale: func(w *world) {
		// The owner before the last one of a job does what the last one has done, right after it.
		i := pick(w.Rand, w.entries, func(e Entry) bool { return e.Kind == Acted })
		e := w.entries[i]
		w.entries = append(w.entries, Entry{At: e.At - 2, Kind: JobTaken, Job: jobOf(w, e), Node: "c9", Epoch: -1})
		e.At, e.Node, e.Changed = e.At+1, "c9", false
		w.entries = append(w.entries, e)
	},
	Unowned: func(w *world) {
		e := w.entries[pick(w.Rand, w.entries, func(e Entry) bool { return e.Kind == Acted })]
		e.At, e.Node, e.Changed = e.At+1, "c9", false
		w.entries = append(w.entries, e)
	},
	ActionDoubled: func(w *world) {
		e := w.entries[pick(w.Rand, w.entries, func(e Entry) bool { return e.Kind == Acted && e.Action == PowerOn && e.Changed })]
		e.At++
		w.entries = append(w.entries, e)
	},
	WatchGap: func(w *world) {
		seen := 0
		i := pick(w.Rand, w.entries, func(e Entry) bool {
			if e.Kind == Watched {
				seen++
			}
			return e.Kind == Watched && seen > 1 && e.Sequence < w.final.Events[len(w.final.Events)-1].Sequence
		})
		w.entries = slices.Delete(w.entries, i, i+1)
	},
	WatchRepeat: func(w *world) {
		e := w.entries[pick(w.Rand, w.entries, func(e Entry) bool { return e.Kind == Watched })]
		w.now++
		e.At = w.now
		w.entries = append(w.entries, e)
	},
	Disorder: func(w *world) {
		i := 1 + w.IntN(len(w.final.Events)-1)
		w.final.Events[i].Sequence = w.final.Events[i-1].Sequence
	},
}

// jobOf finds the job that a command was for: the one that was taken last before it among those of its machine.
func jobOf(w *world, acted Entry) string {
	machines := map[string]string{}
	for _, j := range w.final.Jobs {
		machines[j.ID] = j.Machine
	}
	job := ""
	for _, e := range w.entries {
		if e.Kind == JobTaken && e.At < acted.At && machines[e.Job] == acted.Machine {
			job = e.Job
		}
	}
	return job
}

// TestCheckFindsEveryMutation makes many histories of a rack that does everything right, accepts them, breaks each in every way and wants to be told.
func TestCheckFindsEveryMutation(t *testing.T) {
	for seed := range uint64(200) {
		w := goodHistory(seed)
		w.Shuffle(len(w.entries), func(i, j int) { w.entries[i], w.entries[j] = w.entries[j], w.entries[i] })
		if found := Check(w.entries, w.final); len(found) > 0 {
			t.Fatalf("seed %d: a good history: %v", seed, found)
		}
		for kind, mutate := range mutations {
			w := goodHistory(seed)
			mutate(w)
			found := Check(w.entries, w.final)
			if !slices.ContainsFunc(found, func(v Violation) bool { return v.Kind == kind }) {
				t.Errorf("seed %d: %s was not found, only %v", seed, kind, found)
			}
		}
	}
}

// BenchmarkCheck says what a long run's check costs.
func BenchmarkCheck(b *testing.B) {
	w := goodHistory(1)
	for i := range 2000 {
		w.job(fmt.Sprintf("m%d", i%20), fmt.Sprintf("more%d", i))
	}
	for b.Loop() {
		if found := Check(w.entries, w.final); len(found) > 0 {
			b.Fatal(found[0])
		}
	}
	b.ReportMetric(float64(len(w.entries)), "entries")
}
