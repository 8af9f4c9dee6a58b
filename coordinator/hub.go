package coordinator

import "sync"

// hub wakes those who wait for a change of a topic: "events", "machines", "jobs" (one may be free to drive), "duties", "job/ID",
// "progress/ID", "machine/NAME". A wake is a hint: whoever is woken reads the store.
type hub struct {
	mu   sync.Mutex
	subs map[string]map[*subscription]bool
	// followers are the other coordinators.
	followers map[*follower]bool
}

// subscription holds one hint at most.
type subscription struct{ wake chan struct{} }

func newHub() *hub {
	return &hub{subs: map[string]map[*subscription]bool{}, followers: map[*follower]bool{}}
}

// subscribe returns a channel of hints and what ends them.
func (h *hub) subscribe(topics ...string) (<-chan struct{}, func()) {
	s := &subscription{wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range topics {
		if h.subs[t] == nil {
			h.subs[t] = map[*subscription]bool{}
		}
		h.subs[t][s] = true
	}
	return s.wake, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, t := range topics {
			if delete(h.subs[t], s); len(h.subs[t]) == 0 {
				delete(h.subs, t)
			}
		}
	}
}

// notify tells everybody of what was changed here.
func (h *hub) notify(topics map[string]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wake(topics)
	for f := range h.followers {
		f.add(topics)
	}
}

// hear tells those who wait here of what was changed at another coordinator.
func (h *hub) hear(topics []string) {
	set := map[string]bool{}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range topics {
		if t == everyTopic {
			for known := range h.subs {
				set[known] = true
			}
		}
		set[t] = true
	}
	h.wake(set)
}

// wake gives a hint to those who wait for one of the topics; the mutex is held.
func (h *hub) wake(topics map[string]bool) {
	for t := range topics {
		for s := range h.subs[t] {
			select {
			case s.wake <- struct{}{}:
			default:
			}
		}
	}
}
