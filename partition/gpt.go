package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// ErrTable is wrapped when a disk carries no GUID partition table or a damaged one.
var ErrTable = errors.New("no sound GUID partition table")

// Limits of what is believed of a disk's table. The UEFI specification asks for at least 128 entries of 128 bytes; nobody uses more than 1024.
const (
	headerBytes   = 92
	minEntryBytes = 128
	maxEntryBytes = 4096
	maxEntries    = 1024
	mebibyte      = 1 << 20
)

// table is a GUID partition table (UEFI specification 2.10, section 5.3) as it was read and found sound. Changes go through go-diskfs, which
// neither bounds what it reads nor looks whether partitions overlap: it gets only bytes that were checked here.
type table struct {
	sectorSize int
	header     []byte // one sector
	entries    []byte
}

func (t *table) u32(off int) uint32        { return binary.LittleEndian.Uint32(t.header[off:]) }
func (t *table) u64(off int) uint64        { return binary.LittleEndian.Uint64(t.header[off:]) }
func (t *table) alternate() uint64         { return t.u64(32) }
func (t *table) firstUsable() uint64       { return t.u64(40) }
func (t *table) lastUsable() uint64        { return t.u64(48) }
func (t *table) entryBytes() int           { return int(t.u32(84)) }
func (t *table) entrySectors() uint64      { return sectors(len(t.entries), t.sectorSize) }
func (t *table) first(entry []byte) uint64 { return binary.LittleEndian.Uint64(entry[32:]) }
func (t *table) last(entry []byte) uint64  { return binary.LittleEndian.Uint64(entry[40:]) }
func sectors(bytes int, size int) uint64   { return uint64((bytes + size - 1) / size) }
func tableError(format string, a ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrTable}, a...)...)
}

// entry is the bytes of partition n (from 1), or nil if there is none.
func (t *table) entry(n int) []byte {
	size := t.entryBytes()
	if n < 1 || n > len(t.entries)/size {
		return nil
	}
	entry := t.entries[(n-1)*size : n*size]
	if bytes.Equal(entry[:16], make([]byte, 16)) {
		return nil
	}
	return entry
}

func (t *table) count() int { return len(t.entries) / t.entryBytes() }

// readTable reads the primary table and checks all that the specification says about it.
func readTable(r io.ReaderAt, size int64, sectorSize int) (*table, error) {
	if sectorSize < 512 || sectorSize > 65536 || size < int64(sectorSize)*6 {
		return nil, tableError("disk of %d bytes in sectors of %d", size, sectorSize)
	}
	diskSectors := uint64(size) / uint64(sectorSize)
	t := &table{sectorSize: sectorSize, header: make([]byte, sectorSize)}
	if err := readFull(r, t.header, int64(sectorSize)); err != nil {
		return nil, fmt.Errorf("read partition table: %w", err)
	}
	if err := t.checkHeader(diskSectors); err != nil {
		return nil, err
	}
	t.entries = make([]byte, int(t.u32(80))*t.entryBytes())
	if err := readFull(r, t.entries, int64(t.u64(72))*int64(sectorSize)); err != nil {
		return nil, fmt.Errorf("read partition entries: %w", err)
	}
	if got, want := crc32.ChecksumIEEE(t.entries), t.u32(88); got != want {
		return nil, tableError("checksum of the entries is %08x, header says %08x", got, want)
	}
	return t, t.checkEntries()
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%d bytes at %d: %w", len(p), off, err)
}

func (t *table) checkHeader(diskSectors uint64) error {
	if string(t.header[:8]) != "EFI PART" {
		return tableError("no signature in sector 1")
	}
	size := t.u32(12)
	if size < headerBytes || size > uint32(len(t.header)) {
		return tableError("header of %d bytes", size)
	}
	if got, want := t.headerSum(), t.u32(16); got != want {
		return tableError("checksum of the header is %08x, it says %08x", got, want)
	}
	count, entry := t.u32(80), t.u32(84)
	if entry < minEntryBytes || entry > maxEntryBytes || entry%8 != 0 || count == 0 || count > maxEntries {
		return tableError("%d entries of %d bytes", count, entry)
	}
	if t.u64(24) != 1 {
		return tableError("header in sector 1 says it is in sector %d", t.u64(24))
	}
	if t.alternate() >= diskSectors {
		return tableError("it is for a disk of %d sectors, this one has %d", t.alternate()+1, diskSectors)
	}
	array := sectors(int(count)*int(entry), t.sectorSize)
	if start := t.u64(72); start < 2 || start > diskSectors || start+array > t.firstUsable() {
		return tableError("entries at sector %d overlap the usable sectors from %d", start, t.firstUsable())
	}
	if t.firstUsable() > t.lastUsable() || t.lastUsable() >= t.alternate() {
		return tableError("usable sectors %d..%d, backup at %d", t.firstUsable(), t.lastUsable(), t.alternate())
	}
	return nil
}

func (t *table) headerSum() uint32 {
	covered := slices.Clone(t.header[:t.u32(12)])
	clear(covered[16:20])
	return crc32.ChecksumIEEE(covered)
}

func (t *table) checkEntries() error {
	type span struct {
		n           int
		first, last uint64
	}
	var spans []span
	for n := 1; n <= t.count(); n++ {
		entry := t.entry(n)
		if entry == nil {
			continue
		}
		s := span{n, t.first(entry), t.last(entry)}
		if s.first > s.last || s.first < t.firstUsable() || s.last > t.lastUsable() {
			return tableError("partition %d (sectors %d..%d) lies outside of %d..%d", n, s.first, s.last, t.firstUsable(), t.lastUsable())
		}
		spans = append(spans, s)
	}
	slices.SortFunc(spans, func(a, b span) int {
		if a.first < b.first {
			return -1
		}
		return 1
	})
	for i := 1; i < len(spans); i++ {
		if spans[i].first <= spans[i-1].last {
			return tableError("partitions %d and %d overlap", spans[i-1].n, spans[i].n)
		}
	}
	return nil
}
