package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"bloomery/coordinator/faults/history"
)

// Variables of "make faults".
const (
	roundsVariable = "BLOOMERY_FAULTS_ROUNDS"
	onlyVariable   = "BLOOMERY_FAULTS_ONLY"
	reportVariable = "BLOOMERY_FAULTS_REPORT"
	logsVariable   = "BLOOMERY_FAULTS_LOGS"
)

const (
	// recoverWithin is how long all coordinators may take to answer after a fault is over, endWithin the jobs to end after the last.
	recoverWithin = 30 * time.Second
	// catchUpWithin is how long a round waits for the coordinator that it hit to get what it missed; with one behind, the next fault can
	// take the majority away. In the end all must have caught up, within lastCatchUp.
	catchUpWithin, lastCatchUp = 3 * time.Second, 90 * time.Second
	endWithin                  = 3 * time.Minute
	// workBetween is how long the rack works between two faults.
	workBetween = 1500 * time.Millisecond
)

// TestTenRounds does each fault once while a rack works, and one again.
func TestTenRounds(t *testing.T) {
	if testing.Short() {
		t.Skip("takes two minutes")
	}
	if !inWorld(t) {
		return
	}
	w := newWorld(t, size{nodes: rackSize, machines: 8, reporters: 12})
	faults := w.faults()
	w.run(faults, 10, 1, func(round int, _ *rand.Rand) fault { return faults[round%len(faults)].briefly() })
}

// rackSize is how many coordinators the rack has.
const rackSize = 3

// faults are those that the rack is large enough for, or the one that is asked for.
func (w *world) faults() []fault {
	only := os.Getenv(onlyVariable)
	return slices.DeleteFunc(allFaults(), func(f fault) bool { return f.nodes > len(w.nodes) || only != "" && f.name != only })
}

// row is a line of the report: what was done so and so often, and what came of it.
type row struct {
	Area       string `json:"area"`
	Fault      string `json:"fault"`
	InjectedBy string `json:"injected_by"`
	Expected   string `json:"expected"`
	Found      string `json:"found"`
	OK         bool   `json:"ok"`
}

// report is out/faults.json.
type report struct {
	Rows    []row  `json:"rows"`
	Rounds  int    `json:"rounds"`
	Seed    uint64 `json:"seed"`
	Acked   int64  `json:"acked"`
	Lost    int    `json:"lost"`
	Doubled int    `json:"doubled"`
	Jobs    string `json:"jobs"`
}

// run lets machines have jobs while faults happen, and judges the whole.
func (w *world) run(faults []fault, rounds int, seed uint64, choose func(round int, r *rand.Rand) fault) {
	t := w.t
	random := rand.New(rand.NewPCG(seed, 0))
	fmt.Printf("seed %d: %d coordinators, %d machines\n", seed, len(w.nodes), len(w.machines))
	var ended outcomes
	for _, m := range w.machines {
		if m.works {
			w.asking.Go(func() { w.operator.work(m, &ended) })
		}
	}
	stats := map[string]*tally{}
	for round := range rounds {
		f := choose(round, random)
		if stats[f.name] == nil {
			stats[f.name] = &tally{fault: f}
		}
		if !w.round(round, f, random, stats[f.name]) {
			break
		}
		if round%20 == 19 {
			w.judge(random, false)
		}
	}
	w.stop.Do(func() { close(w.stopAsking) })
	if !waitFor(&w.asking, endWithin) {
		t.Errorf("jobs did not end within %s", endWithin)
	}
	if err := w.caughtUpWithin(lastCatchUp); err != nil {
		t.Errorf("in the end: %v", err)
	}
	found := w.judge(random, true)
	fmt.Printf("jobs: %s\n", ended.String())
	w.write(rounds, seed, stats, found, ended.String())
}

// tally is what came of the rounds with one fault.
type tally struct {
	fault                  fault
	rounds, failed, behind int
	slowest, gap           time.Duration
}

