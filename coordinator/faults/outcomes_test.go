package faults

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// outcomes counts how jobs ended.
type outcomes struct {
	mu     sync.Mutex
	counts map[string]int
}

func (o *outcomes) add(kind string, j *bloomeryv1.Job) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.counts == nil {
		o.counts = map[string]int{}
	}
	key := kind + " " + statusName(j.GetStatus())
	if j.GetErrorReason() != "" {
		key += " (" + j.GetErrorReason() + ")"
	}
	o.counts[key]++
}

func (o *outcomes) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []string
	for _, key := range slices.Sorted(maps.Keys(o.counts)) {
		all = append(all, fmt.Sprintf("%d %s", o.counts[key], key))
	}
	return strings.Join(all, ", ")
}
