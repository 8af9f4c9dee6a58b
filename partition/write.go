package partition

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"golang.org/x/sys/unix"
)

// Table is a GUID partition table as it is written and read as a whole.
type Table struct {
	// GUID is the disk's, as RFC 4122 text in lower case.
	GUID    string
	Entries []Entry
}

// Entry is a partition of a Table. The GUIDs are RFC 4122 text in lower case, the bytes count from the disk's start and are multiples of its
// sectors.
type Entry struct {
	Number     int
	Label      string
	Type, GUID string
	Start      int64
	Size       int64
	Attributes uint64
}

// Limits of the tables that are written: 128 entries, names of 36 UTF-16 units (UEFI specification 2.10, section 5.3.3).
const (
	writtenEntries = 128
	labelUnits     = 36
)

// rereadTries bounds how often the kernel is asked to read a table while something, mostly a scanner that was woken by the writing, has a
// partition open.
const rereadTries = 8

// WriteTable replaces what dev has for a partition table, reads the new one back and makes the kernel show exactly its partitions. The primary
// header is written last. A disk that is in use is refused with ErrInUse.
func (d Disks) WriteTable(ctx context.Context, dev string, t Table) error {
	b, err := d.Open(dev, true)
	if err != nil {
		return fmt.Errorf("write partition table: %w", err)
	}
	defer b.Close()
	if err := writeTable(b, t); err != nil {
		return fmt.Errorf("write partition table of %s: %w", dev, err)
	}
	if err := b.Reread(ctx); err != nil {
		return fmt.Errorf("let the kernel read the partition table of %s: %w", dev, err)
	}
	for _, e := range t.Entries {
		path := PartitionPath(dev, e.Number)
		if d.kernelSays(path, "start") != e.Start || d.kernelSays(path, "size") != e.Size {
			return fmt.Errorf("the kernel does not show %s where the new partition table has it", path)
		}
	}
	return nil
}

// ReadTable reads the primary table of dev; the error wraps ErrTable when there is none or it is damaged.
func ReadTable(dev string) (Table, error) {
	f, err := os.Open(dev)
	if err != nil {
		return Table{}, err
	}
	defer f.Close()
	b, err := newBlock(f)
	if err != nil {
		return Table{}, fmt.Errorf("open %s: %w", dev, err)
	}
	t, err := wholeTable(b)
	if err != nil {
		return Table{}, fmt.Errorf("partition table of %s: %w", dev, err)
	}
	return t, nil
}

// Zero writes zeros over spans of a disk or partition, clamped to its size; a negative offset counts from its end. The device must not be in use.
func (d Disks) Zero(ctx context.Context, dev string, spans ...Span) error {
	b, err := d.Open(dev, true)
	if err != nil {
		return fmt.Errorf("zero: %w", err)
	}
	defer b.Close()
	for _, s := range spans {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("zero %s: %w", dev, err)
		}
		start := s.Start
		if start < 0 {
			start += b.size
		}
		sector := int64(b.sectorSize)
		start = max(start, 0) / sector * sector
		end := min(start+s.Size, b.size) / sector * sector
		if end <= start {
			continue
		}
		if err := b.ZeroOut(start, end-start); err != nil {
			return fmt.Errorf("zero %d bytes at %d of %s: %w", end-start, start, dev, err)
		}
	}
	if err := b.Drop(); err != nil {
		return fmt.Errorf("flush %s: %w", dev, err)
	}
	return nil
}

// Span is a stretch of a device in bytes.
type Span struct{ Start, Size int64 }

