package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// Memory of Unpack: unpackBuffers groups of about 4 MiB on their way in, and unpackAhead frames of 4 MiB that are decompressed.
	unpackFetchers = 3
	unpackBuffers  = 5
	unpackDecoders = 2
	unpackAhead    = 4
)

// UnpackOptions say what Unpack unpacks where. Manifest, Source and Root must be set.
type UnpackOptions struct {
	// Manifest comes from VerifyManifest; its kind is rootfs.
	Manifest *Manifest
	Source   Source
	// Root is the folder that becomes the system's root, with its filesystems mounted in it. It holds nothing but folders.
	Root string
	// Progress is called from one goroutine at a time, at most twice a second, and once at the end. "Disk" are bytes of the archive.
	Progress func(Progress)
}

// UnpackResult says what a completed Unpack did.
type UnpackResult struct {
	// Entries of all kinds were made; Bytes are those of the files' content, DataBytes the compressed ones that were fetched.
	Entries          int
	Bytes, DataBytes int64
	Elapsed          time.Duration
}

// ErrNotEmpty says that there are files where an image is to be unpacked: what is left of an earlier, broken attempt cannot be told from what
// belongs there, so that the filesystem is to be made anew.
var ErrNotEmpty = errors.New("the root file system is not empty")

// Unpack makes the tree of a rootfs image below a folder: owners, modes, times, extended attributes with capabilities and ACLs, hard links,
// holes. Frames are fetched and decompressed in parallel ahead of the extraction, and verified before they are decompressed; a wrong one is
// fetched again, as in Write. No symbolic link is followed, neither the image's nor what was there. Memory stays under 64 MiB. What was
// unpacked is on the disk when it returns nil. It does not resume: after an error, unpack into an empty filesystem.
func Unpack(ctx context.Context, options UnpackOptions) (UnpackResult, error) {
	if options.Manifest == nil || options.Source == nil || options.Root == "" {
		return UnpackResult{}, errors.New("unpacking image: manifest, source and root must be set")
	}
	m := options.Manifest
	if err := m.Validate(); err != nil {
		return UnpackResult{}, fmt.Errorf("unpacking image: %w", err)
	}
	if m.Kind != KindRootfs {
		return UnpackResult{}, fmt.Errorf("unpacking image %s: %w", m.Name, fieldErrorf("kind", "%q, want %q: a %s image is written, not unpacked", m.Kind, KindRootfs, m.Kind))
	}
	result, err := unpack(ctx, options)
	if err != nil {
		return result, fmt.Errorf("unpacking image %s: %w", m.Name, err)
	}
	return result, nil
}

func unpack(ctx context.Context, options UnpackOptions) (UnpackResult, error) {
	start := time.Now()
	tree, err := openTree(options.Root)
	if err != nil {
		return UnpackResult{}, err
	}
	defer tree.close()
	if err := tree.checkEmpty(); err != nil {
		return UnpackResult{}, err
	}
	outer := ctx
	tasks, ctx := errgroup.WithContext(ctx)
	free := make(chan []byte, unpackAhead)
	archive := &frameReader{
		ctx: ctx, frames: streamFrames(ctx, tasks, options, free), free: free,
		report: options.Progress, start: start, last: start,
		progress: Progress{DiskTotal: options.Manifest.Size, DataTotal: options.Manifest.DataLength()},
	}
	tasks.Go(func() error { return tree.extract(ctx, archive) })
	if err := errors.Join(tasks.Wait(), outer.Err()); err != nil {
		return UnpackResult{}, err
	}
	archive.send()
	return UnpackResult{Entries: tree.entries, Bytes: tree.bytes, DataBytes: archive.progress.DataDone, Elapsed: time.Since(start)}, nil
}

// pending is the result of work that was begun and whose turn will come.
type pending[T any] struct {
	value T
	done  chan struct{}
}

