package images

import (
	"context"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// The stages of a write and what they hand on. Each has as many buffers as keep it and its neighbours busy: fetchers fill one each while
// decoders empty others; writers empty one each, all of them in the device's queue at once, while decoders fill others.
const (
	fetchers   = 3
	maxFetched = 4
	maxDecoded = 5
	maxWorkers = 4
	writers    = 3
)

// fetched is a group with its compressed bytes.
type fetched struct {
	group group
	data  []byte
}

// stored gives the compressed bytes of one of its frames.
func (f fetched) stored(frame *Frame) []byte {
	return f.data[frame.DataOffset-f.group.offset:][:frame.DataLength]
}

// decoded is a frame with its disk bytes, which are in the buffer; a run of zeros has none.
type decoded struct {
	frame        int
	disk, buffer []byte
}

// stream fetches groups, verifies and decompresses them, and gives their disk bytes to write; zero runs it makes itself.
func (w *writer) stream(ctx context.Context, groups []group, write writeFunc) error {
	if len(groups) == 0 {
		return nil
	}
	outer := ctx
	tasks, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	todo := func() (group, bool) {
		i := int(next.Add(1)) - 1
		if i >= len(groups) {
			return group{}, false
		}
		return groups[i], true
	}
	ready, done := make(chan fetched), make(chan struct{})
	pieces := make(chan decoded)
	stage(tasks, min(fetchers, len(groups)), func() error { return w.fetch(ctx, todo, ready) }, func() { close(ready) })
	stage(tasks, w.workers, func() error { return w.decode(ctx, ready, pieces) }, func() { close(pieces) })
	stage(tasks, writers, func() error { return w.put(ctx, pieces, write) }, func() { close(done) })
	tasks.Go(func() error { return w.track.watch(ctx, done, w.device) })
	if err := tasks.Wait(); err != nil {
		return err
	}
	return outer.Err()
}

// stage runs work n times side by side, and end once when the last has ended.
func stage(tasks *errgroup.Group, n int, work func() error, end func()) {
	var running sync.WaitGroup
	running.Add(n)
	for range n {
		tasks.Go(func() error {
			defer running.Done()
			return work()
		})
	}
	tasks.Go(func() error {
		running.Wait()
		end()
		return nil
	})
}

func (w *writer) fetch(ctx context.Context, todo func() (group, bool), ready chan<- fetched) error {
	for {
		buffer, err := w.stored.take(ctx)
		if err != nil {
			return err
		}
		g, ok := todo()
		if !ok {
			w.stored.put(buffer)
			return nil
		}
		buffer = buffer[:g.length]
		if g.length > 0 {
			if err := w.source.ReadRange(ctx, w.manifest.Name, buffer, g.offset); err != nil {
				return err
			}
		}
		select {
		case ready <- fetched{group: g, data: buffer}:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (w *writer) decode(ctx context.Context, ready <-chan fetched, pieces chan<- decoded) error {
	decoder, err := newFrameDecoder(w.manifest)
	if err != nil {
		return err
	}
	defer decoder.close()
	for got := range ready {
		for i := got.group.first; i < got.group.end; i++ {
			piece := decoded{frame: i}
			if !w.manifest.Frames[i].Zero {
				if piece.buffer, err = w.disk.take(ctx); err != nil {
					return err
				}
				if piece.disk, err = decoder.decodeOrFetch(ctx, w.source, i, got.stored(&w.manifest.Frames[i]), piece.buffer); err != nil {
					return err
				}
			}
			select {
			case pieces <- piece:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		w.stored.put(got.data)
	}
	return nil
}

func (w *writer) put(ctx context.Context, pieces <-chan decoded, write writeFunc) error {
	for piece := range pieces {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := &w.manifest.Frames[piece.frame]
		if f.Zero {
			if err := w.zeroRun(ctx, f); err != nil {
				return err
			}
		} else {
			if err := write(ctx, piece.disk, f.Offset); err != nil {
				return err
			}
			w.disk.put(piece.buffer)
		}
		w.track.frameDone(piece.frame)
	}
	return nil
}

// zeroRun leaves out the head, which was cleared.
func (w *writer) zeroRun(ctx context.Context, f *Frame) error {
	from := max(f.Offset, w.ends.head)
	return w.device.Zero(ctx, from, max(0, f.Offset+f.Length-from))
}
