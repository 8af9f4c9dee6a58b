package coordinator

import "sync"

// hub wakes those who wait for a change of a topic: "events", "job/ID", "machine/NAME", "machines". A wake is a hint: whoever is woken reads the store.
type hub struct {
	mu   sync.Mutex
	subs map[*subscription]bool
}

type subscription struct {
	topics []string
	// wake holds one hint at most.
	wake chan struct{}
}

func newHub() *hub { return &hub{subs: map[*subscription]bool{}} }

// subscribe returns a channel of hints and what ends them.
func (h *hub) subscribe(topics ...string) (<-chan struct{}, func()) {
	s := &subscription{topics: topics, wake: make(chan struct{}, 1)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.subs[s] = true
	return s.wake, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.subs, s)
	}
}

func (h *hub) notify(topics map[string]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.subs {
		for _, t := range s.topics {
			if topics[t] {
				select {
				case s.wake <- struct{}{}:
				default:
				}
				break
			}
		}
	}
}