func writeTable(d disk, t Table) error {
	written, err := t.forDisk(d)
	if err != nil {
		return err
	}
	if _, err := d.WriteAt(protectiveMBR(d), 0); err != nil {
		return fmt.Errorf("write protective MBR: %w", err)
	}
	if err := written.Write(checkedDisk{disk: d}, d.Size()); err != nil {
		return err
	}
	if err := d.Drop(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	back, err := wholeTable(d)
	if err != nil {
		return fmt.Errorf("read it back: %w", err)
	}
	if back.GUID != t.GUID || !slices.Equal(back.Entries, t.Entries) {
		return errors.New("the disk gives back another table than was written")
	}
	if err := written.Verify(checkedDisk{disk: d}, uint64(d.Size())); err != nil {
		return fmt.Errorf("read back the backup table: %w", err)
	}
	return nil
}

// protectiveMBR is the disk's first sector (UEFI specification 2.10, section 5.2.3), without the boot loader that may have been in it. go-diskfs
// writes none of the addresses by cylinder, and the size of a disk of more than 2^32 sectors without its upper half.
func protectiveMBR(d disk) []byte {
	mbr := make([]byte, d.SectorSize())
	entry := mbr[446:462]
	copy(entry, []byte{0, 0x00, 0x02, 0x00, 0xee, 0xff, 0xff, 0xff})
	binary.LittleEndian.PutUint32(entry[8:], 1)
	binary.LittleEndian.PutUint32(entry[12:], uint32(min(d.Size()/int64(d.SectorSize())-1, 0xffffffff)))
	mbr[510], mbr[511] = 0x55, 0xaa
	return mbr
}

// forDisk checks what go-diskfs does not and gives the table in its form.
func (t Table) forDisk(d disk) (*gpt.Table, error) {
	sector := int64(d.SectorSize())
	array := int64(writtenEntries * plainEntryBytes)
	first, end := 2*sector+array, d.Size()/sector*sector-sector-array
	sorted := slices.Clone(t.Entries)
	slices.SortFunc(sorted, func(a, b Entry) int { return int(min(max(a.Start-b.Start, -1), 1)) })
	for i, e := range sorted {
		switch {
		case e.Number < 1 || e.Number > writtenEntries:
			return nil, fmt.Errorf("there is no partition number %d", e.Number)
		case len(utf16.Encode([]rune(e.Label))) > labelUnits || strings.ContainsRune(e.Label, 0):
			return nil, fmt.Errorf("label %q of partition %d is not at most %d UTF-16 units without zeros", e.Label, e.Number, labelUnits)
		case e.Start%sector != 0 || e.Size%sector != 0 || e.Size <= 0:
			return nil, fmt.Errorf("partition %d (%d bytes at %d) is not whole sectors of %d bytes", e.Number, e.Size, e.Start, sector)
		case e.Start < first || e.Start > end-e.Size:
			return nil, fmt.Errorf("partition %d (%d bytes at %d) lies outside of bytes %d to %d", e.Number, e.Size, e.Start, first, end)
		case i > 0 && e.Start < sorted[i-1].Start+sorted[i-1].Size:
			return nil, fmt.Errorf("partitions %d and %d overlap", sorted[i-1].Number, e.Number)
		}
	}
	table := &gpt.Table{LogicalSectorSize: int(sector), PhysicalSectorSize: int(sector), GUID: t.GUID}
	for _, e := range t.Entries {
		table.Partitions = append(table.Partitions, &gpt.Partition{
			Index: e.Number, Start: uint64(e.Start / sector), End: uint64((e.Start+e.Size)/sector - 1), Size: uint64(e.Size),
			Type: gpt.Type(strings.ToUpper(e.Type)), GUID: e.GUID, Name: e.Label, Attributes: e.Attributes,
		})
	}
	return table, nil
}

func wholeTable(d disk) (Table, error) {
	read, err := readTable(d, d.Size(), d.SectorSize())
	if err != nil {
		return Table{}, err
	}
	t := Table{GUID: guidText(read.header[56:72])}
	for n := 1; n <= read.count(); n++ {
		if entry := read.entry(n); entry != nil {
			sector := int64(d.SectorSize())
			t.Entries = append(t.Entries, Entry{
				Number: n, Label: entryLabel(entry), Type: guidText(entry[:16]), GUID: guidText(entry[16:32]),
				Start: int64(read.first(entry)) * sector, Size: int64(read.last(entry)-read.first(entry)+1) * sector,
				Attributes: entryAttributes(entry),
			})
		}
	}
	return t, nil
}

// entryLabel ends at the first zero (UEFI specification 2.10, table 5-6).
func entryLabel(entry []byte) string {
	var units []uint16
	for i := 56; i < minEntryBytes; i += 2 {
		unit := binary.LittleEndian.Uint16(entry[i:])
		if unit == 0 {
			break
		}
		units = append(units, unit)
	}
	return string(utf16.Decode(units))
}

func entryAttributes(entry []byte) uint64 { return binary.LittleEndian.Uint64(entry[48:]) }

// Flush writes back what the kernel caches of a device and forgets it.
func (d Disks) Flush(dev string) error {
	b, err := d.Open(dev, false)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.Drop(); err != nil {
		return fmt.Errorf("flush %s: %w", dev, err)
	}
	return nil
}

// Reread has the kernel drop all partitions of the disk and read the table again; it fails with EBUSY while one of them is in use. A device that
// cannot have partitions (a loop device without partscan) has none to forget.
func (b *Block) Reread(ctx context.Context) error {
	pause := 20 * time.Millisecond
	for try := 1; ; try++ {
		err := unix.IoctlSetInt(int(b.Fd()), unix.BLKRRPART, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil
		}
		if err == nil || !errors.Is(err, unix.EBUSY) || try == rereadTries {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
			pause *= 2
		}
	}
}
