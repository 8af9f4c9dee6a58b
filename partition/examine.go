package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
)

// Types of partitions (UEFI specification 2.10, table 5-7; the Discoverable Partitions Specification).
const (
	typeESP       = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	typeRootAMD64 = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
	typeRootARM64 = "b921b045-1df0-41c3-af44-4c6f280d3fae"
)

// Found is a partition of a disk that was examined.
type Found struct {
	Number int
	// Type and GUID are RFC 4122 text in lower case.
	Type, GUID string
	SizeBytes  int64
	// Filesystem is ext4, xfs or btrfs; empty for any other and for none.
	Filesystem string
}

// ESP says that it is an EFI system partition.
func (f Found) ESP() bool { return f.Type == typeESP }

// Root says that its type is that of a root filesystem.
func (f Found) Root() bool { return f.Type == typeRootAMD64 || f.Type == typeRootARM64 }

// Examine reads a disk's GUID partition table and what filesystem begins in each partition. The error wraps ErrTable when there is no sound
// table.
func Examine(r io.ReaderAt, size int64, sectorSize int) ([]Found, error) {
	t, err := readTable(r, size, sectorSize)
	if err != nil {
		return nil, err
	}
	var all []Found
	for n := 1; n <= t.count(); n++ {
		entry := t.entry(n)
		if entry == nil {
			continue
		}
		first, last := int64(t.first(entry)), int64(t.last(entry))
		f := Found{Number: n, Type: guidText(entry[:16]), GUID: guidText(entry[16:32]), SizeBytes: (last - first + 1) * int64(sectorSize)}
		if f.SizeBytes >= superblocks {
			f.Filesystem, err = filesystemAt(r, first*int64(sectorSize))
			if err != nil && !errors.Is(err, errNoFilesystem) {
				return nil, err
			}
		}
		all = append(all, f)
	}
	return all, nil
}

// superblocks is where the first superblock of each filesystem has ended: btrfs's begins at 64 KiB.
const superblocks = 64<<10 + 4096

var errNoFilesystem = errors.New("no ext4, xfs or btrfs filesystem is on it")

// filesystemAt names the filesystem that begins at an offset.
func filesystemAt(r io.ReaderAt, offset int64) (string, error) {
	head := make([]byte, superblocks)
	if err := readFull(r, head, offset); err != nil {
		return "", err
	}
	switch {
	case binary.LittleEndian.Uint16(head[1024+56:]) == 0xef53:
		return "ext4", nil
	case bytes.HasPrefix(head, []byte("XFSB")):
		return "xfs", nil
	case string(head[0x10040:0x10048]) == "_BHRfS_M":
		return "btrfs", nil
	}
	return "", errNoFilesystem
}
