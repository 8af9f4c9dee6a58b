package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"bloomery/checks"
	"bloomery/cloudinit"
	"bloomery/firmware/bmc"
	"bloomery/firmware/efiboot"
	"bloomery/images"
	"bloomery/internal/kmod"
	"bloomery/internal/run"
	"bloomery/inventory"
	"bloomery/network"
	"bloomery/partition"
	"bloomery/partition/apply"
	"bloomery/partition/wipe"
)

// vendorClass is what the agent calls itself in DHCP, so that a server can tell it from firmware.
const vendorClass = "bloomery-agent"

// live is the machine that the agent runs on.
type live struct {
	log    *slog.Logger
	runner run.Runner
	disks  partition.Disks
	links  sync.WaitGroup
}

func newLive(log *slog.Logger) *live {
	runner := run.Exec{}
	return &live{log: log, runner: runner, disks: partition.Disks{Runner: runner}}
}

// LoadDrivers loads packet sockets first, since DHCP needs them as soon as there is a NIC, and at last what no device asks for by name.
func (l *live) LoadDrivers(ctx context.Context) error {
	root, err := kmod.DefaultRoot()
	if err != nil {
		return err
	}
	modules, err := kmod.Open(root, kmod.Kernel{}, l.log)
	if err != nil {
		return err
	}
	errs := []error{modules.Load(ctx, "af_packet")}
	report, err := modules.LoadDrivers(ctx)
	errs = append(errs, err)
	for name, failure := range report.Failed {
		errs = append(errs, fmt.Errorf("driver %s: %w", name, failure))
	}
	errs = append(errs, modules.Load(ctx, "ext4"))
	if _, err := os.Stat("/sys/class/ipmi"); err == nil {
		errs = append(errs, modules.Load(ctx, "ipmi_devintf"))
	}
	if _, err := os.Stat("/sys/firmware/efi"); err == nil {
		errs = append(errs, modules.Load(ctx, "efivarfs"), mountOnce("efivarfs", string(efiboot.DefaultRoot), unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""))
	}
	return errors.Join(errs...)
}

// Network implements System.
func (l *live) Network(ctx, keep context.Context, say func(string)) error {
	links := network.New(network.Config{Log: l.log, VendorClass: vendorClass, Notify: func(e network.Event) { say(e.String()) }})
	ended := make(chan error, 1)
	l.links.Go(func() { ended <- links.Run(keep) })
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	leased := make(chan error, 1)
	l.links.Go(func() {
		_, err := links.First(ctx)
		leased <- err
	})
	select {
	case err := <-leased:
		return err
	case err := <-ended:
		return errors.Join(errors.New("the network has ended"), err)
	}
}

// SetTime implements System.
func (l *live) SetTime(hint, earliest time.Time) error { return network.SetTime(hint, earliest) }

// Collect implements Hardware.
func (l *live) Collect(ctx context.Context) (*inventory.Inventory, error) {
	return inventory.Collect(ctx, inventory.DefaultRoot(l.log))
}

// BMC implements Hardware.
func (l *live) BMC(ctx context.Context) (bmc.Info, error) { return bmc.LocalInfo(ctx) }

// Neighbours implements Hardware.
func (l *live) Neighbours(ctx context.Context, interfaces []string) (map[string]network.Neighbour, error) {
	return network.Neighbours(ctx, interfaces)
}

// CheckDisks implements Hardware.
func (l *live) CheckDisks(ctx context.Context, disks []inventory.Disk) ([]checks.Result, error) {
	refs := make([]checks.DiskRef, 0, len(disks))
	for _, d := range disks {
		refs = append(refs, checks.DiskRef{Name: d.Name, Path: d.Path, Serial: d.Serial, Transport: d.Transport})
	}
	return checks.Disks(ctx, l.runner, refs)
}

// Wipe implements Installer.
func (l *live) Wipe(ctx context.Context, t wipe.Target, level wipe.Level, progress wipe.Progress) (wipe.Result, error) {
	machine := apply.Machine{Disks: l.disks}
	return wipe.Wiper{Runner: run.Exec{Timeout: wipe.Limit(t.SizeBytes)}, Stop: machine.Stop}.Wipe(ctx, t, level, progress)
}

// WriteImage implements Installer.
func (l *live) WriteImage(ctx context.Context, dev string, o images.WriteOptions) (result images.Result, err error) {
	device, err := images.OpenDisk(dev)
	if err != nil {
		return images.Result{}, err
	}
	defer func() { err = errors.Join(err, device.Close()) }()
	o.Device = device
	return images.Write(ctx, o)
}

// GrowRoot implements Installer.
func (l *live) GrowRoot(ctx context.Context, dev string, number int) (partition.GrowResult, error) {
	return l.disks.GrowLast(ctx, dev, number)
}

// WriteSeed implements Installer.
func (l *live) WriteSeed(ctx context.Context, dev string, number int, seed cloudinit.NoCloud) error {
	path, err := l.disks.ShowPartition(dev, number)
	if err != nil {
		return err
	}
	return l.disks.WithMount(ctx, path, func(root string) error { return cloudinit.WriteSeed(root, seed) })
}

// AddSeed implements Installer.
func (l *live) AddSeed(ctx context.Context, dev string, seed partition.Seed) (partition.Info, error) {
	return l.disks.AddSeed(ctx, dev, seed)
}

// SetBootEntry implements Installer.
func (l *live) SetBootEntry(ctx context.Context, dev string, esp int, path, description string, keep bool) (efiboot.BootEntry, error) {
	info, err := partition.PartitionInfo(dev, esp)
	if err != nil {
		return efiboot.BootEntry{}, err
	}
	return efiboot.SetDisk(ctx, efiboot.DefaultRoot, efiboot.Entry{
		Description: description, PartitionNumber: uint32(info.Number), PartStartLBA: info.FirstLBA, PartSizeLBA: info.Sectors,
		PartitionGUID: info.GUID, Path: path, Keep: keep,
		// No BootNext: a handover by kexec would leave it unused, and it would win over the next job's network boot.
	})
}

// Reboot implements System. Everything that the agent mounted was unmounted by who mounted it.
func (l *live) Reboot() error {
	unix.Sync()
	return unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}
