package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// watchdogSeconds is after how long without a pet the hardware restarts the machine.
const watchdogSeconds = 120

// hardwareWatchdog is the kernel's watchdog device (Documentation/watchdog/watchdog-api.rst). It is opened when its driver has come.
type hardwareWatchdog struct {
	path string
	mu   sync.Mutex
	f    *os.File
}

// Pet implements Watchdog; without a device it does nothing.
func (w *hardwareWatchdog) Pet() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		f, err := os.OpenFile(w.path, os.O_WRONLY, 0)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("open the watchdog: %w", err)
		}
		w.f = f
		if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.WDIOC_SETTIMEOUT, watchdogSeconds); err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("set the watchdog's time: %w", err)
		}
	}
	if _, err := w.f.Write([]byte{0}); err != nil {
		return fmt.Errorf("pet the watchdog: %w", err)
	}
	return nil
}

// Disarm implements Watchdog: the letter V before closing is what the kernel calls a magic close.
func (w *hardwareWatchdog) Disarm() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		return nil
	}
	_, err := w.f.Write([]byte("V"))
	err = errors.Join(err, w.f.Close())
	w.f = nil
	if err != nil {
		return fmt.Errorf("disarm the watchdog: %w", err)
	}
	return nil
}
