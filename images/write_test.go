package images

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"sync/atomic"
	"testing"
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
	if ops[0] != (deviceOp{kind: "zero", length: headSize}) || ops[1].kind != "zero" || ops[2].kind != "sync" {
		t.Errorf("first operations = %+v, want the head and the tail zeroed and a sync", ops[:3])
	}
	end := ops[len(ops)-3:]
	if end[0].kind != "sync" || end[1] != (deviceOp{kind: "write", length: headSize}) || end[2].kind != "sync" {
		t.Errorf("last operations = %+v, want sync, the first MiB, sync", end)
	}
	for _, op := range ops[1 : len(ops)-2] {
		if op.kind != "sync" && op.offset < headSize {
			t.Errorf("%+v touches the first MiB too early", op)
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
