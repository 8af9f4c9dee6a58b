package coordinator

import (
	"fmt"
	"time"

	"bloomery/coordinator/store"
)

// stopwatch measures how long ago things happened for one driver of a job. Rows date things by the time of day of whichever coordinator wrote
// them, and that may jump by hours. So a driver counts from when it saw a thing first, on its own monotonic clock: what
// waits for a while waits again in full when another coordinator takes the job, and never for a day.
type stopwatch struct {
	seen map[string]sighting
}

type sighting struct {
	written time.Time
	at      time.Time
}

// since says when this driver first saw a thing with the time that is written for it; zero for what has not happened.
func (s *stopwatch) since(thing string, written, now time.Time) time.Time {
	if written.IsZero() {
		return time.Time{}
	}
	if last, ok := s.seen[thing]; ok && last.written.Equal(written) {
		return last.at
	}
	if s.seen == nil {
		s.seen = map[string]sighting{}
	}
	s.seen[thing] = sighting{written, now}
	return now
}

// look puts what the rows say of the world into the driver's own time.
func (s *stopwatch) look(w *World, j *store.Job, now time.Time) {
	if b := w.Boot; b != nil {
		b.Created, b.Enrolled, b.Heard = s.since("created", b.Created, now), s.since("enrolled", b.Enrolled, now), s.since("heard", b.Heard, now)
	}
	for i := range w.Actions {
		a := &w.Actions[i]
		a.Intended = s.since(a.Scope+"/"+a.Kind, a.Intended, now)
	}
	w.StepStarted = time.Time{}
	if step := j.Current(); step.GetStartedAt() != nil {
		w.StepStarted = s.since(fmt.Sprintf("step-%d", step.GetIndex()), step.GetStartedAt().AsTime(), now)
	}
}
