package history

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// told is a small history in which everything went well: machine m1 is inspected, c1 dies, c2 takes the job.
func told() ([]Entry, State) {
	ms := time.Millisecond
	entries := []Entry{
		{At: 1 * ms, Kind: JobAsked, Machine: "m1", Request: "r1", Value: "inspect"},
		{At: 2 * ms, Kind: JobAccepted, Machine: "m1", Request: "r1", Job: "j1", Node: "c1"},
		{At: 3 * ms, Kind: JobTaken, Job: "j1", Node: "c1", Epoch: 1},
		{At: 4 * ms, Kind: Acted, Machine: "m1", Node: "c1", Action: BootDevice, Changed: true, Value: "network"},
		{At: 5 * ms, Kind: Fault, Value: "kill", Node: "c1"},
		{At: 6 * ms, Kind: JobTaken, Job: "j1", Node: "c2", Epoch: 2},
		{At: 7 * ms, Kind: Acted, Machine: "m1", Node: "c2", Action: PowerOn, Changed: true},
		{At: 8 * ms, Kind: ReportSent, Machine: "m1", Boot: "b1", Sequence: 1},
		{At: 9 * ms, Kind: ReportSent, Machine: "m1", Boot: "b1", Sequence: 2},
		{At: 10 * ms, Kind: ReportAcked, Machine: "m1", Boot: "b1", Sequence: 2, Node: "c2"},
		{At: 11 * ms, Kind: ReportSent, Machine: "m1", Boot: "b1", Sequence: 3, Step: "j1-1"},
		{At: 12 * ms, Kind: ReportAcked, Machine: "m1", Boot: "b1", Sequence: 3, Node: "c3"},
		{At: 13 * ms, Kind: Acted, Machine: "m1", Node: "c2", Action: PowerOff, Changed: true},
		{At: 14 * ms, Kind: JobEnded, Job: "j1", Value: "done", Node: "c3"},
		{At: 15 * ms, Kind: Watched, Sequence: 2},
		{At: 16 * ms, Kind: Watched, Sequence: 3},
		{At: 17 * ms, Kind: Watched, Sequence: 4},
		{At: 18 * ms, Kind: Watched, Sequence: 5},
	}
	final := State{
		Events: []Event{
			{Sequence: 1, Type: "job.created", Machine: "m1", Job: "j1"},
			{Sequence: 2, Type: "boot.expected", Machine: "m1", Job: "j1"},
			{Sequence: 3, Type: "agent.log", Machine: "m1", Boot: "b1", Report: 1},
			{Sequence: 4, Type: "agent.log", Machine: "m1", Boot: "b1", Report: 2},
			{Sequence: 5, Type: "step.done", Machine: "m1", Job: "j1", Step: "j1-1"},
			{Sequence: 7, Type: "job.done", Machine: "m1", Job: "j1"},
		},
		Jobs: []Job{{ID: "j1", Machine: "m1", Kind: "inspect", Status: "done"}},
	}
	return entries, final
}

func TestCheckAcceptsAGoodHistory(t *testing.T) {
	entries, final := told()
	if found := Check(entries, final); len(found) > 0 {
		t.Errorf("%v", found)
	}
	slices.Reverse(entries)
	if found := Check(entries, final); len(found) > 0 {
		t.Errorf("entries in another order: %v", found)
	}
}

func TestCheckAcceptsWhatIsAllowed(t *testing.T) {
	for name, edit := range map[string]func(*[]Entry, *State){
		"a report that was not acknowledged is lost": func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: time.Second, Kind: ReportSent, Machine: "m1", Boot: "b1", Sequence: 4})
		},
		"a report that was not acknowledged is stored": func(h *[]Entry, s *State) {
			*h = append(*h, Entry{At: time.Second, Kind: ReportSent, Machine: "m1", Boot: "b1", Sequence: 4})
			s.Events = append(s.Events, Event{Sequence: 8, Type: "agent.log", Machine: "m1", Boot: "b1", Report: 4})
		},
		"a job that was asked for was never answered": func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: time.Second, Kind: JobAsked, Machine: "m2", Request: "r2"})
		},
		"a request is answered twice with one job": func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: time.Second, Kind: JobAccepted, Machine: "m1", Request: "r1", Job: "j1", Node: "c3"})
		},
		"a step was done and its report came late": func(_ *[]Entry, s *State) {
			s.Events[4].Type = "step.stale_report"
		},
		"the same command comes again and changes nothing": func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: 7500 * time.Microsecond, Kind: Acted, Machine: "m1", Node: "c2", Action: PowerOn})
		},
		"an owner that was slow to say so": func(h *[]Entry, _ *State) {
			// c3 took epoch 1 and stood still before it could say so.
			(*h)[2].Node, (*h)[2].At = "c3", 20*time.Millisecond
			(*h)[3].Node, (*h)[3].At = "c2", 6500*time.Microsecond
		},
		"a phone-home call whose answer was lost": func(h *[]Entry, s *State) {
			*h = append(*h, Entry{At: time.Second, Kind: Heard, Machine: "m1", Node: "c1"})
			for n := int64(8); n < 10; n++ {
				s.Events = append(s.Events, Event{Sequence: n, Type: "system.phoned_home", Machine: "m1"})
			}
		},
		"events after the watcher had gone": func(_ *[]Entry, s *State) {
			s.Events = append(s.Events, Event{Sequence: 9, Type: "rack.note"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			entries, final := told()
			edit(&entries, &final)
			if found := Check(entries, final); len(found) > 0 {
				t.Errorf("%v", found)
			}
		})
	}
}

