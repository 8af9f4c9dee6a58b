package store

import (
	"sync"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// maxSpecs bounds the decoded specs that are kept, in bytes of their encoding: a step's spec has up to 64 KiB of user-data.
const maxSpecs = 16 << 20

// specs remembers steps' specs, which never change once a job is stored. Whoever gets one must not change it.
type specs struct {
	mu    sync.Mutex
	byID  map[string]*bloomeryv1.Step
	bytes int
}

func newSpecs() *specs { return &specs{byID: map[string]*bloomeryv1.Step{}} }

func (s *specs) get(id string) *bloomeryv1.Step {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byID[id]
}

// put forgets everything when it is full: what is needed is soon read again.
func (s *specs) put(id string, spec *bloomeryv1.Step, size int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.bytes += size; s.bytes > maxSpecs {
		clear(s.byID)
		s.bytes = size
	}
	s.byID[id] = spec
}
