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
	// Drop flushes and forgets what the kernel caches, so that the next read comes from the device.
	Drop() error
	Sync() error
}

// Block is an opened kernel block device.
type Block struct {
	*os.File
	size       int64
	sectorSize int
}

// Open opens dev for writing, and exclusively if asked: the kernel then refuses a disk that anything holds, a mounted partition included.
func (d Disks) Open(dev string, exclusive bool) (*Block, error) {
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
	b, err := newBlock(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", dev, err)
	}
	return b, nil
}

func newBlock(f *os.File) (*Block, error) {
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
	return &Block{File: f, size: int64(size), sectorSize: sector}, nil
}

// Size is in bytes.
func (b *Block) Size() int64 { return b.size }

// SectorSize is the logical one.
func (b *Block) SectorSize() int { return b.sectorSize }

// Discard tells the device that whole sectors are not needed any more; errors.ErrUnsupported where it cannot be told.
func (b *Block) Discard(off, n int64) error { return b.ranged(unix.BLKDISCARD, off, n) }

// SecureDiscard discards whole sectors and every copy that the device kept of them, as eMMC does (JESD84-B51, 6.6.10); errors.ErrUnsupported elsewhere.
func (b *Block) SecureDiscard(off, n int64) error { return b.ranged(unix.BLKSECDISCARD, off, n) }

// ZeroOut makes whole sectors read as zeros, by a command of the device where it has one. They stay allocated.
func (b *Block) ZeroOut(off, n int64) error { return b.ranged(unix.BLKZEROOUT, off, n) }

func (b *Block) ranged(request uint, off, n int64) error {
	span := [2]uint64{uint64(off), uint64(n)}
	err := ioctlPointer(b.File, request, unsafe.Pointer(&span))
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errors.ErrUnsupported
	}
	return err
}

// Drop flushes and forgets what the kernel caches, so that the next read comes from the device.
func (b *Block) Drop() error {
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
