package partition

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"bloomery/internal/run"
)

// ErrInUse is wrapped when a disk or one of its partitions is mounted or part of an array or volume.
var ErrInUse = errors.New("disk is in use")

// Disks works on the machine's disks. The zero value with a Runner is ready.
type Disks struct {
	// Runner starts the filesystems' own tools.
	Runner run.Runner
	// Sysfs is where sysfs is mounted; empty means /sys.
	Sysfs string
}

func (d Disks) sysfs() string {
	if d.Sysfs == "" {
		return "/sys"
	}
	return d.Sysfs
}

// PartitionPath is the device path of partition n of dev: a p goes between a name that ends in a digit and the number (block/genhd.c, disk_name).
func PartitionPath(dev string, n int) string {
	if dev != "" && dev[len(dev)-1] >= '0' && dev[len(dev)-1] <= '9' {
		dev += "p"
	}
	return dev + strconv.Itoa(n)
}

// disk is what the algorithms of this package need of a block device; tests fake it.
type disk interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Size in bytes and sectorSize, the logical one (512 or 4096).
	Size() int64
	SectorSize() int
	// Discard and ZeroOut work on whole sectors. Discard gives errors.ErrUnsupported where the device cannot.
	Discard(off, n int64) error
	ZeroOut(off, n int64) error
	// Drop flushes and forgets what the kernel caches, so that the next read comes from the device.
	Drop() error
	Sync() error
}

// blockDevice is an opened kernel block device.
type blockDevice struct {
	*os.File
	size       int64
	sectorSize int
}

// openBlock opens dev for writing, and exclusively if asked: the kernel then refuses a disk that anything holds, a mounted partition included.
func (d Disks) openBlock(dev string, exclusive bool) (*blockDevice, error) {
	flags := os.O_RDWR
	if exclusive {
		flags |= unix.O_EXCL
	}
	f, err := os.OpenFile(dev, flags, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil, fmt.Errorf("open %s: %w%s", dev, ErrInUse, d.holders(dev))
	}
	if err != nil {
		return nil, err
	}
	b, err := newBlockDevice(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	return b, nil
}

func newBlockDevice(f *os.File) (*blockDevice, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Mode()&os.ModeDevice == 0 || info.Mode()&os.ModeCharDevice != 0 {
		return nil, errors.New("not a block device")
	}
	var size uint64
	if err := ioctlPointer(f, unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return nil, fmt.Errorf("read its size: %w", err)
	}
	sector, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
	if err != nil {
		return nil, fmt.Errorf("read its sector size: %w", err)
	}
	if size == 0 || sector < 512 || sector > 65536 {
		return nil, fmt.Errorf("it has %d bytes in sectors of %d", size, sector)
	}
	return &blockDevice{File: f, size: int64(size), sectorSize: sector}, nil
}

func (b *blockDevice) Size() int64     { return b.size }
func (b *blockDevice) SectorSize() int { return b.sectorSize }

func (b *blockDevice) Discard(off, n int64) error {
	err := b.ranged(unix.BLKDISCARD, off, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errors.ErrUnsupported
	}
	return err
}

func (b *blockDevice) ZeroOut(off, n int64) error { return b.ranged(unix.BLKZEROOUT, off, n) }

func (b *blockDevice) ranged(request uint, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	return ioctlPointer(b.File, request, unsafe.Pointer(&span))
}

func (b *blockDevice) Drop() error {
	if err := b.Sync(); err != nil {
		return err
	}
	return unix.IoctlSetInt(int(b.Fd()), unix.BLKFLSBUF, 0)
}

func ioctlPointer(f *os.File, request uint, argument unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(argument))
	runtime.KeepAlive(argument)
	if errno != 0 {
		return errno
	}
	return nil
}

// holders names for people what sits on the disk or its partitions; it is only a part of an error's text.
func (d Disks) holders(dev string) string {
	name := filepath.Base(dev)
	found, err := filepath.Glob(filepath.Join(d.sysfs(), "class/block", name+"*", "holders/*"))
	var names []string
	if err == nil {
		for _, path := range found {
			names = append(names, filepath.Base(path))
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mounts"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[0], dev) {
				names = append(names, fields[0]+" on "+fields[1])
			}
		}
	}
	if len(names) == 0 {
		return ""
	}
	slices.Sort(names)
	return " (" + strings.Join(slices.Compact(names), ", ") + ")"
}
