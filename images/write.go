package images

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"time"
)

const (
	// zeroGrain is the smallest stretch of zeros in a data frame that is zeroed instead of written.
	zeroGrain     = 128 << 10
	corruptTries  = 3
	syncInterval  = time.Second
	progressEvery = 500 * time.Millisecond
)

// Watermark says how much of which image is durably on a disk. The zero value is nothing.
type Watermark struct {
	// ManifestSHA256 is the manifest's digest in hexadecimal digits.
	ManifestSHA256 string `json:"manifest_sha256"`
	// Frame is such that all frames below are written and synced, but for what reaches into the disk's first MiB or its last.
	Frame int `json:"frame"`
}

// Progress is a state of a write.
type Progress struct {
	// DiskDone and DiskTotal are bytes of disk that are as the image wants them, zeros and what Delta found included. A resumed write begins above 0.
	DiskDone, DiskTotal int64
	// DataDone and DataTotal are compressed bytes, of which a resumed write begins above 0 too and a kept frame's count as done. Their
	// share is the one that grows evenly with time: runs of zeros, which may be most of the disk, cost next to nothing and count nothing here.
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
	// Workers verify and decompress in parallel; the number of CPUs when 0, at most 4.
	Workers int
	// Progress is called from one goroutine at a time, at most twice a second, and once at the end.
	Progress func(Progress)
	// Resume is the Watermark of an earlier write to the same disk.
	Resume Watermark
	// ReadBack is how much is read back and compared before the partition table is written; a sample when 0.
	ReadBack ReadBack
	// Delta compares the disk's frames with the manifest first and fetches and writes only those that differ; runs of zeros are zeroed again.
	// It pays where the same image, or an earlier one of the same build, was on the disk and was not wiped.
	Delta bool

	// pace is another than the usual one in tests.
	pace pace
}

// Result says what a completed write did.
type Result struct {
	// DiskBytes is the image's size, DataBytes the compressed bytes that were fetched and verified.
	DiskBytes, DataBytes int64
	// ResumedAt is the frame at which the write began.
	ResumedAt int
	// RestartReason says why a Resume was asked for and not done; empty otherwise.
	RestartReason string
	// FramesKept data frames of FramesTotal were on the disk already, found by Delta, and neither fetched nor written.
	FramesKept, FramesTotal int
	// FramesReadBack are the data frames that were compared with the manifest after they were written.
	FramesReadBack int
	Elapsed        time.Duration
}

// Write puts an image on a device: everything but the first MiB (and the device's last, where the image reaches it) in parallel, then those two,
// once the rest was read back. Until then the disk has no partition table: when the power goes it has the one from before, or none, or the
// image's and all of the image. Stored bytes are verified before they are
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
	if m.Kind != KindDisk {
		return Result{}, fmt.Errorf("writing image %s: %w", m.Name, fieldErrorf("kind", "%q, want %q: a %s image is unpacked, not written", m.Kind, KindDisk, m.Kind))
	}
	if err := checkDevice(m, options.Device); err != nil {
		return Result{}, fmt.Errorf("writing image: %w", err)
	}
	w, err := newWriter(options)
	if err != nil {
		return Result{}, fmt.Errorf("writing image %s: %w", m.Name, err)
	}
	result, err := w.run(ctx)
	if err = errors.Join(err, w.close()); err != nil {
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
	mode     ReadBack
	delta    bool
	start    time.Time
	ends     ends
	track    *tracker
	// stored is for compressed bytes, disk for frames.
	stored, disk *buffers
}

func newWriter(options WriteOptions) (*writer, error) {
	if options.pace == (pace{}) {
		options.pace = pace{sync: syncInterval, report: progressEvery}
	}
	workers := options.Workers
	if workers <= 0 {
		workers = runtime.NumCPU()
	}
	w := &writer{
		manifest: options.Manifest, source: options.Source, device: options.Device,
		workers: min(workers, maxWorkers), mode: options.ReadBack, delta: options.Delta,
		start: time.Now(), ends: endsOf(options.Manifest, options.Device),
		track: newTracker(options),
	}
	largest := int64(groupData)
	for i := range w.manifest.Frames {
		largest = max(largest, w.manifest.Frames[i].DataLength)
	}
	var err error
	if w.stored, err = newBuffers(maxFetched, int(largest)); err != nil {
		return nil, err
	}
	if w.disk, err = newBuffers(maxDecoded, int(w.manifest.FrameSize)+decoderSlack); err != nil {
		return nil, errors.Join(err, w.stored.close())
	}
	return w, nil
}

func (w *writer) close() error { return errors.Join(w.stored.close(), w.disk.close()) }

func (w *writer) run(ctx context.Context) (Result, error) {
	result := Result{DiskBytes: w.manifest.Size}
	resume, reason, err := w.resumeFrame(ctx, w.track.watermark())
	if err != nil {
		return result, err
	}
	result.ResumedAt, result.RestartReason = resume, reason
	if err := w.clearEnds(ctx); err != nil {
		return result, err
	}
	first, end := w.ends.headFrames, w.ends.bodyEnd
	begin := max(first, min(resume, end))
	w.track.begin(first, begin)
	var keep map[int]bool
	if w.delta {
		if keep, err = w.unchanged(ctx, begin, end); err != nil {
			return result, err
		}
	}
	result.FramesKept, result.FramesTotal = len(keep), w.manifest.dataFrames()
	last, err := w.streamAll(ctx, begin, keep)
	if err != nil {
		return result, err
	}
	if err := w.device.Sync(); err != nil {
		return result, fmt.Errorf("syncing the disk: %w", err)
	}
	if result.FramesReadBack, err = w.readBack(ctx, first, end); err != nil {
		return result, err
	}
	if err := w.writeEnds(last); err != nil {
		return result, err
	}
	for _, written := range [][2]int{{0, first}, {end, len(w.manifest.Frames)}} {
		n, err := w.readBack(ctx, written[0], written[1])
		if err != nil {
			return result, err
		}
		result.FramesReadBack += n
	}
	w.track.finish()
	result.DataBytes = w.track.dataDone()
	result.Elapsed = time.Since(w.start)
	return result, nil
}

// streamAll streams the frames from begin on, but for those to keep, and those that reach into the ends, whose bytes there it returns.
func (w *writer) streamAll(ctx context.Context, begin int, keep map[int]bool) (*endBytes, error) {
	groups := planGroups(w.manifest, 0, w.ends.headFrames, nil)
	groups = append(groups, planGroups(w.manifest, begin, w.ends.bodyEnd, keep)...)
	groups = append(groups, planGroups(w.manifest, w.ends.bodyEnd, len(w.manifest.Frames), nil)...)
	last := w.newEndBytes()
	return last, w.stream(ctx, groups, func(ctx context.Context, p []byte, offset int64) error {
		p, offset = last.keep(w.ends, p, offset)
		return w.writeBody(ctx, p, offset)
	})
}
