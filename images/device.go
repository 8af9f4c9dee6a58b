package images

import (
	"context"
	"errors"
	"fmt"
	"unsafe"
)

// ErrDeviceTooSmall says that an image does not fit on a device.
var ErrDeviceTooSmall = errors.New("device is too small")

// ErrSectorSize says that an image's partition table counts in sectors of another size than the device's.
var ErrSectorSize = errors.New("device has another sector size")

// Device is the disk that Write writes to. Its methods may be called concurrently on ranges that do not overlap.
type Device interface {
	// ReadAt reads from the medium, past caches where that can be had.
	ReadAt(p []byte, offset int64) (int, error)
	WriteAt(p []byte, offset int64) (int, error)
	// Zero makes a range read as zeros.
	Zero(ctx context.Context, offset, length int64) error
	// Sync returns once everything written before is durable.
	Sync() error
	// Size is the number of bytes of the device.
	Size() int64
	// SectorSize is the logical sector size in bytes.
	SectorSize() int
}

// directAlignment is what O_DIRECT asks of a buffer's address and length; no disk has larger logical sectors.
const directAlignment = 4096

// alignedBuffer returns a buffer that begins at a multiple of directAlignment.
func alignedBuffer(size int) []byte {
	raw := make([]byte, size+directAlignment)
	skip := 0
	if rest := int(uintptr(unsafe.Pointer(&raw[0])) % directAlignment); rest != 0 {
		skip = directAlignment - rest
	}
	return raw[skip : skip+size : skip+size]
}

// checkDevice refuses what cannot work before the first write.
func checkDevice(m *Manifest, device Device) error {
	if device.SectorSize() != m.SectorSize {
		return fmt.Errorf("image %s is for sectors of %d bytes, the device has %d: %w", m.Name, m.SectorSize, device.SectorSize(), ErrSectorSize)
	}
	if device.Size() < m.Size {
		return fmt.Errorf("image %s needs %d bytes, the device has %d: %w", m.Name, m.Size, device.Size(), ErrDeviceTooSmall)
	}
	return nil
}
