package partition

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"bloomery/internal/run"
)

// GrowResult says what GrowLast did.
type GrowResult struct {
	Filesystem string `json:"filesystem"`
	// BytesBefore and BytesAfter are the partition's size.
	BytesBefore int64 `json:"bytes_before"`
	BytesAfter  int64 `json:"bytes_after"`
}

// GrowLast gives the rest of the disk to partition n and to the filesystem in it (ext4, xfs, btrfs): the backup table moves to the disk's
// end, the partition's end to the last whole MiB. It refuses a damaged table (ErrTable) and a partition that is not the last one, before
// anything is written. Doing it again changes nothing.
//
// The filesystem is grown while it is mounted: the kernel then needs no full check before, which costs far more than the growth itself.
func (d Disks) GrowLast(ctx context.Context, dev string, n int) (GrowResult, error) {
	result, err := d.growPartition(dev, n)
	if err != nil {
		return result, fmt.Errorf("grow partition %d of %s: %w", n, dev, err)
	}
	path := PartitionPath(dev, n)
	if result.Filesystem, err = filesystemOf(path); err != nil {
		return result, fmt.Errorf("grow the filesystem on %s: %w", path, err)
	}
	if err := d.growFilesystem(ctx, path, result.Filesystem); err != nil {
		return result, fmt.Errorf("grow the %s filesystem on %s: %w", result.Filesystem, path, err)
	}
	return result, nil
}

func (d Disks) growPartition(dev string, n int) (GrowResult, error) {
	b, err := d.Open(dev, false)
	if err != nil {
		return GrowResult{}, err
	}
	defer b.Close()
	result, info, err := growTable(b, n)
	if err != nil {
		return result, err
	}
	return result, showPartition(b, PartitionPath(dev, n), n, int64(info.FirstLBA)*int64(info.SectorSize), result.BytesAfter)
}

func growTable(d disk, n int) (GrowResult, Info, error) {
	old, err := readTable(d, d.Size(), d.SectorSize())
	if err != nil {
		return GrowResult{}, Info{}, err
	}
	before, err := partitionInfo(d, n)
	if err != nil {
		return GrowResult{}, Info{}, err
	}
	diskSectors := uint64(d.Size()) / uint64(d.SectorSize())
	end, err := old.grownEnd(n, diskSectors)
	if err != nil {
		return GrowResult{}, Info{}, err
	}
	if end != old.last(old.entry(n)) || old.alternate() != diskSectors-1 {
		if err := old.grow(d, n, end); err != nil {
			return GrowResult{}, Info{}, err
		}
	}
	// Also after a table that was right already: an earlier growth may have ended before it came to this.
	if err := fitProtectiveMBR(d); err != nil {
		return GrowResult{}, Info{}, err
	}
	after, err := partitionInfo(d, n)
	if err != nil {
		return GrowResult{}, Info{}, fmt.Errorf("read the new table back: %w", err)
	}
	sector := int64(d.SectorSize())
	return GrowResult{BytesBefore: int64(before.Sectors) * sector, BytesAfter: int64(after.Sectors) * sector}, after, nil
}

// maxCHS is how many sectors cylinder, head and sector can count.
const maxCHS = 1024 * 255 * 63

// fitProtectiveMBR makes the entry of type 0xEE that starts in sector 1 span the disk (UEFI specification, section 5.2.3); others stand.
func fitProtectiveMBR(d disk) error {
	mbr := make([]byte, d.SectorSize())
	if err := readFull(d, mbr, 0); err != nil {
		return fmt.Errorf("read protective MBR: %w", err)
	}
	if mbr[510] != 0x55 || mbr[511] != 0xaa {
		return nil
	}
	for i := range 4 {
		entry := mbr[446+16*i : 462+16*i]
		if entry[4] != 0xee || binary.LittleEndian.Uint32(entry[8:]) != 1 {
			continue
		}
		span := uint32(min(uint64(d.Size())/uint64(d.SectorSize())-1, 0xffffffff))
		if binary.LittleEndian.Uint32(entry[12:]) == span {
			return nil
		}
		binary.LittleEndian.PutUint32(entry[12:], span)
		if span >= maxCHS {
			copy(entry[5:8], []byte{0xff, 0xff, 0xff})
		}
		if _, err := d.WriteAt(mbr, 0); err != nil {
			return fmt.Errorf("write protective MBR: %w", err)
		}
		return d.Sync()
	}
	return nil
}

// showPartition makes the kernel's view of one partition the table's, also while the partition is in use.
func showPartition(b *Block, path string, n int, start, length int64) error {
	rereadErr := unix.IoctlSetInt(int(b.Fd()), unix.BLKRRPART, 0)
	if rereadErr != nil {
		partition := unix.BlkpgPartition{Start: start, Length: length, Pno: int32(n)}
		argument := unix.BlkpgIoctlArg{Op: unix.BLKPG_RESIZE_PARTITION, Datalen: int32(unsafe.Sizeof(partition)), Data: (*byte)(unsafe.Pointer(&partition))}
		if err := ioctlPointer(b.File, unix.BLKPG, unsafe.Pointer(&argument)); err != nil {
			return fmt.Errorf("tell the kernel of the partition's size: %w", errors.Join(rereadErr, err))
		}
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("the kernel does not show the partition: %w", err)
	}
	return nil
}

// filesystemOf tells the kinds that can be grown by their superblocks (Documentation/filesystems; ext4 at 1024, XFS at 0, btrfs at 64 KiB).
func filesystemOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return filesystemAt(f, 0)
}

func (d Disks) growFilesystem(ctx context.Context, path, kind string) error {
	err := d.WithMount(ctx, path, func(root string) error {
		argv := map[string][]string{
			"ext4":  {"resize2fs", path},
			"xfs":   {"xfs_growfs", root},
			"btrfs": {"btrfs", "filesystem", "resize", "max", root},
		}[kind]
		_, err := run.Output(ctx, d.Runner, argv)
		return err
	})
	if err == nil || kind != "ext4" || ctx.Err() != nil {
		return err
	}
	// What the mounted filesystem refused, a checked one may do.
	checked, checkErr := d.Runner.Run(ctx, []string{"e2fsck", "-f", "-p", path})
	if checkErr != nil || checked.ExitCode > 1 {
		return errors.Join(err, checkErr, fmt.Errorf("e2fsck exited with code %d", checked.ExitCode))
	}
	if _, offlineErr := run.Output(ctx, d.Runner, []string{"resize2fs", path}); offlineErr != nil {
		return errors.Join(err, offlineErr)
	}
	return nil
}
