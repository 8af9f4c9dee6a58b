package apply

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// swapoff is swapoff(2), which golang.org/x/sys has not.
func swapoff(path *byte) error {
	_, _, errno := unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(path)), 0, 0)
	runtime.KeepAlive(path)
	if errno != 0 {
		return errno
	}
	return nil
}
