package partition

import (
	"encoding/binary"
	"io"
)

// Spans tells where a disk's partitions lie by its GUID table and its MBR's four entries, as far as they can be read and lie on the disk.
func Spans(r io.ReaderAt, size int64, sectorSize int) []Span {
	sector := int64(sectorSize)
	var spans []Span
	add := func(first, last uint64) {
		if last >= first && last < uint64(size/sector) {
			spans = append(spans, Span{int64(first) * sector, int64(last-first+1) * sector})
		}
	}
	if t, err := readTable(r, size, sectorSize); err == nil {
		for n := 1; n <= t.count(); n++ {
			if entry := t.entry(n); entry != nil {
				add(t.first(entry), t.last(entry))
			}
		}
	}
	mbr := make([]byte, sectorSize)
	if err := readFull(r, mbr, 0); err == nil && mbr[510] == 0x55 && mbr[511] == 0xaa {
		for i := range 4 {
			entry := mbr[446+16*i:]
			first, count := uint64(binary.LittleEndian.Uint32(entry[8:])), uint64(binary.LittleEndian.Uint32(entry[12:]))
			if entry[4] != 0 && entry[4] != 0xee && count > 0 {
				add(first, first+count-1)
			}
		}
	}
	return spans
}
