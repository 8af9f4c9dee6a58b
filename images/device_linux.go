package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// zeroStep bounds one zeroing request, so that a cancelled write stops soon on a slow disk.
const zeroStep = 64 << 20

// Disk is a block device or a file that stands for one.
type Disk struct {
	// direct is nil where O_DIRECT cannot be had.
	direct   *os.File
	buffered *os.File
	size     int64
	sector   int
	isBlock  bool
}

// OpenDisk opens a block device, exclusively (a mounted one is busy), or a regular file of the disk's size.
func OpenDisk(path string) (*Disk, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening disk: %w", err)
	}
	d := &Disk{isBlock: info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0}
	if !d.isBlock && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("opening disk %s: neither a block device nor a file", path)
	}
	flags := os.O_RDWR
	if d.isBlock {
		flags |= unix.O_EXCL // block devices only: busy when something has claimed it (open(2))
	}
	if d.buffered, err = os.OpenFile(path, flags, 0); err != nil {
		return nil, fmt.Errorf("opening disk: %w", err)
	}
	if err := d.measure(info); err != nil {
		return nil, errors.Join(fmt.Errorf("opening disk %s: %w", path, err), d.buffered.Close())
	}
	if d.direct, err = os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		d.direct = nil // tmpfs and some file systems have no O_DIRECT
	}
	return d, nil
}

func (d *Disk) measure(info os.FileInfo) error {
	d.size, d.sector = info.Size(), SectorSize
	if !d.isBlock {
		return nil
	}
	var err error
	if d.size, err = d.buffered.Seek(0, io.SeekEnd); err != nil {
		return fmt.Errorf("reading its size: %w", err)
	}
	if d.sector, err = unix.IoctlGetInt(int(d.buffered.Fd()), unix.BLKSSZGET); err != nil {
		return fmt.Errorf("reading its sector size: %w", err)
	}
	return nil
}

// Size implements Device.
func (d *Disk) Size() int64 { return d.size }

// SectorSize implements Device.
func (d *Disk) SectorSize() int { return d.sector }

// aligned says whether O_DIRECT takes a transfer on every device.
func aligned(p []byte, offset int64) bool {
	return len(p) > 0 && uintptr(unsafe.Pointer(&p[0]))%directAlignment == 0 && len(p)%directAlignment == 0 && offset%directAlignment == 0
}

// ReadAt implements Device.
func (d *Disk) ReadAt(p []byte, offset int64) (int, error) {
	if d.direct != nil && aligned(p, offset) {
		n, err := d.direct.ReadAt(p, offset)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
	}
	// Dropped from the cache first, else it is memory that is compared. Only a hint: its failure changes no result.
	_ = unix.Fadvise(int(d.buffered.Fd()), offset, int64(len(p)), unix.FADV_DONTNEED)
	return d.buffered.ReadAt(p, offset)
}

// WriteAt implements Device.
func (d *Disk) WriteAt(p []byte, offset int64) (int, error) {
	if d.direct != nil && aligned(p, offset) {
		n, err := d.direct.WriteAt(p, offset)
		if !errors.Is(err, unix.EINVAL) {
			return n, err
		}
	}
	return d.buffered.WriteAt(p, offset)
}

// Zero implements Device. It punches a hole, which on a block device is a discard where the kernel knows that the device returns zeros for what it
// discarded (NVMe write zeroes with deallocate, SCSI write same with unmap; block/fops.c, blkdev_fallocate); else by BLKZEROOUT, which a
// device does by itself where it can and the kernel with pages of zeros else; and by plain writes where neither works. BLKDISCARD is not
// used, because what it leaves to be read is up to the device.
func (d *Disk) Zero(ctx context.Context, offset, length int64) error {
	for length > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(length, zeroStep)
		if err := d.zero(offset, n); err != nil {
			return fmt.Errorf("zeroing %d bytes at %d: %w", n, offset, err)
		}
		offset += n
		length -= n
	}
	return nil
}

func (d *Disk) zero(offset, length int64) error {
	err := unix.Fallocate(int(d.buffered.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length)
	if d.isBlock && cannot(err) {
		err = nil
		span := [2]uint64{uint64(offset), uint64(length)}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.buffered.Fd(), unix.BLKZEROOUT, uintptr(unsafe.Pointer(&span))); errno != 0 {
			err = errno
		}
	}
	if !cannot(err) {
		return err
	}
	zeros := alignedBuffer(int(min(length, 1<<20)))
	for length > 0 {
		n := min(length, int64(len(zeros)))
		if _, err := d.WriteAt(zeros[:n], offset); err != nil {
			return err
		}
		offset += n
		length -= n
	}
	return nil
}

// cannot says whether a device or its kernel lacks what was asked for, which is no fault of the medium.
func cannot(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)
}

// Sync implements Device.
func (d *Disk) Sync() error { return unix.Fdatasync(int(d.buffered.Fd())) }

// RereadPartitions makes the kernel read the partition table again; nothing to do on a file.
func (d *Disk) RereadPartitions() error {
	if !d.isBlock {
		return nil
	}
	if _, err := unix.IoctlRetInt(int(d.buffered.Fd()), unix.BLKRRPART); err != nil {
		return fmt.Errorf("reading the partition table again: %w", err)
	}
	return nil
}

// Close closes the disk. It does not sync.
func (d *Disk) Close() error {
	err := d.buffered.Close()
	if d.direct != nil {
		err = errors.Join(err, d.direct.Close())
	}
	return err
}
