package coordinator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// segmentsAtATime bounds how much of the archive one read goes through before it returns what it has found.
const segmentsAtATime = 20

// events reads through archive and database until it has what was asked for.
func (c *Coordinator) events(ctx context.Context, f store.EventFilter) (events []*bloomeryv1.Event, err error) {
	limit := f.Limit
	for {
		f.Limit = limit - len(events)
		page, next, err := c.readEvents(ctx, f)
		if err != nil {
			return nil, err
		}
		events = append(events, page...)
		if next == 0 || len(events) >= limit {
			return events, nil
		}
		f.After = next
	}
}

// readEvents reads events in the order in which they were stored: from the archive what the database does not hold any more, then from the
// database. next says after which number to go on; 0 when that was all there is now.
func (c *Coordinator) readEvents(ctx context.Context, f store.EventFilter) (events []*bloomeryv1.Event, next int64, err error) {
	var segments []*store.Segment
	var stored []*bloomeryv1.Event
	// One snapshot: nothing moves from the database to the archive between the two looks.
	err = c.Store.View(ctx, func(r *store.Reader) (err error) {
		segments = nil
		oldest, err := r.OldestEvent()
		if err != nil {
			return err
		}
		if f.After+1 < oldest {
			if segments, err = r.Segments(f.After); err != nil {
				return err
			}
			for i, s := range segments {
				if s.First >= oldest {
					segments = segments[:i]
					break
				}
			}
		}
		stored, err = r.Events(f)
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	read := 0
	for _, s := range segments {
		if s.Dropped || s.Newest.Before(f.Since) {
			continue
		}
		if read++; read > segmentsAtATime {
			return events, s.First - 1, nil
		}
		all, err := c.segmentEvents(ctx, s)
		if err != nil {
			return nil, 0, fmt.Errorf("read archived events %d to %d (ask for events after %d to leave them out): %w", s.First, s.Last, s.Last, err)
		}
		for _, e := range all {
			if !chosen(f, e) {
				continue
			}
			events = append(events, e)
			if len(events) == f.Limit {
				return events, e.GetSequence(), nil
			}
		}
	}
	for _, e := range stored {
		// The database may still hold the end of a segment that was read.
		if len(events) > 0 && e.GetSequence() <= events[len(events)-1].GetSequence() {
			continue
		}
		events = append(events, e)
		if len(events) == f.Limit {
			return events, e.GetSequence(), nil
		}
	}
	return events, 0, nil
}

// chosen is the filter of the store's query.
func chosen(f store.EventFilter, e *bloomeryv1.Event) bool {
	return e.GetSequence() > f.After && (f.UpTo == 0 || e.GetSequence() <= f.UpTo) && (f.Machine == "" || e.GetMachine() == f.Machine) && (f.JobID == "" || e.GetJobId() == f.JobID) &&
		strings.HasPrefix(e.GetType(), f.TypePrefix) && !e.GetTime().AsTime().Before(f.Since)
}

// segmentEvents reads a segment of the archive.
func (c *Coordinator) segmentEvents(ctx context.Context, s *store.Segment) ([]*bloomeryv1.Event, error) {
	if events, ok := c.archive.cached(s.First); ok {
		return events, nil
	}
	lines, err := c.segmentLines(ctx, s)
	if err != nil {
		return nil, err
	}
	events, err := decodeSegment(lines)
	if err != nil {
		return nil, fmt.Errorf("events %d to %d of the archive: %w", s.First, s.Last, err)
	}
	c.archive.remember(s.First, events)
	return events, nil
}

// archiveState is what a walk along the chain found.
type archiveState struct {
	segments, events int64
	first, last      int64
	problems         []string
}

// verifyArchive reads all of this coordinator's archive again and walks along its chain. What is corrupt is fetched again.
func (c *Coordinator) verifyArchive(ctx context.Context) (archiveState, error) {
	all, err := c.segments(ctx, 0)
	if err != nil {
		return archiveState{}, err
	}
	var state archiveState
	before, expected := make([]byte, sha256.Size), int64(0)
	for i, s := range all {
		if i > 0 && s.First != expected {
			state.problems = append(state.problems, fmt.Sprintf("events %d to %d are in no segment", expected, s.First-1))
		}
		// The chain begins at the first segment of all, or at the last one that was dropped.
		if (i > 0 || !s.Dropped) && !bytes.Equal(s.Chain, chainValue(before, s.SHA256)) {
			state.problems = append(state.problems, fmt.Sprintf("the chain is broken at the segment of events %d to %d", s.First, s.Last))
		}
		before, expected = s.Chain, s.Last+1
		if s.Dropped {
			continue
		}
		lines, err := readSegmentFile(c.archive.dir, s)
		if err != nil {
			state.problems = append(state.problems, clipTo(err.Error(), maxText))
			if lines, err = c.segmentLines(ctx, s); err != nil {
				if ctx.Err() != nil {
					return state, errors.Join(ctx.Err(), err)
				}
				state.problems = append(state.problems, clipTo(err.Error(), maxText))
				continue
			}
		}
		events, err := decodeSegment(lines)
		if err != nil || len(events) != s.Events {
			state.problems = append(state.problems, fmt.Sprintf("the segment of events %d to %d holds %d, want %d (%v)", s.First, s.Last, len(events), s.Events, err))
			continue
		}
		if state.segments == 0 {
			state.first = s.First
		}
		state.segments, state.events, state.last = state.segments+1, state.events+int64(len(events)), s.Last
	}
	return state, nil
}