// inOrder does work on each of in with so many workers and gives the results in the order of in; the length of the answer's
// channel bounds how far they run ahead.
func inOrder[A, B any](ctx context.Context, tasks *errgroup.Group, in <-chan A, workers, ahead int, newWorker func() (work func(A) (B, error), end func(), err error)) <-chan *pending[B] {
	type job struct {
		from A
		to   *pending[B]
	}
	jobs, out := make(chan job), make(chan *pending[B], ahead)
	tasks.Go(func() error {
		defer close(jobs)
		defer close(out)
		for from := range in {
			to := &pending[B]{done: make(chan struct{})}
			for sent, queued := false, false; !sent || !queued; {
				jobsOrNil, outOrNil := jobs, out
				if sent {
					jobsOrNil = nil
				}
				if queued {
					outOrNil = nil
				}
				select {
				case jobsOrNil <- job{from, to}:
					sent = true
				case outOrNil <- to:
					queued = true
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range workers {
		tasks.Go(func() error {
			work, end, err := newWorker()
			if err != nil {
				return err
			}
			defer end()
			for j := range jobs {
				if j.to.value, err = work(j.from); err != nil {
					return err
				}
				close(j.to.done)
			}
			return nil
		})
	}
	return out
}

// next waits for a result; false at the end.
func next[T any](ctx context.Context, from <-chan *pending[T]) (value T, ok bool, err error) {
	select {
	case p, more := <-from:
		if !more {
			// Also how the channel ends when the work before it has failed.
			return value, false, ctx.Err()
		}
		select {
		case <-p.done:
			return p.value, true, nil
		case <-ctx.Done():
			return value, false, ctx.Err()
		}
	case <-ctx.Done():
		return value, false, ctx.Err()
	}
}

// storedFrame is a data frame as it was fetched; the last one of a group gives the group's buffer back.
type storedFrame struct {
	index  int
	stored []byte
	into   []byte
	last   func()
}

// rawFrame is a frame's bytes of the archive, and how many they were when compressed.
type rawFrame struct {
	raw    []byte
	stored int64
}

// streamFrames fetches and decompresses all frames in order. Buffers are handed out in order too, so that the frame whose turn it is always has one.
func streamFrames(ctx context.Context, tasks *errgroup.Group, options UnpackOptions, free chan []byte) <-chan *pending[rawFrame] {
	m := options.Manifest
	for range unpackAhead {
		free <- nil // allocated when first used
	}
	buffers := make(chan []byte, unpackBuffers)
	for range unpackBuffers {
		buffers <- nil
	}
	groups := make(chan fetched)
	tasks.Go(func() error {
		defer close(groups)
		for _, g := range planGroups(m, 0, len(m.Frames), nil) {
			buffer, err := take(ctx, buffers)
			if err != nil {
				return err
			}
			if int64(cap(buffer)) < g.length {
				buffer = make([]byte, max(g.length, groupData))
			}
			if err := give(ctx, groups, fetched{group: g, data: buffer[:g.length]}); err != nil {
				return err
			}
		}
		return nil
	})
	ready := inOrder(ctx, tasks, groups, unpackFetchers, unpackBuffers, func() (func(fetched) (fetched, error), func(), error) {
		return func(g fetched) (fetched, error) {
			return g, options.Source.ReadRange(ctx, m.Name, g.data, g.group.offset)
		}, func() {}, nil
	})
	stored := make(chan storedFrame)
	tasks.Go(func() error {
		defer close(stored)
		for {
			got, ok, err := next(ctx, ready)
			if err != nil || !ok {
				return err
			}
			left := newCountdown(got.group.end-got.group.first, func() { buffers <- got.data[:0] })
			for i := got.group.first; i < got.group.end; i++ {
				into, err := take(ctx, free)
				if err != nil {
					return err
				}
				frame := storedFrame{index: i, stored: got.stored(&m.Frames[i]), into: into, last: left.done}
				if err := give(ctx, stored, frame); err != nil {
					return err
				}
			}
		}
	})
	return inOrder(ctx, tasks, stored, unpackDecoders, unpackAhead, func() (func(storedFrame) (rawFrame, error), func(), error) {
		decoder, err := newFrameDecoder(m)
		if err != nil {
			return nil, nil, err
		}
		return func(s storedFrame) (rawFrame, error) {
			defer s.last()
			if s.into == nil {
				s.into = make([]byte, 0, m.FrameSize+decoderSlack)
			}
			raw, err := decoder.decodeOrFetch(ctx, options.Source, s.index, s.stored, s.into)
			return rawFrame{raw, int64(len(s.stored))}, err
		}, decoder.close, nil
	})
}

func take[T any](ctx context.Context, from <-chan T) (value T, err error) {
	select {
	case value = <-from:
		return value, nil
	case <-ctx.Done():
		return value, ctx.Err()
	}
}

func give[T any](ctx context.Context, to chan<- T, value T) error {
	select {
	case to <- value:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// frameReader reads the archive out of its frames and reports how far it came.
type frameReader struct {
	ctx    context.Context
	frames <-chan *pending[rawFrame]
	// free takes the frames' buffers back.
	free chan<- []byte
	now  rawFrame
	rest []byte

	report      func(Progress)
	progress    Progress
	start, last time.Time
}

func (r *frameReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.now.raw != nil {
			r.free <- r.now.raw[:0] // as many as it has room for are on their way
			r.now = rawFrame{}
		}
		frame, ok, err := next(r.ctx, r.frames)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, io.EOF
		}
		r.now, r.rest = frame, frame.raw
		r.progress.DataDone += frame.stored
		if time.Since(r.last) >= progressEvery {
			r.last = time.Now()
			r.send()
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	r.progress.DiskDone += int64(n)
	return n, nil
}

func (r *frameReader) send() {
	if r.report == nil {
		return
	}
	if elapsed := time.Since(r.start).Seconds(); elapsed > 0 {
		r.progress.BytesPerSecond = float64(r.progress.DiskDone) / elapsed
	}
	r.report(r.progress)
}

// countdown calls end when done was called so many times.
type countdown struct {
	left atomic.Int64
	end  func()
}

func newCountdown(n int, end func()) *countdown {
	c := &countdown{end: end}
	c.left.Store(int64(n))
	return c
}

func (c *countdown) done() {
	if c.left.Add(-1) == 0 {
		c.end()
	}
}
