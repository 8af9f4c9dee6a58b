// Package bmc drives baseboard management controllers: power, boot device and identity
// over IPMI 2.0 (RMCP+), and the machine's own BMC through /dev/ipmi0.
package bmc

import (
	"context"
	"errors"
	"fmt"
)

// Errors that callers tell apart with errors.Is. The driver wraps them with the BMC's address.
var (
	// ErrUnauthorized: the BMC knows neither the user nor the password, or the user may not administer.
	ErrUnauthorized = errors.New("wrong password or user")
	// ErrNoAnswer: nothing answered before the attempt's time was over; the command's fate is unknown.
	ErrNoAnswer = errors.New("no answer")
	// ErrPoweredOff: the command needs a machine that is on.
	ErrPoweredOff = errors.New("the machine is off")
	// ErrClosed: the driver was closed.
	ErrClosed = errors.New("the connection to the BMC was closed")
)

// Driver controls one machine through its BMC. Its methods may be called at the same time; they
// run one after the other, as a BMC handles one command a session. Every method obeys the
// context's deadline and has bounds of its own beside it. What a lost answer leaves in doubt may be called
// again: each looks first, so that the BMC is told nothing that is so already; Reset alone cannot see it.
type Driver interface {
	// PowerStatus reports whether the machine has power.
	PowerStatus(ctx context.Context) (on bool, err error)
	// PowerOn switches the machine on; a machine that is on is left alone. It returns once the BMC
	// accepted, which may be seconds before PowerStatus says so.
	PowerOn(ctx context.Context) error
	// PowerOff takes the power away at once (no shutdown of the OS); a machine that is off is left alone.
	PowerOff(ctx context.Context) error
	// Reset restarts a machine that is on, at once. It fails with ErrPoweredOff if the machine is off.
	Reset(ctx context.Context) error
	// SetBootDevice says where the machine boots from next, or from now on.
	SetBootDevice(ctx context.Context, d BootDevice) error
	// DeviceID identifies the BMC and its firmware.
	DeviceID(ctx context.Context) (DeviceInfo, error)
	// Close ends the session. The driver cannot be used afterwards.
	Close(ctx context.Context) error
}

// BootTarget is a kind of device to boot from.
type BootTarget int

// The boot targets of IPMI 2.0 (table 28-14, parameter 5) that Bloomery uses.
const (
	// BootDefault takes an override away: the firmware's own boot order decides.
	BootDefault BootTarget = iota
	// BootNetwork is PXE or UEFI HTTP boot, whichever the firmware does.
	BootNetwork
	// BootDisk is the default hard disk.
	BootDisk
)

// String names the target as error texts and logs do.
func (t BootTarget) String() string {
	switch t {
	case BootDefault:
		return "default"
	case BootNetwork:
		return "network"
	case BootDisk:
		return "disk"
	}
	return fmt.Sprintf("BootTarget(%d)", int(t))
}

// BootDevice is a boot override.
type BootDevice struct {
	Target BootTarget
	// Once: for the next boot only; else for every boot until changed.
	Once bool
	// UEFI: boot the EFI way; else the firmware's legacy way.
	UEFI bool
}

// DeviceInfo identifies a BMC (IPMI 2.0 section 20.1, Get Device ID).
type DeviceInfo struct {
	// ManufacturerID is the IANA private enterprise number, e.g. 674 for Dell.
	ManufacturerID uint32
	// Manufacturer is its name, or "enterprise N" for one that is not known.
	Manufacturer string
	ProductID    uint16
	// Firmware is "major.minor", the minor part read as BCD (two digits), e.g. "2.85".
	Firmware string
	// AuxFirmware is the manufacturer's auxiliary revision in hexadecimal; empty when not given.
	AuxFirmware string
	// IPMIVersion is e.g. "2.0".
	IPMIVersion string
}
