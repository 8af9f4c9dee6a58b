package images

import (
	"context"
	"crypto/sha256"
	"fmt"
)

// sampleFrames is how many data frames are read back; each costs about 0.1 s where SHA-256 is slow (40 MB/s).
const sampleFrames = 6

// sample returns up to sampleFrames data frames below end, spread evenly, the first and the last among them.
func sample(m *Manifest, first, end int) []int {
	var data []int
	for i := first; i < end; i++ {
		if !m.Frames[i].Zero {
			data = append(data, i)
		}
	}
	if len(data) <= sampleFrames {
		return data
	}
	picked := make([]int, 0, sampleFrames)
	for k := range sampleFrames {
		picked = append(picked, data[k*(len(data)-1)/(sampleFrames-1)])
	}
	return picked
}

// compare reads data frames back and returns the first one that differs from the manifest, or -1.
func (w *writer) compare(ctx context.Context, frames []int) (int, error) {
	buffer := alignedBuffer(int(w.manifest.FrameSize))
	for _, i := range frames {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		f := &w.manifest.Frames[i]
		if _, err := w.device.ReadAt(buffer[:f.Length], f.Offset); err != nil {
			return 0, fmt.Errorf("reading back frame %d at byte %d of the disk: %w", i, f.Offset, err)
		}
		if sha256.Sum256(buffer[:f.Length]) != f.RawSHA256 {
			return i, nil
		}
	}
	return -1, nil
}

// compareZeros reads the beginning and the end of zero runs back and returns the first run that has other bytes, or -1.
func (w *writer) compareZeros(ctx context.Context, first, end int) (int, error) {
	const edge = 64 << 10
	buffer := alignedBuffer(edge)
	for i := first; i < end; i++ {
		f := &w.manifest.Frames[i]
		if !f.Zero {
			continue
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		n := min(edge, f.Length)
		for _, offset := range []int64{f.Offset, f.Offset + f.Length - n} {
			if _, err := w.device.ReadAt(buffer[:n], offset); err != nil {
				return 0, fmt.Errorf("reading back zeros at byte %d of the disk: %w", offset, err)
			}
			if !allZero(buffer[:n]) {
				return i, nil
			}
		}
	}
	return -1, nil
}

// readBack compares a sample of the written disk with the manifest and returns how many data frames it has.
func (w *writer) readBack(ctx context.Context, end int) (int, error) {
	frames := sample(w.manifest, 0, end)
	bad, err := w.compare(ctx, frames)
	if err == nil && bad < 0 {
		bad, err = w.compareZeros(ctx, 0, end)
	}
	if err != nil {
		return 0, err
	}
	if bad >= 0 {
		return 0, fmt.Errorf("the disk does not return what was written: frame %d at byte %d differs: %w", bad, w.manifest.Frames[bad].Offset, ErrCorrupt)
	}
	return len(frames), nil
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
	first := headFrames(w.manifest, w.head) // written last, so never there yet
	bad, err := w.compare(ctx, sample(w.manifest, first, mark.Frame))
	if err == nil && bad < 0 {
		bad, err = w.compareZeros(ctx, first, mark.Frame)
	}
	if err != nil {
		return 0, "", err
	}
	if bad >= 0 {
		return 0, fmt.Sprintf("frame %d is not on the disk as the earlier write left it", bad), nil
	}
	return mark.Frame, "", nil
}
