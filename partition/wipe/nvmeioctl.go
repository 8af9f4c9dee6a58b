package wipe

import (
	"context"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// passthru is struct nvme_passthru_cmd of include/uapi/linux/nvme_ioctl.h.
type passthru struct {
	opcode, flags                            uint8
	_                                        uint16
	nsid, cdw2, cdw3                         uint32
	metadata, addr                           uint64
	metadataLen, dataLen                     uint32
	cdw10, cdw11, cdw12, cdw13, cdw14, cdw15 uint32
	timeoutMilliseconds, result              uint32
}

const (
	ioctlNVMeID    = 0x4e40     // _IO('N', 0x40)
	ioctlNVMeAdmin = 0xc0484e41 // _IOWR('N', 0x41, struct nvme_passthru_cmd)
)

// nvmeStatus is what a drive answered a command with (NVM Express base specification 2.0, section 4.2.3): never 0.
type nvmeStatus uint16

func (s nvmeStatus) Error() string {
	known := map[nvmeStatus]string{
		0x01: "it does not know the command", 0x02: "a field of the command is not valid", 0x06: "internal error", 0x0b: "the namespace or its format is not valid",
		0x0c: "the commands are out of order", 0x1c: "the last sanitize operation failed", 0x1d: "a sanitize operation is running", 0x20: "the namespace is write-protected",
		0x10a: "the format is not valid", 0x126: "the firmware must be activated by a reset first",
	}
	if text, ok := known[s&0x7ff]; ok {
		return fmt.Sprintf("the drive answers with status %#x: %s", uint16(s&0x7ff), text)
	}
	return fmt.Sprintf("the drive answers with status %#x", uint16(s&0x7ff))
}

// kernelNVMe is a namespace's block device.
type kernelNVMe struct{ fd int }

func (k kernelNVMe) NamespaceID() (uint32, error) {
	id, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k.fd), ioctlNVMeID, 0)
	if errno != 0 {
		return 0, errno
	}
	return uint32(id), nil
}

func (k kernelNVMe) Admin(c adminCommand) error {
	command := passthru{opcode: c.opcode, nsid: c.nsid, cdw10: c.cdw10, timeoutMilliseconds: uint32(c.timeout / time.Millisecond)}
	var pinned runtime.Pinner
	defer pinned.Unpin()
	if len(c.data) > 0 {
		pinned.Pin(&c.data[0])
		command.addr, command.dataLen = uint64(uintptr(unsafe.Pointer(&c.data[0]))), uint32(len(c.data))
	}
	status, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(k.fd), ioctlNVMeAdmin, uintptr(unsafe.Pointer(&command)))
	switch {
	case errno != 0:
		return fmt.Errorf("send command %#x: %w", c.opcode, errno)
	case status != 0:
		return fmt.Errorf("command %#x: %w", c.opcode, nvmeStatus(status))
	}
	return nil
}

// ticking runs what cannot be interrupted, and says now and then what part is done if it takes as long as expected. It returns when the work does.
func ticking(ctx context.Context, expected time.Duration, tick func(float64), work func() error) error {
	done := make(chan error, 1)
	go func() { done <- work() }()
	pause := time.NewTicker(time.Second)
	defer pause.Stop()
	for start := time.Now(); ; {
		select {
		case err := <-done:
			return err
		case <-pause.C:
			if expected > 0 && ctx.Err() == nil {
				tick(float64(time.Since(start)) / float64(expected))
			}
		}
	}
}
