package images

import (
	"context"
	"crypto/sha256"
	"fmt"
	"iter"

	"golang.org/x/sync/errgroup"
)

// ReadBack says how much of a written disk is compared with the manifest.
type ReadBack int

const (
	// ReadBackSample compares a few data frames, the first and the last among them, and the edges of all runs of zeros.
	ReadBackSample ReadBack = iota
	// ReadBackFull compares every byte. It takes as long as reading the image's size from the disk.
	ReadBackFull
)

// sampleFrames is how many data frames are read back; each costs about 0.1 s where SHA-256 is slow (40 MB/s).
const sampleFrames = 6

// span is a part of the disk that is read at once, and the frame that it belongs to.
type span struct {
	frame          int
	offset, length int64
}

// spans are what is to be read of the frames [first, end).
func (w *writer) spans(first, end int, mode ReadBack) iter.Seq[span] {
	const edge = 64 << 10
	sampled := map[int]bool{}
	if mode == ReadBackSample {
		for _, i := range sample(w.manifest, first, end, sampleFrames) {
			sampled[i] = true
		}
	}
	return func(yield func(span) bool) {
		for i := first; i < end; i++ {
			f := &w.manifest.Frames[i]
			switch {
			case mode == ReadBackSample && f.Zero:
				n := min(edge, f.Length)
				if !yield(span{i, f.Offset, n}) || !yield(span{i, f.Offset + f.Length - n, n}) {
					return
				}
			case mode == ReadBackSample && !sampled[i]:
			default: // a run of zeros is longer than a buffer
				for at := f.Offset; at < f.Offset+f.Length; at += w.manifest.FrameSize {
					if !yield(span{i, at, min(w.manifest.FrameSize, f.Offset+f.Length-at)}) {
						return
					}
				}
			}
		}
	}
}

// sample returns up to most data frames of [first, end), spread evenly, the first and the last among them.
func sample(m *Manifest, first, end, most int) []int {
	var data []int
	for i := first; i < end; i++ {
		if !m.Frames[i].Zero {
			data = append(data, i)
		}
	}
	if len(data) <= most {
		return data
	}
	picked := make([]int, 0, most)
	for k := range most {
		picked = append(picked, data[k*(len(data)-1)/(most-1)])
	}
	return picked
}

// read reads spans side by side, in no order, and says of each whether it is as the manifest wants it.
func (w *writer) read(ctx context.Context, spans iter.Seq[span], found func(s span, right bool)) error {
	outer := ctx
	tasks, ctx := errgroup.WithContext(ctx)
	type verdict struct {
		span
		right bool
	}
	todo, verdicts := make(chan span), make(chan verdict)
	tasks.Go(func() error {
		defer close(todo)
		for s := range spans {
			select {
			case todo <- s:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	stage(tasks, writers, func() error {
		buffer, err := w.disk.take(ctx)
		if err != nil {
			return err
		}
		defer w.disk.put(buffer)
		for s := range todo {
			right, err := w.compare(s, buffer[:s.length])
			if err != nil {
				return err
			}
			select {
			case verdicts <- verdict{s, right}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}, func() { close(verdicts) })
	for v := range verdicts {
		found(v.span, v.right)
	}
	if err := tasks.Wait(); err != nil {
		return err
	}
	return outer.Err()
}

func (w *writer) compare(s span, buffer []byte) (right bool, err error) {
	if _, err := w.device.ReadAt(buffer, s.offset); err != nil {
		return false, fmt.Errorf("reading back frame %d at byte %d of the disk: %w", s.frame, s.offset, err)
	}
	f := &w.manifest.Frames[s.frame]
	if f.Zero {
		return allZero(buffer), nil
	}
	return sha256.Sum256(buffer) == f.RawSHA256, nil
}

// firstWrong reads spans and returns the first frame that is not on the disk, or -1, and how many data frames were read.
func (w *writer) firstWrong(ctx context.Context, spans iter.Seq[span]) (wrong, frames int, err error) {
	wrong = -1
	err = w.read(ctx, spans, func(s span, right bool) {
		if !right && (wrong < 0 || s.frame < wrong) {
			wrong = s.frame
		}
		if !w.manifest.Frames[s.frame].Zero {
			frames++
		}
	})
	return wrong, frames, err
}

// readBack compares the frames [first, end) of the disk with the manifest and returns how many data frames it read.
func (w *writer) readBack(ctx context.Context, first, end int) (frames int, err error) {
	wrong, frames, err := w.firstWrong(ctx, w.spans(first, end, w.mode))
	if err != nil {
		return 0, err
	}
	if wrong >= 0 {
		return 0, fmt.Errorf("the disk does not return what was written: frame %d at byte %d differs: %w", wrong, w.manifest.Frames[wrong].Offset, ErrCorrupt)
	}
	return frames, nil
}

// resumeFrame decides where a write begins, and why not where it was asked to.
func (w *writer) resumeFrame(ctx context.Context, mark Watermark) (frame int, reason string, err error) {
	if mark == (Watermark{}) || mark.Frame == 0 {
		return 0, "", nil
	}
	if mark.ManifestSHA256 != w.manifest.SHA256().String() {
		return 0, "the earlier write was of another image", nil
	}
	if mark.Frame < 0 || mark.Frame > len(w.manifest.Frames) {
		return 0, fmt.Sprintf("frame %d is not one of the image's %d", mark.Frame, len(w.manifest.Frames)), nil
	}
	// What reaches into the ends is written last, so never there yet.
	wrong, _, err := w.firstWrong(ctx, w.spans(w.ends.headFrames, min(mark.Frame, w.ends.bodyEnd), ReadBackSample))
	if err != nil {
		return 0, "", err
	}
	if wrong >= 0 {
		return 0, fmt.Sprintf("frame %d is not on the disk as the earlier write left it", wrong), nil
	}
	return mark.Frame, "", nil
}
