package images

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWriteRoundTrip(t *testing.T) {
	f := newFixture(t)
	device := newFakeDevice(len(f.disk) + 8*mib)
	var last Progress
	result, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: f.source(t), Device: device, Workers: 4, Progress: func(p Progress) { last = p }})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(device.disk[:len(f.disk)], f.disk) {
		t.Error("disk differs from the image")
	}
	if !allZero(device.disk[len(device.disk)-tailSize:]) {
		t.Error("an earlier backup partition table was left at the end of the disk")
	}
	if last.DiskDone != f.m.Size || last.DataDone != f.m.DataLength() || last.Watermark.Frame != len(f.m.Frames) {
		t.Errorf("last progress = %+v, want all of %d bytes", last, f.m.Size)
	}
	if result.FramesReadBack == 0 || result.DataBytes != f.m.DataLength() {
		t.Errorf("result = %+v", result)
	}
}

// The partition table must be gone before anything is written, and be written after everything else is durable.
func TestWriteOrder(t *testing.T) {
	f := newFixture(t)
	device := newFakeDevice(len(f.disk))
	if _, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: &memorySource{data: f.read(t, DataFile)}, Device: device}); err != nil {
		t.Fatal(err)
	}
	ops := device.ops
	size := int64(len(f.disk))
	begin := []deviceOp{
		{kind: "zero", length: tableSize}, {kind: "sync"},
		{kind: "zero", offset: tableSize, length: headSize - tableSize}, {kind: "zero", offset: size - tailSize, length: tailSize}, {kind: "sync"},
	}
	end := []deviceOp{
		{kind: "sync"}, {kind: "write", offset: tableSize, length: headSize - tableSize}, {kind: "write", offset: size - tailSize, length: tailSize},
		{kind: "sync"}, {kind: "write", length: tableSize}, {kind: "sync"},
	}
	if len(ops) < len(begin)+len(end) {
		t.Fatalf("%d operations", len(ops))
	}
	if diff := cmp.Diff(begin, ops[:len(begin)], cmp.AllowUnexported(deviceOp{})); diff != "" {
		t.Errorf("first operations (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(end, ops[len(ops)-len(end):], cmp.AllowUnexported(deviceOp{})); diff != "" {
		t.Errorf("last operations (-want +got):\n%s", diff)
	}
	for _, op := range ops[len(begin) : len(ops)-len(end)] {
		if op.kind != "sync" && (op.offset < headSize || op.offset+op.length > size-tailSize) {
			t.Errorf("%+v touches a place of partition tables too early", op)
		}
	}
}

func TestWriteRefusesBeforeTheFirstWrite(t *testing.T) {
	f := newFixture(t)
	small := newFakeDevice(len(f.disk) - SectorSize)
	large := newFakeDevice(len(f.disk))
	large.sector = 4096
	for name, tc := range map[string]struct {
		device *fakeDevice
		want   error
	}{
		"too small": {small, ErrDeviceTooSmall}, "4Kn": {large, ErrSectorSize},
	} {
		_, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: &memorySource{}, Device: tc.device})
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: error = %v, want %v", name, err, tc.want)
		}
		if len(tc.device.ops) != 0 {
			t.Errorf("%s: %d operations on the device, want none", name, len(tc.device.ops))
		}
	}
}

func TestWriteFlippedByte(t *testing.T) {
	f := newFixture(t)
	frame := f.m.Frames[len(f.m.Frames)-1]
	spoil := func(p []byte, offset int64) {
		if at := frame.DataOffset + 20; at >= offset && at < offset+int64(len(p)) {
			p[at-offset] ^= 1
		}
	}
	device := newFakeDevice(len(f.disk))
	_, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: &memorySource{data: f.read(t, DataFile), spoil: spoil}, Device: device})
	if !errors.Is(err, ErrCorrupt) {
		t.Fatalf("error = %v, want ErrCorrupt", err)
	}
	if !allZero(device.disk[:headSize]) {
		t.Error("the disk has a partition table after a failed write")
	}

	// Wrong once, as with two servers of which one has a bad disk: the write goes on.
	var spoiled atomic.Int32
	once := func(p []byte, offset int64) {
		if spoiled.Add(1) == 1 {
			p[0] ^= 1
		}
	}
	device = newFakeDevice(len(f.disk))
	if _, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: &memorySource{data: f.read(t, DataFile), spoil: once}, Device: device}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(device.disk, f.disk) {
		t.Error("disk differs from the image")
	}
}

func TestWriteErrors(t *testing.T) {
	f := newFixture(t)
	data := f.read(t, DataFile)
	t.Run("truncated data", func(t *testing.T) {
		_, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: &memorySource{data: data[:len(data)-1]}, Device: newFakeDevice(len(f.disk))})
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("error = %v, want unexpected EOF", err)
		}
	})
	t.Run("write error", func(t *testing.T) {
		device, broken := newFakeDevice(len(f.disk)), errors.New("medium error")
		device.fail = func(op deviceOp) error {
			if op.kind == "write" && op.offset >= 20*mib {
				return broken
			}
			return nil
		}
		_, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: &memorySource{data: data}, Device: device})
		if !errors.Is(err, broken) {
			t.Errorf("error = %v, want %v", err, broken)
		}
	})
	t.Run("disk forgets", func(t *testing.T) {
		device := newFakeDevice(len(f.disk))
		device.ignore = func(op deviceOp) bool { return op.offset >= 20*mib }
		_, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: &memorySource{data: data}, Device: device})
		if !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "does not return what was written") {
			t.Errorf("error = %v, want what the read-back says", err)
		}
	})
}

