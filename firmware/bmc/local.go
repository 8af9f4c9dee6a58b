package bmc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/bougou/go-ipmi/pkg/client"
	"github.com/bougou/go-ipmi/pkg/command/app"
	"github.com/bougou/go-ipmi/pkg/types"
)

// lanChannels is how many channels are looked at for the BMC's LAN interface (IPMI 2.0 table 6-1
// leaves 1 to 11 to the implementation; every known BMC has it below 9).
const lanChannels = 8

// localTimeout bounds all of LocalInfo.
const localTimeout = 10 * time.Second

// Info is what a machine can learn of its own BMC.
type Info struct {
	Manufacturer string
	Firmware     string
	// IPAddress is the BMC's address on its LAN channel; invalid (zero) if it has none.
	IPAddress netip.Addr
	// MAC is in colon notation; empty if the BMC has no LAN channel.
	MAC string
}

// Local is the machine's own BMC, reached through the kernel's IPMI driver (ipmi_devintf).
type Local struct {
	c *client.Client
}

// OpenLocal opens /dev/ipmi0. It fails if the machine has no BMC or the driver is not loaded.
func OpenLocal(ctx context.Context) (*Local, error) {
	c, err := client.NewOpenClient()
	if err != nil {
		return nil, fmt.Errorf("opening the local BMC: %w", err)
	}
	if err := c.Connect(ctx); err != nil {
		return nil, fmt.Errorf("opening the local BMC (/dev/ipmi0; are ipmi_si and ipmi_devintf loaded?): %w", err)
	}
	return &Local{c: c}, nil
}

// Close closes the device.
func (l *Local) Close(ctx context.Context) error { return l.c.Close(ctx) }

// LocalInfo opens the local BMC, reads its Info and closes it.
func LocalInfo(ctx context.Context) (Info, error) {
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	l, err := OpenLocal(ctx)
	if err != nil {
		return Info{}, err
	}
	info, err := l.Info(ctx)
	return info, errors.Join(err, l.Close(ctx))
}

// Info reads the firmware's version and the LAN address (IPMI 2.0 sections 20.1 and 23.2). A BMC
// without a LAN channel is no error.
func (l *Local) Info(ctx context.Context) (Info, error) {
	id, err := l.c.GetDeviceID(ctx)
	if err != nil {
		return Info{}, fmt.Errorf("reading the local BMC's device id: %w", err)
	}
	dev := deviceInfo(id)
	info := Info{Manufacturer: dev.Manufacturer, Firmware: dev.Firmware}
	for ch := uint8(1); ch <= lanChannels; ch++ {
		mac := &types.LanConfigParam_MAC{}
		if err := l.c.GetLanConfigParamFor(ctx, ch, mac); err != nil {
			if isResponse(err) {
				continue // not a LAN channel
			}
			return info, fmt.Errorf("reading the local BMC's LAN channel %d: %w", ch, err)
		}
		info.MAC = mac.MAC.String()
		ip := &types.LanConfigParam_IP{}
		if err := l.c.GetLanConfigParamFor(ctx, ch, ip); err != nil {
			return info, fmt.Errorf("reading the local BMC's address on channel %d: %w", ch, err)
		}
		info.IPAddress = usableAddress(ip.IP)
		return info, nil
	}
	return info, nil
}

func usableAddress(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	if !ok || a.Unmap().IsUnspecified() {
		return netip.Addr{}
	}
	return a.Unmap()
}

func deviceInfo(r *app.GetDeviceIDResponse) DeviceInfo {
	return DeviceInfo{
		ManufacturerID: r.ManufacturerID,
		Manufacturer:   manufacturer(r.ManufacturerID),
		ProductID:      r.ProductID,
		// Minor is BCD: 85h is written "85" (section 20.1, byte 5).
		Firmware:    fmt.Sprintf("%d.%02x", r.MajorFirmwareRevision, r.MinorFirmwareRevision),
		AuxFirmware: hex.EncodeToString(r.AuxiliaryFirmwareRevision),
		IPMIVersion: fmt.Sprintf("%d.%d", r.MajorIPMIVersion, r.MinorIPMIVersion),
	}
}

// manufacturer names an IANA enterprise number, where the library's table has it.
func manufacturer(id uint32) string {
	const ipmiForum = 7154 // given as the example in section 20.1, worn by virtual BMCs
	name := types.OEM(id).String()
	switch {
	case id == ipmiForum:
		return "IPMI forum"
	case name == types.OEM(types.OEM_UNKNOWN).String():
		return fmt.Sprintf("enterprise %d", id)
	}
	return name
}
