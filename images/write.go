package images

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	// headSize is the part of the disk that is written last: with no partition table a half-written disk is not taken for bootable.
	headSize = 1 << 20
	// tailSize is where a GPT keeps its backup, which firmware would use when the first one is gone.
	tailSize = 1 << 20
	// Memory: maxBuffers groups of about 4 MiB on their way in, and 4 MiB of disk for each worker and its decoder.
	maxWorkers = 6
	maxBuffers = 6
	fetchers   = 3
	// zeroGrain is the smallest stretch of zeros in a data frame that is zeroed instead of written.
	zeroGrain     = 128 << 10
	corruptTries  = 3
	syncBytes     = 96 << 20
	syncInterval  = 2 * time.Second
	progressEvery = 500 * time.Millisecond
)

// Watermark says how much of which image is durably on a disk. The zero value is nothing.
type Watermark struct {
	// ManifestSHA256 is the manifest's digest in hexadecimal digits.
	ManifestSHA256 string `json:"manifest_sha256"`
	// Frame is such that all frames below are written and synced, but for the disk's first MiB.
	Frame int `json:"frame"`
}

// Progress is a state of a write.
type Progress struct {
	// DiskDone and DiskTotal are bytes of disk, zeros included. A resumed write begins above 0.
	DiskDone, DiskTotal int64
	// DataDone and DataTotal are compressed bytes, of which a resumed write begins above 0 too. Their share is the one that grows evenly with time:
	// runs of zeros, which may be most of the disk, cost next to nothing and count nothing here.
	DataDone, DataTotal int64
	// BytesPerSecond is the mean rate of disk bytes in this write.
	BytesPerSecond float64
	// Watermark is where the next write may resume.
	Watermark Watermark
}

// WriteOptions say what Write writes where. Manifest, Source and Device must be set.
type WriteOptions struct {
	// Manifest comes from VerifyManifest.
	Manifest *Manifest
	Source   Source
	Device   Device
	// Workers verify, decompress and write in parallel; the number of CPUs when 0, at most 6.
	Workers int
	// Progress is called from one goroutine at a time, at most twice a second, and once at the end.
	Progress func(Progress)
	// Resume is the Watermark of an earlier write to the same disk.
	Resume Watermark
}

// Result says what a completed write did.
type Result struct {
	// DiskBytes is the image's size, DataBytes the compressed bytes that were fetched and verified.
	DiskBytes, DataBytes int64
	// ResumedAt is the frame at which the write began.
	ResumedAt int
	// RestartReason says why a Resume was asked for and not done; empty otherwise.
	RestartReason string
	// FramesReadBack were compared with the manifest after the write.
	FramesReadBack int
	Elapsed        time.Duration
}

// Write puts an image on a device: everything but the first MiB in parallel, a sync, the first MiB, a sync, and a read-back of
// a sample. Until the first MiB is written the disk has no partition table. Stored bytes are verified before they are
// decompressed; what is wrong is fetched again, from another server where there is one, before ErrCorrupt ends the write.
// Memory stays under 64 MiB whatever the image. Nothing is written when the image does not fit the device.
func Write(ctx context.Context, options WriteOptions) (Result, error) {
	if options.Manifest == nil || options.Source == nil || options.Device == nil {
		return Result{}, errors.New("writing image: manifest, source and device must be set")
	}
	m := options.Manifest
	if err := m.Validate(); err != nil {
		return Result{}, fmt.Errorf("writing image: %w", err)
	}
	if err := checkDevice(m, options.Device); err != nil {
		return Result{}, fmt.Errorf("writing image: %w", err)
	}
	w := newWriter(options)
	result, err := w.run(ctx)
	if err != nil {
		return result, fmt.Errorf("writing image %s: %w", m.Name, err)
	}
	return result, nil
}

// writer is one write under way.
type writer struct {
	manifest *Manifest
	source   Source
	device   Device
	workers  int
	start    time.Time
	head     int64 // bytes that are written last
	track    *tracker
}

func newWriter(options WriteOptions) *writer {
	workers := options.Workers
	if workers <= 0 {
		workers = runtime.NumCPU()
	}
	return &writer{
		manifest: options.Manifest, source: options.Source, device: options.Device,
		workers: min(workers, maxWorkers),
		start:   time.Now(), head: min(headSize, options.Manifest.Size),
		track: newTracker(options),
	}
}

func (w *writer) run(ctx context.Context) (Result, error) {
	result := Result{DiskBytes: w.manifest.Size}
	resume, reason, err := w.resumeFrame(ctx, w.track.watermark())
	if err != nil {
		return result, err
	}
	result.ResumedAt, result.RestartReason = resume, reason
	if err := w.unmake(ctx, resume); err != nil {
		return result, err
	}
	first := headFrames(w.manifest, w.head)
	body := planGroups(w.manifest, max(first, resume), len(w.manifest.Frames))
	w.track.begin(max(first, resume))
	if err := w.stream(ctx, body, w.writeBody); err != nil {
		return result, err
	}
	if err := w.writeHead(ctx, first); err != nil {
		return result, err
	}
	if result.FramesReadBack, err = w.readBack(ctx, len(w.manifest.Frames)); err != nil {
		return result, err
	}
	w.track.finish()
	result.DataBytes = w.track.dataDone()
	result.Elapsed = time.Since(w.start)
	return result, nil
}

