package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bloomery/internal/figures"
)

// faultsReport names the report that "make faults" wants rows in.
const faultsReport = "BLOOMERY_WRITE_FAULTS_REPORT"

// faultCase is a row of the table: what goes wrong, and what must come of it.
type faultCase struct {
	name string
	// fault and times are the server's, device the disk's.
	fault  func(*faultServer) func(http.ResponseWriter, int64, int64)
	times  int64
	device func(Device) Device
	// want is the error that the write ends with, and text is in it; the image is complete when both are empty.
	want error
	text string
}

const always = 1 << 30

func faultCases() []faultCase {
	fault := func(f func(*faultServer, http.ResponseWriter, int64, int64)) func(*faultServer) func(http.ResponseWriter, int64, int64) {
		return func(s *faultServer) func(http.ResponseWriter, int64, int64) {
			return func(w http.ResponseWriter, first, last int64) { f(s, w, first, last) }
		}
	}
	status := func(code int) func(*faultServer) func(http.ResponseWriter, int64, int64) {
		return func(s *faultServer) func(http.ResponseWriter, int64, int64) { return s.status(code) }
	}
	return []faultCase{
		{name: "clean FIN at 60 %, once", fault: fault((*faultServer).fin), times: 1},
		{name: "clean FIN at 60 %, always", fault: fault((*faultServer).fin), times: always, want: io.ErrUnexpectedEOF, text: "answer ended after"},
		{name: "RST at 60 %, once", fault: fault((*faultServer).rst), times: 1},
		{name: "RST at 60 %, always", fault: fault((*faultServer).rst), times: always, text: "giving up after"},
		{name: "stall at 60 %, once", fault: fault((*faultServer).stall), times: 1},
		{name: "stall at 60 %, always", fault: fault((*faultServer).stall), times: always, text: "server sent nothing"},
		{name: "flipped byte, once", fault: fault((*faultServer).flip), times: 1},
		{name: "flipped byte, always", fault: fault((*faultServer).flip), times: always, want: ErrCorrupt, text: "has sha256"},
		{name: "wrong length, always", fault: fault((*faultServer).short), times: always, want: ErrCorrupt, text: "Content-Range"},
		{name: "status 500, twice", fault: status(500), times: 2},
		{name: "status 500, always", fault: status(500), times: always, text: "500 Internal Server Error"},
		{name: "status 416, always", fault: status(416), times: always, want: ErrCorrupt, text: "image ends before"},
		{name: "server killed at 60 % and back", fault: fault((*faultServer).restart), times: 1},
		{name: "EIO when a sector at 60 % is written", device: func(d Device) Device { return &brokenDevice{Device: d, write: syscall.EIO} }, want: syscall.EIO, text: "of the disk"},
		{name: "EIO when a sector at 60 % is read back", device: func(d Device) Device { return &brokenDevice{Device: d, read: syscall.EIO} }, want: syscall.EIO, text: "reading back"},
		{name: "a sector at 60 % keeps what it had", device: func(d Device) Device { return &brokenDevice{Device: d, deaf: true} }, want: ErrCorrupt, text: "does not return what was written"},
		{name: "disk too small", device: func(d Device) Device { return &smallDevice{d} }, want: ErrDeviceTooSmall, text: "the device has"},
	}
}

// Each fault ends in a complete image, or in the right error and a disk without half a partition table.
func TestWriteFaults(t *testing.T) {
	image := newSmallImage(t, 128)
	path := earlierDevice(t, len(image.disk)+4*mib)
	var rows []figures.Fault
	row := func(name, injectedBy, expected, found string, err error) {
		if err != nil {
			t.Errorf("%s: %v", name, err)
			found = err.Error()
		}
		rows = append(rows, figures.Fault{Area: "image writer", Fault: name, InjectedBy: injectedBy, Expected: expected, Found: found, OK: err == nil})
	}
	for _, c := range faultCases() {
		found, err := c.run(t, image, path)
		row(c.name, c.by(), c.expected(), found, err)
	}
	for _, percent := range []int{30, 60, 99} {
		found, err := powerCutAt(t, percent, uint64(percent))
		row(fmt.Sprintf("power cut at %d %%", percent), "images, a disk with a volatile cache", "the earlier table, none, or the complete image; resumes", found, err)
		found, err = killAt(t, image, percent, path)
		row(fmt.Sprintf("process killed at %d %%", percent), "images, SIGKILL", "no table; resumes without fetching again what is on the disk", found, err)
	}
	if report := os.Getenv(faultsReport); report != "" {
		if err := figures.AddFaults(report, rows); err != nil {
			t.Error(err)
		}
	}
}