func TestWriteResume(t *testing.T) {
	f := newFixture(t)
	data := f.read(t, DataFile)
	const frame = 3
	offset := f.m.Frames[frame].Offset
	mark := Watermark{ManifestSHA256: f.m.SHA256().String(), Frame: frame}
	half := func() *fakeDevice {
		device := newFakeDevice(len(f.disk))
		copy(device.disk[headSize:offset], f.disk[headSize:])
		return device
	}
	for name, tc := range map[string]struct {
		mark   Watermark
		change func(*fakeDevice)
		at     int
		reason string
	}{
		"goes on":      {mark: mark, at: frame},
		"other image":  {mark: Watermark{ManifestSHA256: strings.Repeat("0", 64), Frame: frame}, reason: "another image"},
		"not a frame":  {mark: Watermark{ManifestSHA256: mark.ManifestSHA256, Frame: 999}, reason: "not one of"},
		"other disk":   {mark: mark, change: func(d *fakeDevice) { d.disk[9*mib] ^= 1 }, reason: "not on the disk"},
		"nothing done": {},
	} {
		t.Run(name, func(t *testing.T) {
			device := half()
			if tc.change != nil {
				tc.change(device)
			}
			source := &memorySource{data: data}
			var last Progress
			result, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: source, Device: device, Resume: tc.mark, Progress: func(p Progress) { last = p }})
			if err != nil {
				t.Fatal(err)
			}
			if result.ResumedAt != tc.at || !strings.Contains(result.RestartReason, tc.reason) || (tc.reason == "") != (result.RestartReason == "") {
				t.Errorf("resumed at %d with %q, want %d with %q", result.ResumedAt, result.RestartReason, tc.at, tc.reason)
			}
			if !bytes.Equal(device.disk, f.disk) {
				t.Error("disk differs from the image")
			}
			if last.DataDone != last.DataTotal || last.DataTotal != f.m.DataLength() {
				t.Errorf("progress ends at %d of %d compressed bytes", last.DataDone, last.DataTotal)
			}
			if tc.at > 0 && result.DataBytes >= int64(len(data)) {
				t.Errorf("%d bytes were fetched, want fewer than all %d", result.DataBytes, len(data))
			}
		})
	}
}

// A disk that holds the image already, but for some bytes, is fetched and written where it differs only.
func TestWriteDelta(t *testing.T) {
	f := newFixture(t)
	data := f.read(t, DataFile)
	for name, tc := range map[string]struct {
		change func(disk []byte)
		kept   int
	}{
		"the image":         {func([]byte) {}, 3},
		"one frame differs": {func(disk []byte) { disk[9*mib]++ }, 2},
		"zeros differ":      {func(disk []byte) { disk[14*mib] = 1 }, 3},
		"another disk":      {func(disk []byte) { clear(disk) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			device := newFakeDevice(len(f.disk))
			copy(device.disk, f.disk)
			tc.change(device.disk)
			var last Progress
			result, err := Write(t.Context(), WriteOptions{
				Manifest: f.m, Source: &memorySource{data: data}, Device: device, Delta: true, ReadBack: ReadBackFull, Progress: func(p Progress) { last = p },
			})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(device.disk, f.disk) {
				t.Error("disk differs from the image")
			}
			if result.FramesKept != tc.kept || result.FramesTotal != 5 || result.FramesReadBack != 5 {
				t.Errorf("%d of %d frames kept, %d read back, want %d kept of 5 and all read back", result.FramesKept, result.FramesTotal, result.FramesReadBack, tc.kept)
			}
			written := make([]bool, len(f.m.Frames))
			for _, op := range device.ops {
				for i, frame := range f.m.Frames {
					written[i] = written[i] || op.kind == "write" && op.offset < frame.Offset+frame.Length && op.offset+op.length > frame.Offset
				}
			}
			if n := result.FramesTotal - tc.kept; countTrue(written) != n {
				t.Errorf("writes to frames %v, want to %d", written, n)
			}
			if last.DataDone != last.DataTotal || last.DiskDone != last.DiskTotal {
				t.Errorf("progress ends with %+v", last)
			}
			if (result.DataBytes < int64(len(data))) != (tc.kept > 0) {
				t.Errorf("%d of %d bytes were fetched", result.DataBytes, len(data))
			}
		})
	}
}

func countTrue(all []bool) int {
	n := 0
	for _, b := range all {
		if b {
			n++
		}
	}
	return n
}

// A full read-back finds a single byte that the sample's frames do not have.
func TestFullReadBack(t *testing.T) {
	f := newFixture(t)
	for mode, wrong := range map[ReadBack]bool{ReadBackSample: false, ReadBackFull: true} {
		device := newFakeDevice(len(f.disk))
		device.turn = func(p []byte, offset int64) {
			if at := int64(14*mib) - offset; at >= 0 && at < int64(len(p)) {
				p[at] ^= 1 // in the middle of a run of zeros
			}
		}
		_, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: &memorySource{data: f.read(t, DataFile)}, Device: device, ReadBack: mode})
		if errors.Is(err, ErrCorrupt) != wrong {
			t.Errorf("read-back %d: error = %v, want one: %t", mode, err, wrong)
		}
		if wrong && !allZero(device.disk[:headSize]) {
			t.Error("a disk that does not return what was written has a partition table")
		}
	}
}
