package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"bloomery/images"
	"bloomery/partition"
)

// described tells whether a folder holds the image of a file whose maker says nothing of it, with what was found on its disk.
func described(folder, name, source string) bool {
	m := converted(folder, source)
	return m != nil && m.Name == name && m.Kind == images.KindDisk && (m.Boot.RootPartition > 0 || m.Boot.Seed != "")
}

// describe looks for the root and the EFI system partition on a converted disk and writes them into the image's manifest.
func describe(folder string) error {
	r, err := images.OpenReader(folder)
	if err != nil {
		return err
	}
	defer r.Close()
	found, err := partition.Examine(r, r.Manifest.Size, r.Manifest.SectorSize)
	if errors.Is(err, partition.ErrTable) {
		return fmt.Errorf("there is no meta file, and %w", err)
	}
	if err != nil {
		return err
	}
	r.Manifest.Boot = bootOf(found)
	text, err := r.Manifest.Encode()
	if err != nil {
		return err
	}
	path := filepath.Join(folder, images.ManifestFile)
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// bootOf says how to seed and start what was found on a disk. The root is the partition of that type, else the largest one with ext4 or xfs.
// A btrfs may have its root in any subvolume, so that nothing is written into one.
func bootOf(found []partition.Found) images.Boot {
	var boot images.Boot
	var root partition.Found
	for _, f := range found {
		if f.ESP() && boot.ESPPartition == 0 {
			boot.ESPPartition = f.Number
		}
		if f.Filesystem != "ext4" && f.Filesystem != "xfs" {
			continue
		}
		if f.Root() && !root.Root() || f.Root() == root.Root() && f.SizeBytes > root.SizeBytes {
			root = f
		}
	}
	if root.Number == 0 {
		boot.Seed = images.SeedCIDATA
		return boot
	}
	boot.RootPartition, boot.RootPartitionGUID = root.Number, root.GUID
	return boot
}
