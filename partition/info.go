package partition

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
)

// Info is where a partition lies and what it is called in its table.
type Info struct {
	Number int `json:"number"`
	// FirstLBA and Sectors count logical sectors of SectorSize bytes.
	FirstLBA   uint64 `json:"first_lba"`
	Sectors    uint64 `json:"sectors"`
	SectorSize int    `json:"sector_size"`
	// GUID is the unique partition GUID and Type the partition type GUID, as RFC 4122 text in lower case.
	GUID string `json:"guid"`
	Type string `json:"type"`
}

// PartitionInfo reads entry n (from 1) of the disk's GUID partition table. The error wraps ErrTable when the table is damaged.
func PartitionInfo(dev string, n int) (Info, error) {
	f, err := os.Open(dev)
	if err != nil {
		return Info{}, err
	}
	defer f.Close()
	b, err := newBlock(f)
	if err != nil {
		return Info{}, fmt.Errorf("open %s: %w", dev, err)
	}
	return partitionInfo(b, n)
}

func partitionInfo(d disk, n int) (Info, error) {
	t, err := readTable(d, d.Size(), d.SectorSize())
	if err != nil {
		return Info{}, err
	}
	entry := t.entry(n)
	if entry == nil {
		return Info{}, fmt.Errorf("there is no partition %d", n)
	}
	return Info{
		Number: n, FirstLBA: t.first(entry), Sectors: t.last(entry) - t.first(entry) + 1, SectorSize: d.SectorSize(),
		GUID: guidText(entry[16:32]), Type: guidText(entry[:16]),
	}, nil
}

// guidText writes a GUID's mixed-endian bytes as text (UEFI specification, appendix A).
func guidText(b []byte) string {
	return strings.Join([]string{
		fmt.Sprintf("%08x", binary.LittleEndian.Uint32(b)), fmt.Sprintf("%04x", binary.LittleEndian.Uint16(b[4:])),
		fmt.Sprintf("%04x", binary.LittleEndian.Uint16(b[6:])), hex.EncodeToString(b[8:10]), hex.EncodeToString(b[10:16]),
	}, "-")
}
