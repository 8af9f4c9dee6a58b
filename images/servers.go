package images

import (
	"sync"
	"time"
)

// How long a server that failed is spared, unless no other is left; doubled with each failure in a row.
const (
	firstRest = time.Second
	maxRest   = 15 * time.Second
)

// servers remembers which of the servers failed lately, so that one that is dead, or does not have the image yet, costs a request now and then
// and not one of every few. The zero value knows of no failure.
type servers struct {
	mu     sync.Mutex
	turn   int
	failed map[string]failure
}

type failure struct {
	times int
	until time.Time
}

// order lists all servers in the order in which to ask them: those without a failure in turn, then those that rest. One whose rest is over
// is asked by one caller, whose outcome the others wait for.
func (s *servers) order(all []string, now time.Time) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var good, resting []string
	for _, base := range all {
		f := s.failed[base]
		switch {
		case f.times == 0:
			good = append(good, base)
		case now.After(f.until):
			f.until = now.Add(rest(f.times))
			s.failed[base] = f
			good = append(good, base)
		default:
			resting = append(resting, base)
		}
	}
	s.turn++
	ordered := make([]string, 0, len(all))
	for i := range good {
		ordered = append(ordered, good[(s.turn+i)%len(good)])
	}
	return append(ordered, resting...)
}

// outcome notes how a server did.
func (s *servers) outcome(base string, err error, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		delete(s.failed, base)
		return
	}
	if s.failed == nil {
		s.failed = map[string]failure{}
	}
	times := s.failed[base].times + 1
	s.failed[base] = failure{times, now.Add(rest(times))}
}

func rest(times int) time.Duration {
	return min(firstRest<<min(times-1, 10), maxRest)
}
