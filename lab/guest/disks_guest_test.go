//go:build guest

package guest

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDisks shows that the machine is as the package says, and that a disk comes back blank.
func TestDisks(t *testing.T) {
	t.Run("dirty", func(t *testing.T) {
		for _, d := range append(Take(t, Virtio, VirtioDisks), append(Take(t, NVMe, NVMeDisks), Take(t, Sector4K, Sector4KDisks)...)...) {
			f, err := os.OpenFile(d.Path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("left over"), d.SizeBytes-9); err != nil {
				t.Error(err)
			}
			if err := errors.Join(f.Sync(), f.Close()); err != nil {
				t.Error(err)
			}
			if err := blank(d); err == nil {
				t.Errorf("%s is said to be blank with something in its last bytes", d.Serial)
			}
		}
	})
	for _, d := range Take(t, Virtio, VirtioDisks) {
		if d.SizeBytes != 512<<20 || d.LogicalSector != 512 {
			t.Errorf("%+v: want 512 MiB in sectors of 512 bytes", d)
		}
	}
	for _, d := range Take(t, NVMe, NVMeDisks) {
		if d.SizeBytes != 768<<20 || d.LogicalSector != 512 || !strings.HasPrefix(d.WWN, "nvme.") {
			t.Errorf("%+v: want 768 MiB in sectors of 512 bytes and a WWN", d)
		}
	}
	for _, d := range Take(t, Sector4K, Sector4KDisks) {
		if d.SizeBytes != 1<<30 || d.LogicalSector != 4096 {
			t.Errorf("%+v: want 1 GiB in sectors of 4096 bytes", d)
		}
	}
}

// TestDiskInUse shows that a disk that is still used is noticed.
func TestDiskInUse(t *testing.T) {
	d := Take(t, Virtio, 1)[0]
	f, err := os.OpenFile(d.Path, os.O_RDONLY|unix.O_EXCL, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := clean(d); !errors.Is(err, unix.EBUSY) {
		t.Errorf("a disk in use was cleaned: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

func TestMachine(t *testing.T) {
	for _, path := range []string{"/dev/tpmrm0", "/run", "/tmp", "/sbin/mdadm", "/proc/mounts"} {
		if _, err := os.Stat(path); err != nil {
			t.Error(err)
		}
	}
	if dir, err := os.Getwd(); err != nil || !strings.HasSuffix(dir, "/lab/guest") {
		t.Errorf("the working directory is %q: %v", dir, err)
	}
}
