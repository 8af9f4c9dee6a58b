package wipe

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"bloomery/partition"
)

// directDisk is a kernel block device that is read and written past the page cache.
type directDisk struct {
	*partition.Block
	direct *os.File
	// buffer is page-aligned, as O_DIRECT asks for.
	buffer []byte
}

// openDirect opens dev exclusively: a disk that anything holds is refused with partition.ErrInUse.
func openDirect(disks partition.Disks, dev string) (*directDisk, error) {
	b, err := disks.Open(dev, true)
	if err != nil {
		return nil, err
	}
	direct, err := os.OpenFile(dev, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open %s past the page cache: %w", dev, err), b.Close())
	}
	buffer, err := unix.Mmap(-1, 0, writeChunk, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("get memory for %s: %w", dev, err), direct.Close(), b.Close())
	}
	return &directDisk{Block: b, direct: direct, buffer: buffer}, nil
}

func (d *directDisk) Close() error {
	return errors.Join(unix.Munmap(d.buffer), d.direct.Close(), d.Block.Close())
}

// ReadAt implements io.ReaderAt for any offset and length: whole sectors are read around them.
func (d *directDisk) ReadAt(p []byte, off int64) (int, error) {
	sector := int64(d.SectorSize())
	if off < 0 || off+int64(len(p)) > d.Size() {
		return 0, io.EOF
	}
	for done := 0; done < len(p); {
		at := off + int64(done)
		start := at / sector * sector
		n := min((at+int64(len(p)-done)+sector-1)/sector*sector-start, int64(len(d.buffer)))
		if _, err := io.ReadFull(io.NewSectionReader(d.direct, start, n), d.buffer[:n]); err != nil {
			return done, err
		}
		done += copy(p[done:], d.buffer[at-start:n])
	}
	return len(p), nil
}

// WriteAt implements io.WriterAt for whole sectors.
func (d *directDisk) WriteAt(p []byte, off int64) (int, error) {
	if sector := int64(d.SectorSize()); off%sector != 0 || int64(len(p))%sector != 0 {
		return 0, fmt.Errorf("write %d bytes at %d: no whole sectors of %d", len(p), off, sector)
	}
	for done := 0; done < len(p); {
		n := copy(d.buffer, p[done:])
		if _, err := d.direct.WriteAt(d.buffer[:n], off+int64(done)); err != nil {
			return done, err
		}
		done += n
	}
	return len(p), nil
}
