package store

import "time"

// Observer is told of each call of the store: "view" or "update", how long it took with all its tries, and how many these were.
type Observer func(call string, took time.Duration, tries int)

// Observe has every call told to an observer from now on; it is called from the callers' goroutines.
func (s *Store) Observe(o Observer) { s.observer.Store(&o) }

func (s *Store) observe(call string, begin time.Time, tries *int) {
	if o := s.observer.Load(); o != nil {
		(*o)(call, time.Since(begin), *tries)
	}
}
