package partition

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// WithMount mounts the filesystem on a partition (ext4, xfs or btrfs) read-write at a directory of its own, with nosuid, nodev and noexec,
// calls use with that directory, and unmounts in any case. When it returns nil everything that use wrote is on the disk.
func (d Disks) WithMount(ctx context.Context, path string, use func(root string) error) error {
	return d.withMount(ctx, path, 0, use)
}

// WithMountReadOnly is WithMount for a filesystem that nothing is written to.
func (d Disks) WithMountReadOnly(ctx context.Context, path string, use func(root string) error) error {
	return d.withMount(ctx, path, unix.MS_RDONLY, use)
}

func (d Disks) withMount(ctx context.Context, path string, flags uintptr, use func(root string) error) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	kind, err := filesystemOf(path)
	if err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	dir, err := os.MkdirTemp("", "bloomery-root-")
	if err != nil {
		return fmt.Errorf("mount %s: %w", path, err)
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := unix.Mount(path, dir, kind, flags|unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount %s as %s: %w", path, kind, err)
	}
	defer func() {
		if unmountErr := unmount(dir); unmountErr != nil {
			err = errors.Join(err, fmt.Errorf("unmount %s: %w", path, unmountErr))
		}
	}()
	return use(dir)
}

// unmount waits for a scanner or a late child to let go of the filesystem. Unmounting writes everything back.
func unmount(dir string) error {
	var err error
	for pause := 10 * time.Millisecond; pause < 2*time.Second; pause *= 2 {
		if err = unix.Unmount(dir, 0); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(pause)
	}
	return err
}

// ShowPartition makes sure that the kernel shows partition n of dev where the table says it is, reading the table again if it does not (right
// after an image was written), and gives its device path.
func (d Disks) ShowPartition(dev string, n int) (string, error) {
	b, err := d.Open(dev, false)
	if err != nil {
		return "", err
	}
	defer b.Close()
	info, err := partitionInfo(b, n)
	if err != nil {
		return "", fmt.Errorf("partition %d of %s: %w", n, dev, err)
	}
	path := PartitionPath(dev, n)
	start, length := int64(info.FirstLBA)*int64(info.SectorSize), int64(info.Sectors)*int64(info.SectorSize)
	if d.kernelSays(path, "start") == start && d.kernelSays(path, "size") == length {
		return path, nil
	}
	return path, showPartition(b, path, n, start, length)
}

// kernelSays reads one of the attributes of a partition that sysfs gives in units of 512 bytes; -1 if there is none.
func (d Disks) kernelSays(path, attribute string) int64 {
	text, err := os.ReadFile(filepath.Join(d.sysfs(), "class/block", filepath.Base(path), attribute))
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return -1
	}
	return n * 512
}
