package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/u-root/u-root/pkg/boot/kexec"
	"golang.org/x/sys/unix"

	"bloomery/firmware/efiboot"
)

// Bounds of what the kernel is given to read into memory.
const (
	maxKernelSize = 64 << 20
	maxInitrdSize = 512 << 20
)

const (
	securityfs   = "/sys/kernel/security"
	lockdownPath = securityfs + "/lockdown"
)

// KexecBlocked implements System.
func (l *live) KexecBlocked() string {
	// Without securityfs there is no telling; kexec_file_load(2) itself refuses in a locked-down kernel.
	if err := mountOnce("securityfs", securityfs, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		l.log.Debug("securityfs not mounted", "error", err)
	}
	return kexecBlocked(lockdownPath, efiboot.DefaultRoot)
}

// kexecBlocked looks at the kernel's lockdown (security/lockdown/lockdown.c: "[none] integrity confidentiality") and at Secure Boot.
func kexecBlocked(lockdown string, variables efiboot.Root) string {
	state, err := os.ReadFile(lockdown)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Sprintf("the kernel's lockdown is unknown: %v", err)
	case !strings.Contains(string(state), "[none]"):
		return "the kernel is locked down: " + strings.TrimSpace(string(state))
	}
	switch on, err := efiboot.SecureBoot(variables); {
	case err != nil:
		return fmt.Sprintf("the state of Secure Boot is unknown: %v", err)
	case on != nil && *on:
		return "Secure Boot is on"
	}
	return ""
}

// LoadKernel implements Installer. The files are closed and the filesystem is unmounted when it returns: the kernel has its own copy.
func (l *live) LoadKernel(ctx context.Context, dev string, number int, k installedKernel) error {
	path, err := l.disks.ShowPartition(dev, number)
	if err != nil {
		return err
	}
	return l.disks.WithMountReadOnly(ctx, path, func(root string) error { return loadKernel(root, k, kexec.FileLoad) })
}

// fileLoad hands an open kernel and initrd (nil for none) to the kernel.
type fileLoad func(kernel, initrd *os.File, commandLine string) error

// loadKernel opens the files of the installed system, never one outside of it.
func loadKernel(dir string, k installedKernel, load fileLoad) (err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	kernel, err := openInside(root, k.Kernel, maxKernelSize)
	if err != nil {
		return fmt.Errorf("kernel: %w", err)
	}
	defer kernel.Close()
	if k.Initrd == "" {
		return load(kernel, nil, k.CommandLine)
	}
	initrd, err := openInside(root, k.Initrd, maxInitrdSize)
	if err != nil {
		return fmt.Errorf("initrd: %w", err)
	}
	defer initrd.Close()
	return load(kernel, initrd, k.CommandLine)
}

// openInside opens a regular file by its absolute path in root. Links are followed as long as they stay inside (Debian's /vmlinuz is one).
func openInside(root *os.Root, path string, limit int64) (*os.File, error) {
	f, err := root.OpenFile(strings.TrimPrefix(path, "/"), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", path)
	case info.Size() == 0 || info.Size() > limit:
		err = fmt.Errorf("%s has %d bytes, want 1 to %d", path, info.Size(), limit)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Kexec implements System.
func (l *live) Kexec() error {
	unix.Sync()
	return kexec.Reboot()
}
