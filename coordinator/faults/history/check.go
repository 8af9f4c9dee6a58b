package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Fault kinds of a rack, as a Violation names them.
const (
	// Lost is a report, a finished step or a job that was acknowledged and is not in the record.
	Lost = "lost"
	// Doubled is a report or a finished step that is in the record twice.
	Doubled = "doubled"
	// Reordered is a report that stands in the record before an earlier one of its boot; Gap one whose predecessor is not there at all.
	Reordered = "reordered"
	Gap       = "gap"
	// Invented is a report in the record that nobody sent.
	Invented = "invented"
	// Unended is a job that has not ended; Restarted one that was seen to have ended and later was something else.
	Unended   = "unended"
	Restarted = "restarted"
	// JobDoubled is one request that made two jobs; JobsOverlap a machine that two jobs drove at once.
	JobDoubled  = "job-doubled"
	JobsOverlap = "jobs-overlap"
	// OwnersOverlap is an epoch of a job that two coordinators had, or an older epoch that came after a newer one.
	OwnersOverlap = "owners-overlap"
	// Stale is a command to a device from a coordinator that another one had followed; Unowned from one that drove nothing.
	Stale   = "stale"
	Unowned = "unowned"
	// ActionDoubled is an effect that was had more often than the job's boots allow.
	ActionDoubled = "action-doubled"
	// WatchGap and WatchRepeat are what a watcher missed, or saw again.
	WatchGap    = "watch-gap"
	WatchRepeat = "watch-repeat"
	// Disorder is a record whose own numbers do not rise.
	Disorder = "disorder"
)

// Violation is one thing that must not have happened.
type Violation struct {
	Kind string
	// At is when, on the log's clock; zero where only the record shows it.
	At   time.Duration
	What string
}

// String is one line.
func (v Violation) String() string { return fmt.Sprintf("%s: %s", v.Kind, v.What) }

// Check returns everything in a history that must not have happened, given what the rack says after it. The jobs of the history must have had
// the time to end, and the entries may come in any order.
func Check(entries []Entry, final State) []Violation {
	entries = slices.Clone(entries)
	slices.SortStableFunc(entries, func(a, b Entry) int { return cmp.Compare(a.At, b.At) })
	c := &checker{entries: entries, final: final}
	c.record()
	c.reports()
	c.finishedSteps()
	c.jobs()
	c.owners()
	c.effects()
	c.watchers()
	return c.found
}

type checker struct {
	entries []Entry
	final   State
	found   []Violation
	// takings are gathered when they are first asked for: who took the jobs of each machine.
	takings map[string][]taking
}

func (c *checker) add(kind string, at time.Duration, format string, args ...any) {
	c.found = append(c.found, Violation{Kind: kind, At: at, What: fmt.Sprintf(format, args...)})
}

// record checks that the record is in order by itself.
func (c *checker) record() {
	last := int64(0)
	for _, e := range c.final.Events {
		if e.Sequence <= last {
			c.add(Disorder, 0, "event %d stands after event %d", e.Sequence, last)
		}
		last = e.Sequence
	}
}

// watchers checks that who watched saw every event of the record from its first to its last one, once.
func (c *checker) watchers() {
	var seen []int64
	for _, e := range c.entries {
		if e.Kind != Watched {
			continue
		}
		if n := len(seen); n > 0 && e.Sequence <= seen[n-1] {
			c.add(WatchRepeat, e.At, "event %d was sent after event %d", e.Sequence, seen[n-1])
			continue
		}
		seen = append(seen, e.Sequence)
	}
	if len(seen) == 0 {
		return
	}
	i := 0
	for _, e := range c.final.Events {
		switch {
		case e.Sequence < seen[0]:
		case i == len(seen):
			return // stored after the watcher had gone
		case seen[i] == e.Sequence:
			i++
		case seen[i] > e.Sequence:
			c.add(WatchGap, 0, "event %d was never sent to the watcher, but event %d was", e.Sequence, seen[i])
		default:
			c.add(Lost, 0, "event %d was sent to the watcher and is not in the record", seen[i])
			for i < len(seen) && seen[i] <= e.Sequence {
				i++
			}
		}
	}
	for ; i < len(seen); i++ {
		c.add(Lost, 0, "event %d was sent to the watcher and is not in the record", seen[i])
	}
}
