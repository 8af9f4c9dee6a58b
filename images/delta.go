package images

import (
	"context"
	"iter"

	"golang.org/x/sync/errgroup"
)

// deltaProbe is how many frames are looked at before the whole disk is read for a Delta.
const deltaProbe = 16

// unchanged returns the data frames of [first, end) that are on the disk already. When none of a sample is, the disk is not read any further:
// that would only delay a write of everything.
func (w *writer) unchanged(ctx context.Context, first, end int) (map[int]bool, error) {
	same := 0
	err := w.read(ctx, w.wholeFrames(sample(w.manifest, first, end, deltaProbe)), func(_ span, right bool) {
		if right {
			same++
		}
	})
	if err != nil || same == 0 {
		return nil, err
	}
	all := sample(w.manifest, first, end, len(w.manifest.Frames))
	keep := map[int]bool{}
	tasks, ctx := errgroup.WithContext(ctx)
	done := make(chan struct{})
	tasks.Go(func() error {
		defer close(done)
		return w.read(ctx, w.wholeFrames(all), func(s span, right bool) {
			if right {
				keep[s.frame] = true
				w.track.frameKept(s.frame)
			}
		})
	})
	tasks.Go(func() error { return w.track.watch(ctx, done, w.device) })
	return keep, tasks.Wait()
}

// wholeFrames are spans of data frames.
func (w *writer) wholeFrames(frames []int) iter.Seq[span] {
	return func(yield func(span) bool) {
		for _, i := range frames {
			f := &w.manifest.Frames[i]
			if !yield(span{i, f.Offset, f.Length}) {
				return
			}
		}
	}
}
