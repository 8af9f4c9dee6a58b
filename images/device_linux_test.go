package images

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestWriteFile(t *testing.T) {
	f := newFixture(t)
	path := filepath.Join(t.TempDir(), "disk")
	writeDisk(t, f, path, path)
}

func TestWriteLoopDevice(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to set up a loop device")
	}
	f := newFixture(t)
	backing := filepath.Join(t.TempDir(), "disk")
	fill(t, backing, len(f.disk)+4*mib-3*SectorSize)
	device := loopDevice(t, backing)
	if device == "" {
		t.Skip("this kernel has no loop devices")
	}
	writeDisk(t, f, device, "")
}

// loopDevice sets up a loop device over a file, and returns nothing where that cannot be done.
func loopDevice(t *testing.T, backing string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", backing).Output()
	if err != nil {
		t.Logf("losetup cannot set up a loop device here: %v", err)
		return ""
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("detaching %s: %v: %s", device, err, out)
		}
	})
	return device
}

func fill(t *testing.T, path string, size int) {
	t.Helper()
	if err := os.WriteFile(path, bytes.Repeat([]byte{0xaa}, size), 0o600); err != nil {
		t.Fatal(err)
	}
}

func writeDisk(t *testing.T, f *fixture, path, create string) {
	t.Helper()
	if create != "" {
		fill(t, create, len(f.disk)+4*mib)
	}
	disk, err := OpenDisk(path)
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if disk.Size() < int64(len(f.disk)) || disk.SectorSize() != SectorSize {
		t.Fatalf("disk has %d bytes in sectors of %d", disk.Size(), disk.SectorSize())
	}
	if _, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: f.source(t), Device: disk}); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(f.disk))
	if _, err := disk.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, f.disk) {
		t.Error("disk differs from the image")
	}
}
