package partition

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/fat32"
	"github.com/diskfs/go-diskfs/partition/gpt"
)

// ErrNoRoom is wrapped when a disk has no free space behind its image.
var ErrNoRoom = errors.New("no room behind the image")

const (
	// seedBytes is what a FAT32 filesystem needs at least: 65,525 clusters of 512 bytes (Microsoft's FAT specification 1.03, page 14) and its tables.
	seedBytes = 40 * mebibyte
	// seedName tells the partition from the image's own.
	seedName = "bloomery-seed"
	// typeBasicData is Microsoft's basic data partition, which every system mounts.
	typeBasicData = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"
	maxSeedFiles  = 16
	maxSeedBytes  = mebibyte
)

// Seed is a small filesystem that an installed system finds by its label.
type Seed struct {
	// Label is the volume's: "CIDATA" (NoCloud) or "config-2" (ConfigDrive).
	Label string
	// GUID is the partition's, as RFC 4122 text in lower case.
	GUID string
	// Files are paths with slashes and their contents, at most 1 MiB together.
	Files map[string][]byte
	// Behind is the size of the image in bytes, all of which is left as it is.
	Behind int64
}

// AddSeed puts a FAT32 partition with the seed into the free space behind an image that was written to dev, and moves the backup partition table
// to the disk's end. Nothing of the image changes but its partition table. A disk without room is ErrNoRoom, one without a sound table ErrTable,
// both before anything is written. Doing it again replaces the seed.
func (d Disks) AddSeed(ctx context.Context, dev string, s Seed) (Info, error) {
	b, err := d.Open(dev, true)
	if err != nil {
		return Info{}, fmt.Errorf("add a seed: %w", err)
	}
	defer b.Close()
	info, err := addSeed(b, s)
	if err != nil {
		return info, fmt.Errorf("add a seed to %s: %w", dev, err)
	}
	if err := b.Reread(ctx); err != nil {
		return info, fmt.Errorf("let the kernel read the partition table of %s: %w", dev, err)
	}
	return info, nil
}

func addSeed(d disk, s Seed) (Info, error) {
	t, err := readTable(d, d.Size(), d.SectorSize())
	if err != nil {
		return Info{}, err
	}
	if err := t.checkPlain(); err != nil {
		return Info{}, err
	}
	before, err := wholeTable(d)
	if err != nil {
		return Info{}, err
	}
	place, there, err := t.seedPlace(d, before, s)
	if err != nil {
		return Info{}, err
	}
	if err := writeSeed(d, place.Start, s); err != nil {
		return Info{}, err
	}
	if !there {
		if err := t.add(d, place); err != nil {
			return Info{}, err
		}
		if err := fitProtectiveMBR(d); err != nil {
			return Info{}, err
		}
	}
	return partitionInfo(d, place.Number)
}

// seedPlace finds the partition of an earlier try, or the first whole MiB behind the image and its last partition.
func (t *table) seedPlace(d disk, have Table, s Seed) (place Entry, there bool, err error) {
	i := slices.IndexFunc(have.Entries, func(e Entry) bool { return e.Label == seedName && e.GUID == s.GUID && e.Size == seedBytes })
	if i >= 0 && have.Entries[i].Start >= s.Behind {
		return have.Entries[i], true, nil
	}
	place = Entry{Label: seedName, Type: typeBasicData, GUID: s.GUID, Size: seedBytes, Start: s.Behind}
	for n := 1; n <= t.count() && place.Number == 0; n++ {
		if t.entry(n) == nil {
			place.Number = n
		}
	}
	if place.Number == 0 {
		return place, false, errors.New("every entry of the partition table is taken")
	}
	for _, e := range have.Entries {
		place.Start = max(place.Start, e.Start+e.Size)
	}
	place.Start = (place.Start + mebibyte - 1) / mebibyte * mebibyte
	sector := int64(t.sectorSize)
	end := d.Size()/sector*sector - (1+int64(t.entrySectors()))*sector
	if missing := place.Start + place.Size - end; missing > 0 {
		return place, false, fmt.Errorf("%w: the disk has %d bytes, %d more are needed for the seed", ErrNoRoom, d.Size(), missing)
	}
	return place, false, nil
}

// add writes the table with one more partition, and its backup at the disk's end.
func (t *table) add(d disk, e Entry) error {
	return t.rewrite(d, func(changed *gpt.Table) {
		sector := int64(t.sectorSize)
		changed.Partitions = append(changed.Partitions, &gpt.Partition{
			Index: e.Number, Start: uint64(e.Start / sector), End: uint64((e.Start+e.Size)/sector - 1), Size: uint64(e.Size),
			Type: gpt.MicrosoftBasicData, GUID: e.GUID, Name: e.Label,
		})
	})
}

// writeSeed makes the filesystem in a file and copies it onto the disk.
func writeSeed(d disk, at int64, s Seed) error {
	f, err := os.CreateTemp("", "bloomery-seed-")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	if err := f.Truncate(seedBytes); err != nil {
		return err
	}
	if err := fillSeed(f, s); err != nil {
		return fmt.Errorf("make the seed's filesystem: %w", err)
	}
	piece := make([]byte, mebibyte)
	for off := int64(0); off < seedBytes; off += int64(len(piece)) {
		if _, err := f.ReadAt(piece, off); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := d.WriteAt(piece, at+off); err != nil {
			return fmt.Errorf("write the seed: %w", err)
		}
	}
	return d.Sync()
}

func fillSeed(f *os.File, s Seed) error {
	total := 0
	for name, data := range s.Files {
		if path.Clean("/"+name) != "/"+name {
			return fmt.Errorf("%q is not a clean relative path", name)
		}
		total += len(data)
	}
	if len(s.Files) > maxSeedFiles || total > maxSeedBytes {
		return fmt.Errorf("%d files with %d bytes are more than %d with %d", len(s.Files), total, maxSeedFiles, maxSeedBytes)
	}
	fs, err := fat32.Create(file.New(f, false), seedBytes, 0, 512, s.Label, false)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(s.Files))
	for name := range s.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if folder := path.Dir(name); folder != "." {
			if err := fs.Mkdir(folder); err != nil {
				return err
			}
		}
		if err := writeSeedFile(fs, name, s.Files[name]); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return fs.Close()
}

func writeSeedFile(fs *fat32.FileSystem, name string, data []byte) error {
	out, err := fs.OpenFile(name, os.O_CREATE|os.O_RDWR)
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	return errors.Join(err, out.Close())
}