// TestCheckRejects shows for each kind of violation a history that has it and nothing else.
func TestCheckRejects(t *testing.T) {
	drop := func(s *State, i int) { s.Events = slices.Delete(s.Events, i, i+1) }
	swap := func(s *State, i, j int) {
		s.Events[i], s.Events[j] = s.Events[j], s.Events[i]
		s.Events[i].Sequence, s.Events[j].Sequence = s.Events[j].Sequence, s.Events[i].Sequence
	}
	noWatch := func(h *[]Entry) { *h = slices.DeleteFunc(*h, func(e Entry) bool { return e.Kind == Watched }) }
	for _, c := range []struct {
		name, want, text string
		edit             func(*[]Entry, *State)
	}{
		{"the last acknowledged report is gone", Lost, "report 2", func(h *[]Entry, s *State) { noWatch(h); drop(s, 3) }},
		{"an acknowledged report between others is gone", Lost, "report 1", func(h *[]Entry, s *State) { noWatch(h); drop(s, 2) }},
		{"all of a boot is gone", Lost, "acknowledged by c3", func(h *[]Entry, s *State) {
			noWatch(h)
			*h = append(*h, Entry{At: time.Second, Kind: ReportSent, Machine: "m2", Boot: "b2", Sequence: 1}, Entry{At: time.Second, Kind: ReportAcked, Machine: "m2", Boot: "b2", Sequence: 1, Node: "c3"})
		}},
		{"a finished step is gone", Lost, "step j1-1", func(h *[]Entry, s *State) { noWatch(h); drop(s, 4) }},
		{"an accepted job is gone", Lost, "job j2", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: time.Second, Kind: JobAccepted, Machine: "m2", Request: "r2", Job: "j2", Node: "c1"})
		}},
		{"a phone-home call is gone", Lost, "machine m1 phone home", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: time.Second, Kind: Heard, Machine: "m1", Node: "c1"})
		}},
		{"an event that was watched is gone", Lost, "event 8", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: time.Second, Kind: Watched, Sequence: 7}, Entry{At: time.Second, Kind: Watched, Sequence: 8})
		}},
		{"an event that was watched is gone between others", Lost, "event 6", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: time.Second, Kind: Watched, Sequence: 6}, Entry{At: time.Second, Kind: Watched, Sequence: 7})
		}},
		{"a report is there twice", Doubled, "report 1", func(_ *[]Entry, s *State) {
			s.Events = append(s.Events, Event{Sequence: 8, Type: "agent.log", Machine: "m1", Boot: "b1", Report: 1})
		}},
		{"a step is done twice", Doubled, "step j1-1", func(_ *[]Entry, s *State) {
			s.Events = append(s.Events, Event{Sequence: 8, Type: "step.done", Machine: "m1", Job: "j1", Step: "j1-1"})
		}},
		{"a job ends twice", Doubled, "job j1", func(_ *[]Entry, s *State) {
			s.Events = append(s.Events, Event{Sequence: 8, Type: "job.done", Machine: "m1", Job: "j1"})
		}},
		{"reports are stored in another order", Reordered, "report 1", func(_ *[]Entry, s *State) { swap(s, 2, 3) }},
		{"a report that was not acknowledged is missing before another one", Gap, "report 4", func(h *[]Entry, s *State) {
			for n := int64(4); n <= 5; n++ {
				*h = append(*h, Entry{At: time.Second, Kind: ReportSent, Machine: "m1", Boot: "b1", Sequence: n})
			}
			s.Events = append(s.Events, Event{Sequence: 8, Type: "agent.log", Machine: "m1", Boot: "b1", Report: 5})
		}},
		{"a report that nobody sent", Invented, "report 9", func(_ *[]Entry, s *State) {
			s.Events = append(s.Events, Event{Sequence: 8, Type: "agent.log", Machine: "m1", Boot: "b1", Report: 9})
		}},
		{"a boot that nobody saw", Invented, "boot b9", func(_ *[]Entry, s *State) {
			s.Events = append(s.Events, Event{Sequence: 8, Type: "agent.log", Machine: "m1", Boot: "b9", Report: 1})
		}},
		{"a job runs for ever", Unended, "job j1", func(h *[]Entry, s *State) {
			*h = slices.DeleteFunc(*h, func(e Entry) bool { return e.Kind == JobEnded })
			s.Jobs[0].Status = "running"
		}},
		{"a job is done and then failed", Restarted, "seen done and is failed", func(_ *[]Entry, s *State) { s.Jobs[0].Status = "failed" }},
		{"a job is seen done and later failed", Restarted, "seen done and later failed", func(h *[]Entry, s *State) {
			*h = append(*h, Entry{At: time.Second, Kind: JobEnded, Job: "j1", Value: "failed"})
			s.Jobs[0].Status = "failed"
		}},
		{"one request makes two jobs", JobDoubled, "jobs j1 and j2", func(h *[]Entry, s *State) {
			*h = append(*h, Entry{At: time.Second, Kind: JobAccepted, Machine: "m1", Request: "r1", Job: "j2", Node: "c1"})
			s.Jobs = append(s.Jobs, Job{ID: "j2", Machine: "m1", Kind: "inspect", Status: "done"})
		}},
		{"two jobs drive a machine", JobsOverlap, "job j2", func(_ *[]Entry, s *State) {
			s.Events = slices.Insert(s.Events, 5, Event{Sequence: 6, Type: "job.created", Machine: "m1", Job: "j2"})
			s.Jobs = append(s.Jobs, Job{ID: "j2", Machine: "m1", Kind: "inspect", Status: "done"})
		}},
		{"two coordinators have one epoch", OwnersOverlap, "epoch 2", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: 20 * time.Millisecond, Kind: JobTaken, Job: "j1", Node: "c3", Epoch: 2})
		}},
		{"a coordinator wakes and goes on", Stale, "c1 (job j1, epoch 1)", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: 7500 * time.Microsecond, Kind: Acted, Machine: "m1", Node: "c1", Action: BootDevice})
		}},
		{"a coordinator wakes in the machine's next job", Stale, "c2 (job j1, epoch 2)", func(h *[]Entry, s *State) {
			*h = append(*h, Entry{At: 20 * time.Millisecond, Kind: JobTaken, Job: "j2", Node: "c3", Epoch: 1},
				Entry{At: 21 * time.Millisecond, Kind: Acted, Machine: "m1", Node: "c2", Action: PowerOff})
			s.Events = append(s.Events, Event{Sequence: 8, Type: "job.created", Machine: "m1", Job: "j2"}, Event{Sequence: 9, Type: "job.failed", Machine: "m1", Job: "j2"})
			s.Jobs = append(s.Jobs, Job{ID: "j2", Machine: "m1", Kind: "inspect", Status: "failed"})
		}},
		{"a coordinator that never took the job acts", Unowned, "c3 commanded", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: 7500 * time.Microsecond, Kind: Acted, Machine: "m1", Node: "c3", Action: BootDevice})
		}},
		{"a machine is switched on twice in one boot", ActionDoubled, "power-on", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: 13100 * time.Microsecond, Kind: Acted, Machine: "m1", Node: "c2", Action: PowerOn, Changed: true})
		}},
		{"a machine is reset by nobody's wish", ActionDoubled, "reset", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: 7500 * time.Microsecond, Kind: Acted, Machine: "m1", Node: "c2", Action: Reset, Changed: true})
		}},
		{"an inspection moves the port", ActionDoubled, "move-port", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: 7500 * time.Microsecond, Kind: Acted, Machine: "m1", Node: "c2", Action: MovePort, Changed: true, Value: "customer-a"})
		}},
		{"a watcher misses an event", WatchGap, "event 4", func(h *[]Entry, _ *State) {
			*h = slices.DeleteFunc(*h, func(e Entry) bool { return e.Kind == Watched && e.Sequence == 4 })
		}},
		{"a watcher sees an event again", WatchRepeat, "event 4", func(h *[]Entry, _ *State) {
			*h = append(*h, Entry{At: 20 * time.Millisecond, Kind: Watched, Sequence: 4})
		}},
		{"the record is not in order", Disorder, "event 7", func(_ *[]Entry, s *State) {
			s.Events = append(s.Events, Event{Sequence: 7, Type: "rack.note"})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			entries, final := told()
			c.edit(&entries, &final)
			found := Check(entries, final)
			if len(found) == 0 {
				t.Fatal("accepted")
			}
			for _, v := range found {
				if v.Kind != c.want {
					t.Errorf("found %q, want %s only", v, c.want)
				}
			}
			if !strings.Contains(found[0].What, c.text) {
				t.Errorf("found %q, want it to say %q", found[0], c.text)
			}
		})
	}
}

func TestReadAndWrite(t *testing.T) {
	entries, _ := told()
	var text bytes.Buffer
	if err := Write(&text, entries); err != nil {
		t.Fatal(err)
	}
	again, err := Read(&text)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(entries, again); d != "" {
		t.Errorf("-written +read:\n%s", d)
	}
	for _, bad := range []string{"x", "{}", `{"kind":"acted","colour":1}`, `{"kind":"acted"} {}`, "\n", `{"kind":"` + strings.Repeat("x", maxLine) + `"}`} {
		if _, err := Read(strings.NewReader(bad)); err == nil {
			t.Errorf("%.40q was read", bad)
		}
	}
}

func FuzzRead(f *testing.F) {
	entries, final := told()
	var text bytes.Buffer
	if err := Write(&text, entries); err != nil {
		f.Fatal(err)
	}
	f.Add(text.Bytes())
	f.Add([]byte(`{"kind":"watched","sequence":-1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		read, err := Read(bytes.NewReader(data))
		if err == nil {
			Check(read, final)
		}
	})
}
