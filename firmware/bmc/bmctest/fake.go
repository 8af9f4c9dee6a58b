// Package bmctest is a BMC for tests of those who use one: it keeps power and boot device in
// memory, logs every action and fails on demand.
package bmctest

import (
	"context"
	"fmt"
	"sync"

	"bloomery/firmware/bmc"
)

// Action is one call that changed something or tried to.
type Action struct {
	// Name is "on", "off", "reset" or "boot-device".
	Name string
	// Boot is set for "boot-device".
	Boot bmc.BootDevice
	// Err is what the call returned.
	Err error
}

// Fake is a bmc.Driver without a BMC. The zero value is a machine that is off. Its methods may be
// called at the same time.
type Fake struct {
	mu      sync.Mutex
	on      bool
	boot    bmc.BootDevice
	actions []Action
	fail    map[string][]error
	hang    map[string]bool
	closed  bool
	onPower func(on bool, boot bmc.BootDevice)
}

var _ bmc.Driver = (*Fake)(nil)

// New returns a machine that is off. onPower, if not nil, is called without locks held after each
// switch to on (reset included) and to off; boot is the device that this start uses.
func New(onPower func(on bool, boot bmc.BootDevice)) *Fake { return &Fake{onPower: onPower} }

// Fail makes the next calls of that name ("on", "off", "reset", "boot-device", "status", "device-id")
// return these errors, one a call, without effect. A nil error among them lets one call pass.
func (f *Fake) Fail(name string, errs ...error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.fail = make(map[string][]error)
	}
	f.fail[name] = append(f.fail[name], errs...)
}

// Hang makes calls of that name wait for their context's end, as a stuck BMC does, until hang is false.
func (f *Fake) Hang(name string, hang bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hang == nil {
		f.hang = make(map[string]bool)
	}
	f.hang[name] = hang
}

// Actions returns a copy of what was done so far, oldest first.
func (f *Fake) Actions() []Action {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Action(nil), f.actions...)
}

// Names returns the actions' names, with the target after "boot-device:".
func (f *Fake) Names() []string {
	var names []string
	for _, a := range f.Actions() {
		n := a.Name
		if n == "boot-device" {
			n += ":" + a.Boot.Target.String()
		}
		names = append(names, n)
	}
	return names
}

// Power reports the power without counting as a call.
func (f *Fake) Power() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.on
}

// SetPower changes the power behind the driver's back, as a button or a power cut does.
func (f *Fake) SetPower(on bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.on = on
}

// Boot returns the boot device that the next start uses.
func (f *Fake) Boot() bmc.BootDevice {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.boot
}

// Closed reports whether Close was called.
func (f *Fake) Closed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.closed
}

// enter waits if the call is to hang and returns the injected failure.
func (f *Fake) enter(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("fake BMC: %s: %w", name, err)
	}
	f.mu.Lock()
	hang := f.hang[name]
	var err error
	if q := f.fail[name]; len(q) > 0 {
		err, f.fail[name] = q[0], q[1:]
	}
	f.mu.Unlock()
	if hang {
		<-ctx.Done()
		return fmt.Errorf("fake BMC: %s: %w: %w", name, bmc.ErrNoAnswer, ctx.Err())
	}
	return err
}

// PowerStatus implements bmc.Driver.
func (f *Fake) PowerStatus(ctx context.Context) (bool, error) {
	if err := f.enter(ctx, "status"); err != nil {
		return false, err
	}
	return f.Power(), nil
}

// PowerOn implements bmc.Driver.
func (f *Fake) PowerOn(ctx context.Context) error {
	return f.power(ctx, "on", func() (bool, error) { was := f.on; f.on = true; return !was, nil })
}

// PowerOff implements bmc.Driver.
func (f *Fake) PowerOff(ctx context.Context) error {
	return f.power(ctx, "off", func() (bool, error) { was := f.on; f.on = false; return was, nil })
}

// Reset implements bmc.Driver.
func (f *Fake) Reset(ctx context.Context) error {
	return f.power(ctx, "reset", func() (bool, error) {
		if !f.on {
			return false, fmt.Errorf("fake BMC: resetting: %w", bmc.ErrPoweredOff)
		}
		return true, nil
	})
}

// power runs change under the lock; it reports whether the machine started or stopped.
func (f *Fake) power(ctx context.Context, name string, change func() (changed bool, err error)) error {
	err := f.enter(ctx, name)
	f.mu.Lock()
	changed := false
	if err == nil {
		changed, err = change()
	}
	f.actions = append(f.actions, Action{Name: name, Err: err})
	on, boot, notify := f.on, f.boot, f.onPower
	if changed && on && f.boot.Once {
		f.boot = bmc.BootDevice{}
	}
	f.mu.Unlock()
	if changed && notify != nil {
		notify(on, boot)
	}
	return err
}

// SetBootDevice implements bmc.Driver.
func (f *Fake) SetBootDevice(ctx context.Context, d bmc.BootDevice) error {
	err := f.enter(ctx, "boot-device")
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.boot = d
	}
	f.actions = append(f.actions, Action{Name: "boot-device", Boot: d, Err: err})
	return err
}

// DeviceID implements bmc.Driver.
func (f *Fake) DeviceID(ctx context.Context) (bmc.DeviceInfo, error) {
	if err := f.enter(ctx, "device-id"); err != nil {
		return bmc.DeviceInfo{}, err
	}
	return bmc.DeviceInfo{ManufacturerID: 7154, Manufacturer: "IPMI forum", ProductID: 1, Firmware: "1.00", IPMIVersion: "2.0"}, nil
}

// Close implements bmc.Driver.
func (f *Fake) Close(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	return nil
}
