package faults

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bloomery/coordinator/faults/history"
)

// monotonic is the clock of the history: one for all processes of the host, and nobody sets it.
func monotonic() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		panic(fmt.Sprintf("CLOCK_MONOTONIC: %v", err))
	}
	return time.Duration(t.Nano())
}

// recorder keeps the history.
type recorder struct {
	mu      sync.Mutex
	entries []history.Entry
	acked   map[string]int64
	lastAck time.Duration
	// longest is the longest time without an acknowledged report since it was asked last.
	longest time.Duration
}

func newRecorder() *recorder { return &recorder{acked: map[string]int64{}, lastAck: monotonic()} }

// add notes something that happens now.
func (r *recorder) add(e history.Entry) {
	e.At = monotonic()
	r.addAt(e)
}

func (r *recorder) addAt(e history.Entry) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.Kind == history.ReportAcked {
		key := e.Machine + "/" + e.Boot
		if e.Sequence <= r.acked[key] {
			return
		}
		r.acked[key] = e.Sequence
		r.longest, r.lastAck = max(r.longest, e.At-r.lastAck), max(r.lastAck, e.At)
	}
	r.entries = append(r.entries, e)
}

// ackedReports counts the reports that were acknowledged.
func (r *recorder) ackedReports() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := int64(0)
	for _, up := range r.acked {
		n += up
	}
	return n
}

// gap is the longest time without an acknowledged report since it was called last.
func (r *recorder) gap() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	gap := max(r.longest, monotonic()-r.lastAck)
	r.longest = 0
	return gap
}

func (r *recorder) all() []history.Entry {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]history.Entry(nil), r.entries...)
}