// unmake takes what makes the disk look whole: the partition table and, unless durable frames are there, its backup.
func (w *writer) unmake(ctx context.Context, resume int) error {
	if err := w.device.Zero(ctx, 0, w.head); err != nil {
		return fmt.Errorf("clearing the partition table: %w", err)
	}
	if resume == 0 {
		from := max(w.head, w.device.Size()-tailSize)
		from -= from % int64(w.device.SectorSize())
		if err := w.device.Zero(ctx, from, w.device.Size()-from); err != nil {
			return fmt.Errorf("clearing the backup partition table: %w", err)
		}
	}
	if err := w.device.Sync(); err != nil {
		return fmt.Errorf("clearing the partition table: %w", err)
	}
	return nil
}

// writeHead writes the frames that hold the disk's first bytes: what lies above them, a sync, and then they themselves.
func (w *writer) writeHead(ctx context.Context, frames int) error {
	head := alignedBuffer(int(w.head))
	var lock sync.Mutex
	keep := func(ctx context.Context, p []byte, offset int64) error {
		if offset < w.head {
			lock.Lock()
			n := copy(head[offset:], p)
			lock.Unlock()
			p, offset = p[n:], offset+int64(n)
		}
		return w.writeBody(ctx, p, offset)
	}
	for _, g := range planGroups(w.manifest, 0, frames) {
		// One after another: they are few, and the body's workers have ended.
		if err := w.stream(ctx, []group{g}, keep); err != nil {
			return err
		}
	}
	if err := w.device.Sync(); err != nil {
		return fmt.Errorf("syncing the disk: %w", err)
	}
	if _, err := w.device.WriteAt(head, 0); err != nil {
		return fmt.Errorf("writing the partition table: %w", err)
	}
	if err := w.device.Sync(); err != nil {
		return fmt.Errorf("syncing the partition table: %w", err)
	}
	return nil
}

// fetched is a group with its compressed bytes.
type fetched struct {
	group group
	data  []byte
}

// stream fetches groups and gives their disk bytes to write, zeros of zero runs excepted, which it makes itself.
func (w *writer) stream(ctx context.Context, groups []group, write writeFunc) error {
	if len(groups) == 0 {
		return nil
	}
	outer := ctx
	tasks, ctx := errgroup.WithContext(ctx)
	free := make(chan []byte, maxBuffers)
	for range min(maxBuffers, len(groups)) {
		free <- nil // allocated when first used
	}
	todo := make(chan group)
	ready := make(chan fetched)

	tasks.Go(func() error {
		defer close(todo)
		for _, g := range groups {
			select {
			case todo <- g:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	var fetching sync.WaitGroup
	for range min(fetchers, len(groups)) {
		fetching.Add(1)
		tasks.Go(func() error {
			defer fetching.Done()
			return w.fetch(ctx, todo, free, ready)
		})
	}
	tasks.Go(func() error {
		fetching.Wait()
		close(ready)
		return nil
	})
	var processing sync.WaitGroup
	for range min(w.workers, len(groups)) {
		processing.Add(1)
		tasks.Go(func() error {
			defer processing.Done()
			return w.process(ctx, ready, free, write)
		})
	}
	done := make(chan struct{})
	tasks.Go(func() error {
		processing.Wait()
		close(done)
		return nil
	})
	tasks.Go(func() error { return w.track.watch(ctx, done, w.device) })
	if err := tasks.Wait(); err != nil {
		return err
	}
	return outer.Err()
}

func (w *writer) fetch(ctx context.Context, todo <-chan group, free <-chan []byte, ready chan<- fetched) error {
	for g := range todo {
		var buffer []byte
		select {
		case buffer = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		if int64(cap(buffer)) < g.length {
			buffer = make([]byte, max(g.length, groupData))
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
	return nil
}

func (w *writer) process(ctx context.Context, ready <-chan fetched, free chan<- []byte, write writeFunc) error {
	decoder, err := newFrameDecoder(w.manifest)
	if err != nil {
		return err
	}
	defer decoder.close()
	raw := alignedBuffer(int(w.manifest.FrameSize))
	for got := range ready {
		for i := got.group.first; i < got.group.end; i++ {
			if err := ctx.Err(); err != nil {
				return err
			}
			f := &w.manifest.Frames[i]
			if f.Zero {
				if err := w.zeroRun(ctx, f); err != nil {
					return err
				}
			} else if err := w.frame(ctx, decoder, i, got, raw, write); err != nil {
				return err
			}
			w.track.frameDone(i)
		}
		free <- got.data[:0]
	}
	return nil
}

// zeroRun leaves out the head, which is zero since unmake.
func (w *writer) zeroRun(ctx context.Context, f *Frame) error {
	from := max(f.Offset, w.head)
	return w.device.Zero(ctx, from, max(0, f.Offset+f.Length-from))
}

// frame verifies and writes one data frame; a corrupt one is fetched again by itself.
func (w *writer) frame(ctx context.Context, decoder *frameDecoder, i int, got fetched, buffer []byte, write writeFunc) error {
	f := &w.manifest.Frames[i]
	stored := got.data[f.DataOffset-got.group.offset:][:f.DataLength]
	for try := 1; ; try++ {
		raw, err := decoder.decode(i, stored, buffer)
		if err == nil {
			return write(ctx, raw, f.Offset)
		}
		if try == corruptTries {
			return err
		}
		if again := w.source.ReadRange(ctx, w.manifest.Name, stored, f.DataOffset); again != nil {
			return errors.Join(err, again)
		}
	}
}
