package images

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// tracker knows which frames of a write are done and durable, and reports it.
type tracker struct {
	manifest *Manifest
	report   func(Progress)
	start    time.Time

	mu       sync.Mutex
	done     []bool
	low      int // all frames below are written, but for the head's
	durable  int // all frames below are synced
	disk     int64
	resumed  int64 // of disk, the bytes that an earlier write wrote
	data     int64
	dataHad  int64 // compressed bytes of frames that were there
	lastSync time.Time
	resume   Watermark
	// pace is the time between two syncs, and two reports.
	pace pace
}

type pace struct{ sync, report time.Duration }

func newTracker(options WriteOptions) *tracker {
	return &tracker{
		manifest: options.Manifest, report: options.Progress, start: time.Now(),
		done: make([]bool, len(options.Manifest.Frames)), resume: options.Resume,
		pace: options.pace,
	}
}

// watermark is the one that the write was asked to resume at.
func (t *tracker) watermark() Watermark { return t.resume }

// begin takes the frames from body up to first for done; those of the head are counted when they are written.
func (t *tracker) begin(body, first int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.low, t.durable = first, first
	for i := body; i < first; i++ {
		t.disk += t.manifest.Frames[i].Length
		t.dataHad += t.manifest.Frames[i].DataLength
	}
	t.resumed, t.lastSync = t.disk, time.Now()
}

// frameDone counts a frame that was written.
func (t *tracker) frameDone(i int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.data += t.manifest.Frames[i].DataLength
	t.settle(i)
}

// frameKept counts a frame that was there.
func (t *tracker) frameKept(i int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dataHad += t.manifest.Frames[i].DataLength
	t.settle(i)
}

func (t *tracker) settle(i int) {
	t.disk += t.manifest.Frames[i].Length
	t.done[i] = true
	for t.low < len(t.done) && t.done[t.low] {
		t.low++
	}
}

func (t *tracker) dataDone() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.data
}

// watch reports progress and moves the watermark until done is closed.
func (t *tracker) watch(ctx context.Context, done <-chan struct{}, device Device) error {
	ticker := time.NewTicker(t.pace.report)
	defer ticker.Stop()
	poll := time.NewTicker(t.pace.sync / 10)
	defer poll.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-poll.C:
			if err := t.sync(device); err != nil {
				return err
			}
		case <-ticker.C:
			t.send()
		}
	}
}

// sync makes the written frames durable when enough time has passed since it did so last.
func (t *tracker) sync(device Device) error {
	t.mu.Lock()
	low := t.low
	due := low > t.durable && time.Since(t.lastSync) >= t.pace.sync
	t.mu.Unlock()
	if !due {
		return nil
	}
	if err := device.Sync(); err != nil {
		return fmt.Errorf("syncing the disk: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.durable, t.lastSync = low, time.Now()
	return nil
}

// finish reports the end.
func (t *tracker) finish() {
	t.mu.Lock()
	t.durable = len(t.done)
	t.mu.Unlock()
	t.send()
}

func (t *tracker) send() {
	if t.report == nil {
		return
	}
	t.mu.Lock()
	p := Progress{
		DiskDone: t.disk, DiskTotal: t.manifest.Size,
		DataDone: t.dataHad + t.data, DataTotal: t.manifest.DataLength(),
		Watermark: Watermark{ManifestSHA256: t.manifest.SHA256().String(), Frame: t.durable},
	}
	if elapsed := time.Since(t.start).Seconds(); elapsed > 0 {
		p.BytesPerSecond = float64(t.disk-t.resumed) / elapsed
	}
	t.mu.Unlock()
	t.report(p)
}