// round does one fault and waits until the rack works again.
func (w *world) round(number int, f fault, r *rand.Rand, stats *tally) bool {
	if !w.pause(workBetween) {
		return false
	}
	hold := f.least + time.Duration(r.Int64N(int64(f.most-f.least)+1))
	w.record.gap()
	what, heal, err := f.inject(w, r)
	if err != nil {
		w.t.Errorf("round %d: %s: %v", number, f.name, err)
		return false
	}
	w.record.add(history.Entry{Kind: history.Fault, Value: what})
	w.pause(hold)
	if err := heal(); err != nil {
		w.t.Errorf("round %d: %s: heal: %v", number, what, err)
		return false
	}
	healed := time.Now()
	w.record.add(history.Entry{Kind: history.Healed, Value: what})
	ctx, cancel := context.WithTimeout(w.ctx, recoverWithin)
	defer cancel()
	err = w.ready(ctx, w.nodes...)
	took := time.Since(healed)
	behind := w.caughtUpWithin(catchUpWithin)
	whole, gap := time.Since(healed), w.record.gap()
	stats.rounds++
	stats.slowest, stats.gap = max(stats.slowest, took), max(stats.gap, gap)
	caughtUp := fmt.Sprintf("replicate after %4.1f s", whole.Seconds())
	if behind != nil {
		stats.behind++
		caughtUp = "one is still behind    "
	}
	fmt.Printf("round %3d  %-38s held %4.1f s; all answer after %4.1f s, %s; longest gap of reports %4.1f s, %d acknowledged\n",
		number+1, what, hold.Seconds(), took.Seconds(), caughtUp, gap.Seconds(), w.record.ackedReports())
	if err != nil {
		stats.failed++
		w.t.Errorf("round %d: %s: the rack did not recover within %s: %v", number, what, recoverWithin, err)
		return false
	}
	return true
}

// judge checks the history against what a coordinator says. While jobs run, those that have not ended are no violation.
func (w *world) judge(r *rand.Rand, over bool) []history.Violation {
	c := w.operator.caller()
	defer c.close()
	ctx, cancel := context.WithTimeout(w.ctx, time.Minute)
	defer cancel()
	entries := w.record.all() // before the record is read: what is acknowledged later may be missing there
	final, err := c.final(ctx, w.anyNode(r))
	if err != nil {
		w.t.Errorf("read the record: %v", err)
		return nil
	}
	found := history.Check(entries, final)
	if !over {
		found = slices.DeleteFunc(found, func(v history.Violation) bool { return v.Kind == history.Unended || v.Kind == history.Invented })
	}
	for _, v := range found {
		w.t.Errorf("%s", v)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if over && len(w.unexpected) > 0 {
		w.t.Errorf("%d answers were not as they should be: %q", len(w.unexpected), w.unexpected[0])
	}
	return found
}

// write makes out/faults.json, where it is asked for.
func (w *world) write(rounds int, seed uint64, stats map[string]*tally, found []history.Violation, jobs string) {
	path := os.Getenv(reportVariable)
	if path == "" {
		return
	}
	r := report{Rounds: rounds, Seed: seed, Acked: w.record.ackedReports(), Jobs: jobs}
	for _, v := range found {
		switch v.Kind {
		case history.Lost:
			r.Lost++
		case history.Doubled:
			r.Doubled++
		}
	}
	for _, f := range allFaults() {
		s := stats[f.name]
		if s == nil {
			continue
		}
		r.Rows = append(r.Rows, row{
			Area: f.area, Fault: f.name, InjectedBy: "coordinator/faults", Expected: fmt.Sprintf("all coordinators answer within %s, nothing acknowledged is lost or doubled", recoverWithin),
			Found: fmt.Sprintf("%d rounds, %d without recovery; all answered after %.1f s at most, in %d rounds one was behind for more than %s, longest gap of reports %.1f s", s.rounds, s.failed, s.slowest.Seconds(), s.behind, catchUpWithin, s.gap.Seconds()),
			OK:    s.failed == 0 && len(found) == 0,
		})
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o755)
	}
	if err == nil {
		err = os.WriteFile(path, append(data, '\n'), 0o644)
	}
	if err != nil {
		w.t.Errorf("write the report: %v", err)
	}
}

func waitFor(g interface{ Wait() }, most time.Duration) bool {
	done := make(chan struct{})
	go func() {
		g.Wait()
		close(done)
	}()
	select {
	case <-done:
		return true
	case <-time.After(most):
		return false
	}
}
