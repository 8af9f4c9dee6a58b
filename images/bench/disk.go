package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ramDisk sets up a loop device over a file in memory, of size bytes, until stop is called.
func ramDisk(ctx context.Context, memory string, size int64) (device string, stop func() error, err error) {
	dir, err := os.MkdirTemp(memory, "bloomery-bench-")
	if err != nil {
		return "", nil, fmt.Errorf("making a disk in memory: %w", err)
	}
	stop = func() error { return os.RemoveAll(dir) }
	file := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		return "", nil, errors.Join(err, stop())
	}
	out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", file).Output()
	if err != nil {
		return "", nil, errors.Join(fmt.Errorf("setting up a loop device over %s: %w", file, err), stop())
	}
	device = strings.TrimSpace(string(out))
	stop = func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		return errors.Join(command(ctx, "losetup", "--detach", device), os.RemoveAll(dir))
	}
	return device, stop, nil
}

// throttleFile is where cgroup v1 takes a device and the bytes a second that may be written to it
// (Documentation/admin-guide/cgroup-v1/blkio-controller.rst). The root group's holds for all.
const throttleFile = "/sys/fs/cgroup/blkio/blkio.throttle.write_bps_device"

// throttle lets a device take so many bytes a second, or any number again when that is 0. ok is false where the host cannot do it.
func throttle(device string, perSecond int64) (ok bool, err error) {
	if _, err := os.Stat(throttleFile); err != nil {
		return false, nil
	}
	var info unix.Stat_t
	if err := unix.Stat(device, &info); err != nil {
		return false, fmt.Errorf("looking at %s: %w", device, err)
	}
	line := fmt.Sprintf("%d:%d %d", unix.Major(info.Rdev), unix.Minor(info.Rdev), perSecond)
	if err := os.WriteFile(throttleFile, []byte(line), 0); err != nil {
		return false, fmt.Errorf("throttling %s: %w", device, err)
	}
	return true, nil
}

func command(ctx context.Context, name string, args ...string) error {
	if said, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("running %s %s: %w: %s", name, strings.Join(args, " "), err, said)
	}
	return nil
}
