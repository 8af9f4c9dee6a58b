package guest

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// discard is BLKDISCARD.
func discard(f *os.File, size int64) error {
	span := [2]uint64{0, uint64(size)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&span))); errno != 0 {
		return errno
	}
	return nil
}
