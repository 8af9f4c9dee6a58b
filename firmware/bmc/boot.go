package bmc

import (
	"context"
	"fmt"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/types"
)

// SetBootDevice implements Driver by Set System Boot Options (IPMI 2.0 section 28.12, table 28-14):
// parameter 3 so that the flags outlive the 60 s after which a BMC may drop them, parameter 5 unless it
// is so already, and a read-back, because some BMCs accept flags they do not keep.
func (d *ipmiDriver) SetBootDevice(ctx context.Context, dev BootDevice) error {
	want, err := bootFlags(dev)
	if err != nil {
		return fmt.Errorf("BMC %s: %w", d.target, err)
	}
	return d.do(ctx, "setting the boot device to "+dev.Target.String(), func(ctx context.Context, c *client.Client) error {
		keep := &types.BootOptionParam_BMCBootFlagValidBitClear{DontClearOnCommandReceivedTimeout: true}
		if err := c.SetSystemBootOptionsParamFor(ctx, keep); err != nil && !isResponse(err) {
			return err
		}
		have, err := bootFlagsNow(ctx, c)
		if err != nil || (have != nil && sameFlags(have, want)) {
			return err
		}
		if err := c.SetSystemBootOptionsParamFor(ctx, want); err != nil {
			return err
		}
		if have, err = bootFlagsNow(ctx, c); err != nil || have == nil || sameFlags(have, want) {
			return err
		}
		return fmt.Errorf("the BMC accepted the boot flags but holds others: wants %s, has %s", describeFlags(want), describeFlags(have))
	})
}

func bootFlags(dev BootDevice) (*types.BootOptionParam_BootFlags, error) {
	f := &types.BootOptionParam_BootFlags{
		BootFlagsValid: dev.Target != BootDefault,
		Persist:        !dev.Once && dev.Target != BootDefault,
		BIOSBootType:   types.BIOSBootType(dev.UEFI),
	}
	switch dev.Target {
	case BootDefault:
		f.BootDeviceSelector = types.BootDeviceSelectorNoOverride
	case BootNetwork:
		f.BootDeviceSelector = types.BootDeviceSelectorForcePXE
	case BootDisk:
		f.BootDeviceSelector = types.BootDeviceSelectorForceHardDrive
	default:
		return nil, fmt.Errorf("boot device: target %v is not known; use BootDefault, BootNetwork or BootDisk", dev.Target)
	}
	return f, nil
}

// bootFlagsNow reads parameter 5; nil from a BMC that does not tell, which is believed.
func bootFlagsNow(ctx context.Context, c *client.Client) (*types.BootOptionParam_BootFlags, error) {
	var got types.BootOptionParam_BootFlags
	err := c.GetSystemBootOptionsParamFor(ctx, &got)
	if isResponse(err) {
		return nil, nil
	}
	return &got, err
}

func sameFlags(a, b *types.BootOptionParam_BootFlags) bool {
	return a.BootFlagsValid == b.BootFlagsValid &&
		(!a.BootFlagsValid || a.BootDeviceSelector == b.BootDeviceSelector && a.Persist == b.Persist && a.BIOSBootType == b.BIOSBootType)
}

func describeFlags(f *types.BootOptionParam_BootFlags) string {
	return fmt.Sprintf("[valid=%t device=%d persistent=%t uefi=%t]", f.BootFlagsValid, f.BootDeviceSelector, f.Persist, bool(f.BIOSBootType))
}
