package bmc

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/bougou/go-ipmi/pkg/hal"
	"github.com/bougou/go-ipmi/pkg/types"
)

// Power is the machine that a BMC switches. Its methods may be called at the same time.
type Power interface {
	// On reports whether the machine has power.
	On() bool
	// PowerOn starts the machine; no error if it is on.
	PowerOn(ctx context.Context) error
	// PowerOff takes the power away; no error if it is off.
	PowerOff(ctx context.Context) error
	// Reset restarts a machine that is on, and fails for one that is off.
	Reset(ctx context.Context) error
	// Shutdown presses the power button of a machine that is on.
	Shutdown(ctx context.Context) error
}

// Boot is a boot override, as IPMI's boot flags ask for it.
type Boot int

// The overrides that the lab's firmware can carry out.
const (
	BootNone Boot = iota
	BootNetwork
	BootDisk
)

// Flags keeps the boot flags (IPMI 2.0 table 28-14, parameter 5) between their being set and the next start.
type Flags struct {
	mu    sync.Mutex
	flags types.BootOptionParam_BootFlags
	ack   types.BootOptionParam_BootInfoAcknowledge
}

// Take returns the override for a start that happens now, and clears it if it was for one boot.
func (f *Flags) Take() Boot {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.boot()
	if !f.flags.Persist {
		f.flags = types.BootOptionParam_BootFlags{}
	}
	return b
}

// Peek returns the override of the next start.
func (f *Flags) Peek() Boot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.boot()
}

func (f *Flags) boot() Boot {
	if !f.flags.BootFlagsValid {
		return BootNone
	}
	switch f.flags.BootDeviceSelector {
	case types.BootDeviceSelectorForcePXE:
		return BootNetwork
	case types.BootDeviceSelectorForceHardDrive, types.BootDeviceSelectorForceHardDriveSafe:
		return BootDisk
	}
	return BootNone
}

// hardware is what go-ipmi's handlers see of the machine.
type hardware struct {
	power Power
	flags *Flags
	net   hal.IPConfig
	// bootSet is nil when nobody wants to know.
	bootSet func(context.Context, Boot)
}

var (
	_ hal.HAL        = (*hardware)(nil)
	_ hal.ChassisHAL = (*hardware)(nil)
	_ hal.NetworkHAL = (*hardware)(nil)
)

// hal.HAL; what the lab's machines lack is nil.
func (h *hardware) Chassis() hal.ChassisHAL { return h }
func (h *hardware) Network() hal.NetworkHAL { return h }
func (h *hardware) Sensors() hal.SensorHAL  { return nil }
func (h *hardware) Storage() hal.StorageHAL { return nil }
func (h *hardware) GPIO() hal.GPIOHAL       { return nil }
func (h *hardware) I2C() hal.I2CHAL         { return nil }
func (h *hardware) Console() hal.ConsoleHAL { return nil }
func (h *hardware) Close() error            { return nil }

func (h *hardware) PowerState(context.Context) (bool, error) { return h.power.On(), nil }

func (h *hardware) SetPower(ctx context.Context, on bool) error {
	if on {
		return h.power.PowerOn(ctx)
	}
	return h.power.PowerOff(ctx)
}

func (h *hardware) PowerCycle(ctx context.Context) error { return h.power.Reset(ctx) }
func (h *hardware) ColdReset(ctx context.Context) error  { return h.power.Reset(ctx) }

// WarmReset is where go-ipmi sends chassis control 5, "soft shutdown".
func (h *hardware) WarmReset(ctx context.Context) error { return h.power.Shutdown(ctx) }

func (h *hardware) Identify(context.Context, uint8) error { return nil }
func (h *hardware) IntrusionState(context.Context) (bool, error) {
	return false, hal.ErrNotSupported
}

func (h *hardware) SetBootFlags(ctx context.Context, f *types.BootOptionParam_BootFlags) error {
	h.flags.mu.Lock()
	h.flags.flags = *f
	boot := h.flags.boot()
	h.flags.mu.Unlock()
	if h.bootSet != nil {
		h.bootSet(ctx, boot)
	}
	return nil
}

func (h *hardware) GetBootFlags(context.Context) (*types.BootOptionParam_BootFlags, error) {
	h.flags.mu.Lock()
	defer h.flags.mu.Unlock()
	f := h.flags.flags
	return &f, nil
}

func (h *hardware) SetBootInfoAcknowledge(_ context.Context, a *types.BootOptionParam_BootInfoAcknowledge) error {
	h.flags.mu.Lock()
	defer h.flags.mu.Unlock()
	h.flags.ack = *a
	return nil
}

func (h *hardware) GetBootInfoAcknowledge(context.Context) (*types.BootOptionParam_BootInfoAcknowledge, error) {
	h.flags.mu.Lock()
	defer h.flags.mu.Unlock()
	a := h.flags.ack
	return &a, nil
}

func (h *hardware) GetConfig(context.Context) (*hal.IPConfig, error) { c := h.net; return &c, nil }
func (h *hardware) SetConfig(context.Context, *hal.IPConfig) error   { return hal.ErrNotSupported }

// ipConfig describes the BMC's LAN channel; its MAC is derived from the address, locally administered.
func ipConfig(addr netip.AddrPort) (hal.IPConfig, error) {
	if !addr.Addr().Is4() {
		return hal.IPConfig{}, fmt.Errorf("BMC address %s: IPv4 is wanted", addr)
	}
	ip := addr.Addr().As4()
	return hal.IPConfig{
		IP: ip, Mask: [4]byte(net.CIDRMask(24, 32)), Port: addr.Port(),
		MAC: [6]byte{0x02, 0xb1, ip[0], ip[1], ip[2], ip[3]},
	}, nil
}

// String names the override for logs.
func (b Boot) String() string { return [...]string{"firmware's order", "network", "disk"}[b] }