func (c faultCase) by() string {
	if c.device != nil {
		return "images, a disk that fails"
	}
	return "images, an HTTP server that fails"
}

func (c faultCase) expected() string {
	if c.want == nil && c.text == "" {
		return "complete image"
	}
	return fmt.Sprintf("error with %q, no partition table", c.text)
}

// run writes to the disk at path with the fault and says what came of it.
func (c faultCase) run(t *testing.T, image *smallImage, path string) (found string, err error) {
	server := newFaultServer(t, image)
	patience := 20 * time.Second
	if c.fault != nil {
		server.fault = c.fault(server)
		if c.times == always {
			patience = 300 * time.Millisecond
		}
	}
	server.times.Store(c.times)
	if err := refill(path); err != nil {
		return "", err
	}
	disk, err := OpenDisk(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	var device Device = disk
	if c.device != nil {
		device = c.device(disk)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, failed := Write(ctx, WriteOptions{Manifest: image.m, Source: server.source(patience), Device: device, ReadBack: ReadBackFull})
	got := make([]byte, len(image.disk))
	if _, err := disk.ReadAt(got, 0); err != nil {
		return "", err
	}
	switch {
	case c.fault != nil && server.times.Load() == c.times:
		return "", errors.New("the fault did not happen")
	case c.want == nil && c.text == "":
		if failed == nil && !bytes.Equal(got, image.disk) {
			return "", errors.New("the disk differs from the image")
		}
		return "complete image", failed
	case failed == nil:
		return "", errors.New("the write succeeded")
	case c.want != nil && !errors.Is(failed, c.want), !strings.Contains(failed.Error(), c.text):
		return "", fmt.Errorf("error %q, want %v with %q", failed, c.want, c.text)
	case errors.Is(failed, ErrDeviceTooSmall):
		if got[0] != earlierByte {
			return "", errors.New("the disk was touched")
		}
		return "the error, and the disk untouched", nil
	case !allZero(got[:headSize]):
		return "", errors.New("the disk has a partition table after a failed write")
	}
	return "the error, and no partition table", nil
}

// brokenDevice fails, or does not do what it says, where a sector at 60 % of the disk is concerned.
type brokenDevice struct {
	Device
	write, read error
	deaf        bool
}

func (d *brokenDevice) hit(p []byte, offset int64) bool {
	at := d.Size() * 6 / 10
	return offset <= at && at < offset+int64(len(p))
}

func (d *brokenDevice) WriteAt(p []byte, offset int64) (int, error) {
	if d.hit(p, offset) && d.write != nil {
		return 0, &fs.PathError{Op: "write", Path: "disk", Err: d.write}
	}
	if d.hit(p, offset) && d.deaf {
		return len(p), nil
	}
	return d.Device.WriteAt(p, offset)
}

func (d *brokenDevice) ReadAt(p []byte, offset int64) (int, error) {
	if d.hit(p, offset) && d.read != nil {
		return 0, &fs.PathError{Op: "read", Path: "disk", Err: d.read}
	}
	return d.Device.ReadAt(p, offset)
}

type smallDevice struct{ Device }

func (d *smallDevice) Size() int64 { return 7 * mib }

// earlierByte is what a disk is full of before a write.
const earlierByte = 0xaa

func refill(path string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	size, err := file.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = file.WriteAt(bytes.Repeat([]byte{earlierByte}, int(size)), 0)
	}
	return errors.Join(err, file.Sync(), file.Close())
}

// earlierDevice is a loop device, or a file where there are none.
func earlierDevice(t *testing.T, size int) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	fill(t, file, size)
	if device := loopDevice(t, file); device != "" {
		return device
	}
	return file
}
