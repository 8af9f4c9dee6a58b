package initramfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	suite         = "bookworm"
	packagesFile  = ".bloomery/packages"
	stampFile     = ".bloomery/stamp"
	sysrootFormat = "1" // raise when the recipe below changes in a way the package list does not show
)

// sysrootPackages are the Debian packages that are extracted; their dependencies come with them.
var sysrootPackages = []string{
	"linux-image-amd64", "systemd-boot-efi", "kmod",
	"busybox", "util-linux", "fdisk", "gdisk",
	"e2fsprogs", "xfsprogs", "btrfs-progs", "dosfstools",
	"mdadm", "lvm2", "thin-provisioning-tools", "dmsetup", "cryptsetup-bin",
	"nvme-cli", "smartmontools", "hdparm", "stressapptest",
}

// sysrootPruned are trees (glob patterns below the sysroot) that no image needs. They are removed after the extraction:
// dpkg's own path-exclude makes mmdebstrap filter every package in Python, which takes three times as long.
var sysrootPruned = []string{
	"usr/share/man", "usr/share/locale", "usr/share/i18n", "usr/share/info", "usr/share/perl*",
	"usr/lib/x86_64-linux-gnu/perl*", "usr/lib/x86_64-linux-gnu/gconv", "usr/lib/python3*", "boot/System.map-*",
	"lib/modules/*/kernel/sound", "lib/modules/*/kernel/drivers/media", "lib/modules/*/kernel/drivers/gpu",
	"lib/modules/*/kernel/drivers/net/wireless", "lib/modules/*/kernel/drivers/staging", "lib/modules/*/kernel/drivers/iio",
}

// recordPackages runs as a mmdebstrap hook while the .deb files are still there: --variant=extract leaves no dpkg
// database behind, and the manifest must say which package and version each file came from.
const recordPackages = `set -e
mkdir -p "$1/.bloomery"
for deb in "$1"/var/cache/apt/archives/*.deb; do
	dpkg-deb --show --showformat='package ${Package} ${Version} ${source:Package}\n' "$deb"
	dpkg-deb --fsys-tarfile "$deb" | tar -t | sed -n 's,^\./\(.*[^/]\)$,path \1,p'
done > "$1/` + packagesFile + `"`

// Sysroot makes dir the extracted tree of the Debian packages that the image takes its kernel, modules and tools from.
// No maintainer script of a package is run. It needs root (or user namespaces), mmdebstrap and kmod, and takes about
// 15 s; when dir already holds the packages of this list it returns at once. Concurrent calls for one dir wait for
// each other. An interrupted call leaves the earlier tree as it was.
func Sysroot(ctx context.Context, dir string, log *slog.Logger) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("find agent sysroot: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make agent sysroot's folder: %w", err)
	}
	unlock, err := lockFile(ctx, dir+".lock")
	if err != nil {
		return err
	}
	defer unlock()

	stamp := sysrootStamp()
	if have, err := os.ReadFile(filepath.Join(dir, stampFile)); err == nil && string(have) == stamp {
		log.Debug("agent sysroot is up to date", "dir", dir)
		return nil
	}
	start := time.Now()
	log.Info("extracting Debian packages for the agent image", "dir", dir, "suite", suite)
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("remove half-made sysroot: %w", err)
	}
	if err := run(ctx, "mmdebstrap", mmdebstrapArgs(fresh)...); err != nil {
		return fmt.Errorf("extract agent sysroot: %w", err)
	}
	if err := prune(fresh); err != nil {
		return err
	}
	release, err := kernelRelease(fresh)
	if err != nil {
		return err
	}
	if err := run(ctx, "depmod", "-b", fresh, release); err != nil {
		return fmt.Errorf("index kernel modules of %s: %w", release, err)
	}
	if err := os.WriteFile(filepath.Join(fresh, stampFile), []byte(stamp), 0o644); err != nil {
		return fmt.Errorf("stamp agent sysroot: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove old agent sysroot: %w", err)
	}
	if err := os.Rename(fresh, dir); err != nil {
		return fmt.Errorf("put agent sysroot in place: %w", err)
	}
	log.Info("agent sysroot is ready", "dir", dir, "kernel", release, "seconds", time.Since(start).Seconds())
	return nil
}

func mmdebstrapArgs(dir string) []string {
	return []string{
		"--variant=extract", "--quiet",
		"--include=" + strings.Join(sysrootPackages, ","),
		"--extract-hook=" + recordPackages,
		suite, dir,
	}
}

func prune(dir string) error {
	for _, pattern := range sysrootPruned {
		matches, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return fmt.Errorf("prune agent sysroot of %s: %w", pattern, err)
		}
		for _, match := range matches {
			if err := os.RemoveAll(match); err != nil {
				return fmt.Errorf("prune agent sysroot: %w", err)
			}
		}
	}
	return nil
}

// sysrootStamp changes with anything that changes what Sysroot extracts. New package versions in the suite do not
// change it: remove the directory to take them.
func sysrootStamp() string {
	sum := sha256.Sum256([]byte(sysrootFormat + "\x00" + strings.Join(append(mmdebstrapArgs("dir"), sysrootPruned...), "\x00")))
	return hex.EncodeToString(sum[:]) + "\n"
}

// kernelRelease names the one kernel in the sysroot, such as 6.1.0-30-amd64.
func kernelRelease(sysroot string) (string, error) {
	kernels, err := filepath.Glob(filepath.Join(sysroot, "boot", "vmlinuz-*"))
	if err != nil {
		return "", fmt.Errorf("look for a kernel in %s: %w", sysroot, err)
	}
	if len(kernels) != 1 {
		return "", fmt.Errorf("sysroot %s must hold exactly one boot/vmlinuz-*, it holds %d", sysroot, len(kernels))
	}
	return strings.TrimPrefix(filepath.Base(kernels[0]), "vmlinuz-"), nil
}

// lockFile takes an exclusive advisory lock that the kernel drops when the process dies.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("wait for lock %s: %w", path, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// run executes a build tool and puts the end of what it printed into the error.
func run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = 5 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return fmt.Errorf("%s: %w: %s", name, err, lastLines(out.String(), 8))
	}
	return nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], " | ")
}
