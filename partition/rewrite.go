package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"unicode/utf16"

	"github.com/diskfs/go-diskfs/partition/gpt"
)

// The header that go-diskfs writes (UEFI specification, section 5.3.2): revision 1.0, 92 bytes, entries of 128 bytes from sector 2.
const (
	plainEntryBytes = gpt.PartitionEntrySize
	plainEntryStart = 2
)

// ErrNotLast is wrapped when another partition lies behind the one that is to grow.
var ErrNotLast = errors.New("the partition is not the last one on the disk")

// grownEnd is the last sector of partition n if it reaches to the end of a disk of diskSectors in whole MiB; never before the present one.
func (t *table) grownEnd(n int, diskSectors uint64) (uint64, error) {
	entry := t.entry(n)
	if entry == nil {
		return 0, fmt.Errorf("there is no partition %d", n)
	}
	for other := 1; other <= t.count(); other++ {
		if e := t.entry(other); e != nil && t.first(e) > t.first(entry) {
			return 0, fmt.Errorf("%w: partition %d lies behind partition %d", ErrNotLast, other, n)
		}
	}
	lastUsable := diskSectors - 2 - t.entrySectors()
	unit := uint64(mebibyte / t.sectorSize)
	end := max((lastUsable+1)/unit*unit-1, t.last(entry))
	if end > lastUsable {
		return 0, fmt.Errorf("partition %d ends in sector %d, the last usable one is %d", n, end, lastUsable)
	}
	return end, nil
}

// checkPlain refuses what go-diskfs v1.9.4 would lose without a word: it puts the entries in sector 2 wherever they were, rounds the backup's
// sectors down so that it overlaps the header, keeps a name only up to its first zero and only if it is valid UTF-16, and leaves the header's
// rest zero. No partitioning tool writes such tables unasked.
func (t *table) checkPlain() error {
	switch {
	case t.u64(72) != plainEntryStart:
		return tableError("its entries begin in sector %d, only those in sector %d can be rewritten", t.u64(72), plainEntryStart)
	case t.entryBytes() != plainEntryBytes || len(t.entries)%t.sectorSize != 0:
		return tableError("%d entries of %d bytes cannot be rewritten", t.count(), t.entryBytes())
	case t.u32(12) != headerBytes || !zero(t.header[headerBytes:]):
		return tableError("its header has more than %d bytes", headerBytes)
	}
	for n := 1; n <= t.count(); n++ {
		if entry := t.entry(n); entry != nil && !plainName(entry[56:plainEntryBytes]) {
			return tableError("the name of partition %d is not UTF-16 that ends with zeros", n)
		}
	}
	return nil
}

func plainName(raw []byte) bool {
	var units []uint16
	for i := 0; i < len(raw); i += 2 {
		unit := binary.LittleEndian.Uint16(raw[i:])
		if unit == 0 {
			if !zero(raw[i:]) {
				return false
			}
			break
		}
		units = append(units, unit)
	}
	for i, unit := range utf16.Encode(utf16.Decode(units)) {
		if unit != units[i] {
			return false
		}
	}
	return true
}

func zero(p []byte) bool { return len(bytes.Trim(p, "\x00")) == 0 }

// grow makes partition n of the disk end in sector end and moves the backup to the disk's end.
func (t *table) grow(d disk, n int, end uint64) error {
	return t.rewrite(d, func(changed *gpt.Table) {
		for _, p := range changed.Partitions {
			if p.Index == n {
				p.Expand(end - p.End)
			}
		}
	})
}

// rewrite writes the table with a change, its backup at the disk's end, and reads the backup back.
func (t *table) rewrite(d disk, change func(*gpt.Table)) error {
	if err := t.checkPlain(); err != nil {
		return err
	}
	f := checkedDisk{disk: d, table: t}
	changed, err := gpt.Read(f, t.sectorSize, t.sectorSize)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTable, err)
	}
	changed.Resize(uint64(d.Size()))
	change(changed)
	// fitProtectiveMBR does this: go-diskfs writes the size of a disk of more than 2^32 sectors without its upper half.
	changed.ProtectiveMBR = false
	if err := changed.Write(f, d.Size()); err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	if err := d.Drop(); err != nil {
		return fmt.Errorf("flush partition table: %w", err)
	}
	if err := changed.Verify(f, uint64(d.Size())); err != nil {
		return fmt.Errorf("read back the backup partition table: %w", err)
	}
	return nil
}

// checkedDisk is a disk as go-diskfs wants to see it. Of the primary table it gives the bytes that were checked, whatever the disk would say if
// it were asked again.
type checkedDisk struct {
	disk
	table *table // nil for a new table, of which nothing was checked before
}

// ReadAt implements io.ReaderAt for the whole sectors that gpt.Read and gpt.Verify ask for.
func (c checkedDisk) ReadAt(p []byte, off int64) (int, error) {
	if c.table == nil {
		return c.disk.ReadAt(p, off)
	}
	sector := int64(c.table.sectorSize)
	switch {
	case off == 0 && int64(len(p)) == 2*sector:
		clear(p[:sector])
		return int(sector) + copy(p[sector:], c.table.header), nil
	case off == plainEntryStart*sector && len(p) == len(c.table.entries):
		return copy(p, c.table.entries), nil
	}
	return c.disk.ReadAt(p, off)
}

// The rest of an fs.File and an io.Seeker is there because the interface asks for it: gpt looks for the disk's end only when a primary table is
// unsound, which was ruled out.
func (checkedDisk) Stat() (fs.FileInfo, error)     { return nil, errors.ErrUnsupported }
func (checkedDisk) Read([]byte) (int, error)       { return 0, errors.ErrUnsupported }
func (checkedDisk) Seek(int64, int) (int64, error) { return 0, errors.ErrUnsupported }
func (checkedDisk) Close() error                   { return nil }
