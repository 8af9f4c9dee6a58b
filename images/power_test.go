package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// quick lets a write of a few milliseconds have many watermarks.
func quick() pace { return pace{sync: 200 * time.Microsecond, report: 100 * time.Microsecond} }

// smallFrames is an image of frames of 64 KiB, so that a few MiB have many: data and manifest of a disk of seeded bytes, with zeros in places.
func smallFrames(t testing.TB, frames int, seed uint64) (disk, data []byte, m *Manifest) {
	t.Helper()
	random := rand.NewChaCha8([32]byte{byte(seed)})
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	m = &Manifest{
		Format: Format, Name: "small", Kind: KindDisk, Size: int64(frames) * minFrameSize, SectorSize: SectorSize, FrameSize: minFrameSize,
		Created: time.Unix(1700000000, 0).UTC(),
	}
	for i := range frames {
		frame := make([]byte, minFrameSize)
		f := Frame{Offset: int64(i) * minFrameSize, Length: minFrameSize}
		if f.Zero = i%10 == 3; !f.Zero {
			_, _ = random.Read(frame)
			stored := encoder.EncodeAll(frame, nil)
			f.DataOffset, f.DataLength, f.SHA256, f.RawSHA256 = int64(len(data)), int64(len(stored)), sha256.Sum256(stored), sha256.Sum256(frame)
			data = append(data, stored...)
		}
		disk = append(disk, frame...)
		m.Frames = append(m.Frames, f)
	}
	if _, err := m.Encode(); err != nil {
		t.Fatal(err)
	}
	return disk, data, m
}

// earlierDisk is a disk with other bytes all over.
func earlierDisk(size int) []byte {
	disk := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{99}).Read(disk)
	return disk
}

// checkTables says what is wrong with the tables of a disk after a power cut: it must have the earlier one, or none, or the image's with all the
// image. earlier and image are as long as the disk.
func checkTables(disk, earlier, image []byte) error {
	table := disk[:tableSize]
	tail := len(disk) - tailSize
	switch {
	case bytes.Equal(table, earlier[:tableSize]):
		if !bytes.Equal(disk, earlier) {
			return errors.New("the earlier partition table is there, the earlier disk is not")
		}
	case bytes.Equal(table, image[:tableSize]):
		if !bytes.Equal(disk, image) {
			return errors.New("the image's partition table is there, the image is not")
		}
	case !allZero(table):
		return errors.New("there is half a partition table")
	case bytes.Equal(disk[len(disk)-tableSize:], image[len(disk)-tableSize:]):
		// The backup's header is in the last block. What it speaks of is complete, but for the first one.
		if !bytes.Equal(disk[headSize:tail], image[headSize:tail]) {
			return errors.New("the image's backup partition table is there, the image is not")
		}
	}
	return nil
}

// The power goes at each of a write's operations in turn, in which a disk loses what it has not flushed. Whatever is left then has a whole table or
// none, and the next write makes it the image, from the last watermark on.
func TestWritePowerCutAnywhere(t *testing.T) {
	image, data, m := smallFrames(t, 36, 1)
	earlier := earlierDisk(len(image))
	tables := map[string]int{}
	ended := false // before the power went: each write has another number of syncs, so that only this says that all operations had their turn
	for cut := 1; !ended; cut++ {
		ended = true
		for seed := range uint64(4) {
			device := newCachedDevice(earlier, seed)
			device.cutAt = cut
			mark, err := cutWrite(t, m, data, device, Watermark{})
			if err == nil {
				continue
			}
			ended = false
			if err := checkTables(device.medium, earlier, image); err != nil {
				t.Fatalf("power cut at operation %d, seed %d: %v", cut, seed, err)
			}
			tables[tableOf(device.medium, earlier, image)]++
			again := newCachedDevice(device.medium, seed)
			result, err := Write(t.Context(), WriteOptions{Manifest: m, Source: &memorySource{data: data}, Device: again, Resume: mark})
			if err != nil {
				t.Fatalf("resuming after operation %d, seed %d: %v", cut, seed, err)
			}
			if result.RestartReason != "" {
				t.Fatalf("power cut at operation %d, seed %d: the watermark did not hold: %s", cut, seed, result.RestartReason)
			}
			if !bytes.Equal(again.medium, image) {
				t.Fatalf("power cut at operation %d, seed %d: the disk differs from the image after the next write", cut, seed)
			}
		}
	}
	for _, table := range []string{"earlier", "none", "image"} {
		if tables[table] == 0 {
			t.Errorf("no power cut left the disk with this table: %s (%v)", table, tables)
		}
	}
}

