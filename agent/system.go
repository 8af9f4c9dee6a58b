package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// minMemory is what the kernel must show of a machine for the agent to work: its file system takes about 120 MiB, writing an image 64 MiB.
// A machine with 512 MiB shows about 440.
const minMemory = 360 << 20

// Mount implements System: u-root's init has made most of these.
func (l *live) Mount(context.Context) error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	var errs []error
	for _, m := range []struct {
		kind, target, options string
		flags                 uintptr
	}{
		{"proc", "/proc", "", quiet},
		{"sysfs", "/sys", "", quiet},
		{"devtmpfs", "/dev", "mode=0755", unix.MS_NOSUID},
		{"tmpfs", "/run", "mode=0755", unix.MS_NOSUID | unix.MS_NODEV},
		{"tmpfs", "/tmp", "mode=1777", unix.MS_NOSUID | unix.MS_NODEV},
	} {
		errs = append(errs, mountOnce(m.kind, m.target, m.flags, m.options))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	return checkMemory(data)
}

// mountOnce mounts a kernel file system unless something is mounted there.
func mountOnce(kind, target string, flags uintptr, options string) error {
	if err := os.MkdirAll(target, 0o755); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	var here, above unix.Stat_t
	if err := unix.Stat(target, &here); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	if err := unix.Stat(filepath.Dir(target), &above); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	if here.Dev != above.Dev {
		return nil
	}
	if err := unix.Mount(kind, target, kind, flags, options); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// checkMemory reads /proc/meminfo (proc_meminfo(5)).
func checkMemory(meminfo []byte) error {
	for line := range strings.Lines(string(meminfo)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "MemTotal:" {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			return fmt.Errorf("read the size of the memory: %w", err)
		}
		if kib<<10 < minMemory {
			return fmt.Errorf("the machine has %d MiB of memory, the agent needs %d", kib>>10, minMemory>>20)
		}
		return nil
	}
	return errors.New("read the size of the memory: no MemTotal in /proc/meminfo")
}

// openConsole opens every console that the kernel writes to, so that what people see does not depend on where they look: /dev/console itself is
// only the last one.
func openConsole(sysfs, dev string) io.Writer {
	var consoles many
	active, err := os.ReadFile(filepath.Join(sysfs, "class/tty/console/active"))
	if err == nil {
		for name := range strings.FieldsSeq(string(active)) {
			if f, err := os.OpenFile(filepath.Join(dev, filepath.Base(name)), os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
				consoles = append(consoles, f)
			}
		}
	}
	if len(consoles) == 0 {
		return os.Stdout
	}
	return consoles
}

// many writes to all and forgives each its errors: a console that is gone is no reason not to write to the next.
type many []io.Writer

func (m many) Write(p []byte) (int, error) {
	for _, w := range m {
		_, _ = w.Write(p)
	}
	return len(p), nil
}
