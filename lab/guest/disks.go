package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Kind is a sort of disk of the machine that guest tests run in.
type Kind string

// Kinds of disks, and how many of each there are.
const (
	Virtio Kind = "GUESTV"
	NVMe   Kind = "GUESTN"
	// Sector4K has sectors of 4096 bytes.
	Sector4K Kind = "GUEST4K"

	VirtioDisks   = 4
	NVMeDisks     = 2
	Sector4KDisks = 1
)

// Disk is a disk as sysfs describes it.
type Disk struct {
	Serial string
	// WWN is sysfs' wwid: made of the serial, since the kernel does not trust QEMU's EUI-64; empty for virtio.
	WWN string
	// Name is the kernel's, Path the device's.
	Name, Path    string
	SizeBytes     int64
	LogicalSector int
}

// edge is how much of a disk's beginning and end is looked at: whoever leaves something leaves a table or a superblock there.
const edge = 1 << 20

// Take gives the test the first n disks of a kind. They must be blank, and are made blank again when the test ends; one that something still
// uses then fails the test.
func Take(t testing.TB, kind Kind, n int) []Disk {
	t.Helper()
	var disks []Disk
	for i := range n {
		d, err := Find(string(kind) + strconv.Itoa(i+1))
		if err != nil {
			t.Fatalf("guest disks: %v (guest tests run in the machine of `go test ./lab/guest`)", err)
		}
		if err := blank(d); err != nil {
			t.Fatalf("guest disks: an earlier test left something: %v", err)
		}
		disks = append(disks, d)
	}
	t.Cleanup(func() {
		for _, d := range disks {
			if err := clean(d); err != nil {
				t.Errorf("guest disks: giving %s back: %v", d.Serial, err)
			}
		}
	})
	return disks
}

// Find looks a disk up by its serial, as nothing else of it is sure to be the same in the next boot.
func Find(serial string) (Disk, error) {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return Disk{}, err
	}
	for _, e := range entries {
		dir := filepath.Join("/sys/block", e.Name())
		if attribute(dir, "serial") != serial && attribute(dir, "device/serial") != serial {
			continue
		}
		sectors, errSize := strconv.ParseInt(attribute(dir, "size"), 10, 64) // of 512 bytes, whatever the disk's are
		logical, errSector := strconv.Atoi(attribute(dir, "queue/logical_block_size"))
		return Disk{
			Serial: serial, WWN: attribute(dir, "wwid"), Name: e.Name(), Path: "/dev/" + e.Name(), SizeBytes: sectors * 512, LogicalSector: logical,
		}, errors.Join(errSize, errSector)
	}
	return Disk{}, fmt.Errorf("there is no disk %s", serial)
}

// attribute is empty where there is none.
func attribute(dir, name string) string {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func blank(d Disk) error {
	f, err := os.Open(d.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, edge)
	for _, offset := range []int64{0, d.SizeBytes - edge} {
		if _, err := io.ReadFull(io.NewSectionReader(f, offset, edge), buf); err != nil {
			return fmt.Errorf("read %s: %w", d.Serial, err)
		}
		if i := bytes.IndexFunc(buf, func(r rune) bool { return r != 0 }); i >= 0 {
			return fmt.Errorf("%s is not zero at byte %d", d.Serial, offset+int64(i))
		}
	}
	return nil
}

// clean discards all of a disk, which makes its virtual medium read as zeros, zeroes its ends and has the kernel forget its partitions.
// Exclusive access fails while anything uses the disk or a part of it.
func clean(d Disk) error {
	f, err := os.OpenFile(d.Path, os.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := discard(f, d.SizeBytes); err != nil {
		return fmt.Errorf("discard it: %w", err)
	}
	for _, offset := range []int64{0, d.SizeBytes - edge} {
		if _, err := f.WriteAt(make([]byte, edge), offset); err != nil {
			return fmt.Errorf("zero it: %w", err)
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("zero it: %w", err)
	}
	if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKRRPART, 0); err != nil {
		return fmt.Errorf("read its partition table again: %w", err)
	}
	return nil
}