func tableOf(disk, earlier, image []byte) string {
	switch table := disk[:tableSize]; {
	case bytes.Equal(table, earlier[:tableSize]):
		return "earlier"
	case bytes.Equal(table, image[:tableSize]):
		return "image"
	}
	return "none"
}

// cutWrite writes until the power goes and returns the last watermark.
func cutWrite(t *testing.T, m *Manifest, data []byte, device Device, resume Watermark) (mark Watermark, err error) {
	t.Helper()
	mark = resume
	_, err = Write(t.Context(), WriteOptions{
		Manifest: m, Source: &memorySource{data: data}, Device: device, Resume: resume, pace: quick(), Progress: func(p Progress) { mark = p.Watermark },
	})
	if err != nil && !errors.Is(err, errPowerCut) {
		t.Fatal(err)
	}
	return mark, err
}

// After a power cut at 30, 60 and 99 % no frame below the watermark is written again.
func TestWritePowerCutResumes(t *testing.T) {
	for _, percent := range []int{30, 60, 99} {
		t.Run(fmt.Sprintf("%d %%", percent), func(t *testing.T) {
			if _, err := powerCutAt(t, percent, 7); err != nil {
				t.Error(err)
			}
		})
	}
}

// powerCutAt cuts the power when so much of the image is on its way to the disk, and resumes. It says what came of it.
func powerCutAt(t *testing.T, percent int, seed uint64) (found string, err error) {
	image, data, m := smallFrames(t, 200, seed)
	earlier := earlierDisk(len(image))
	device := newCachedDevice(earlier, seed)
	cutting := &cuttingDevice{cachedDevice: device, cutAfter: int64(len(image)) * int64(percent) / 100, marked: make(chan struct{})}
	var mark Watermark
	_, err = Write(t.Context(), WriteOptions{Manifest: m, Source: &memorySource{data: data}, Device: cutting, pace: quick(), Progress: func(p Progress) {
		if mark = p.Watermark; mark.Frame > 0 {
			cutting.once.Do(func() { close(cutting.marked) })
		}
	}})
	if err != nil && !errors.Is(err, errPowerCut) {
		return "", err
	}
	if err == nil {
		return "", errors.New("the write ended before the power cut")
	}
	if err := checkTables(device.medium, earlier, image); err != nil {
		return "", err
	}
	again := newCachedDevice(device.medium, seed)
	result, err := Write(t.Context(), WriteOptions{Manifest: m, Source: &memorySource{data: data}, Device: again, Resume: mark})
	if err != nil {
		return "", err
	}
	if result.RestartReason != "" || mark.Frame == 0 || result.ResumedAt != mark.Frame {
		return "", fmt.Errorf("resumed at frame %d of watermark %d: %s", result.ResumedAt, mark.Frame, result.RestartReason)
	}
	from := m.Frames[mark.Frame-1].Offset + m.Frames[mark.Frame-1].Length
	for _, op := range again.written {
		if op.offset >= headSize && op.offset < min(from, int64(len(image))-tailSize) {
			return "", fmt.Errorf("%+v writes again what lies below the watermark, byte %d", op, from)
		}
	}
	if !bytes.Equal(again.medium, image) {
		return "", errors.New("the disk differs from the image after the next write")
	}
	return fmt.Sprintf("table after the cut: %s; resumed at frame %d of %d, complete", tableOf(device.medium, earlier, image), mark.Frame, len(m.Frames)), nil
}

// cuttingDevice cuts the power once so many bytes were written, and a watermark was reported.
type cuttingDevice struct {
	*cachedDevice
	cutAfter int64
	done     atomic.Int64
	marked   chan struct{}
	once     sync.Once
}

func (d *cuttingDevice) WriteAt(p []byte, offset int64) (int, error) {
	if err := d.count(int64(len(p))); err != nil {
		return 0, err
	}
	return d.cachedDevice.WriteAt(p, offset)
}

func (d *cuttingDevice) Zero(ctx context.Context, offset, length int64) error {
	if err := d.count(length); err != nil {
		return err
	}
	return d.cachedDevice.Zero(ctx, offset, length)
}

func (d *cuttingDevice) count(n int64) error {
	if d.done.Add(n) < d.cutAfter {
		return nil
	}
	select {
	case <-d.marked:
	case <-time.After(time.Minute):
		return errors.New("there was no watermark")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cutAt == 0 {
		d.cutAt = d.ops + 1
	}
	return nil
}
