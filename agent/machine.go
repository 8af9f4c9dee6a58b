package agent

import (
	"context"
	"errors"
	"strings"
	"time"

	"bloomery/checks"
	"bloomery/cloudinit"
	"bloomery/firmware/bmc"
	"bloomery/firmware/efiboot"
	"bloomery/images"
	"bloomery/inventory"
	"bloomery/network"
	"bloomery/partition"
	"bloomery/partition/apply"
	"bloomery/partition/layout"
	"bloomery/partition/system"
	"bloomery/partition/wipe"
)

// System is what the boot sequence needs of the kernel.
type System interface {
	// Mount makes the file systems that init has not, and refuses a machine without the memory for the agent's work.
	Mount(ctx context.Context) error
	// LoadDrivers loads the driver of every device; what failed is in the error, which is no reason to stop.
	LoadDrivers(ctx context.Context) error
	// Network brings up the links and returns once there is an address. The links are kept until keep ends.
	Network(ctx, keep context.Context, say func(line string)) error
	// SetTime sets the clock to a hint that is not before earliest.
	SetTime(hint, earliest time.Time) error
	// CheckFiles compares the image's files with its list of checksums: deep reads every byte, otherwise only their presence is looked at.
	CheckFiles(ctx context.Context, deep bool) error
	// Reboot restarts the machine through its firmware. It returns only with an error.
	Reboot() error
	// KexecBlocked says why the running kernel may not start another one; "" when nothing speaks against it.
	KexecBlocked() string
	// Kexec starts the kernel that was loaded last, without the firmware. It returns only with an error.
	Kexec() error
}

// Hardware finds out what the machine is made of.
type Hardware interface {
	// Collect reads the machine as it is now, the disks included.
	Collect(ctx context.Context) (*inventory.Inventory, error)
	// BMC asks the machine's own BMC.
	BMC(ctx context.Context) (bmc.Info, error)
	// Neighbours listens for LLDP until ctx ends or every interface has heard something.
	Neighbours(ctx context.Context, interfaces []string) (map[string]network.Neighbour, error)
	CheckDisks(ctx context.Context, disks []inventory.Disk) ([]checks.Result, error)
}

// Installer acts on a disk that was found by serial or WWN a moment ago.
type Installer interface {
	Wipe(ctx context.Context, t wipe.Target, level wipe.Level, progress wipe.Progress) (wipe.Result, error)
	// WriteImage runs images.Write with the device opened exclusively.
	WriteImage(ctx context.Context, dev string, o images.WriteOptions) (images.Result, error)
	GrowRoot(ctx context.Context, dev string, number int) (partition.GrowResult, error)
	WriteSeed(ctx context.Context, dev string, number int, seed cloudinit.NoCloud) error
	AddSeed(ctx context.Context, dev string, seed partition.Seed) (partition.Info, error)
	// SetBootEntry makes the firmware start a loader first; keep leaves the entries that it made earlier behind it.
	SetBootEntry(ctx context.Context, dev string, esp int, path, description string, keep bool) (efiboot.BootEntry, error)
	// Layout is for the disks of a job's plan.
	Layout(t layoutTarget) LayoutInstaller
	// LoadKernel makes a kernel of the installed system, in partition number of dev, what System.Kexec starts.
	LoadKernel(ctx context.Context, dev string, number int, kernel installedKernel) error
}

// LayoutInstaller carries out a job's plan. One goroutine at a time uses it; each call activates what a restart has left inactive.
type LayoutInstaller interface {
	// Apply makes the disks what the plan says, keeps what is there as planned, and reads everything back; progress is told of each action before it begins.
	Apply(ctx context.Context, progress func(a layout.Action, done, total int)) (apply.Report, error)
	// Renew makes the plan's mounted filesystems anew, empty.
	Renew(ctx context.Context) error
	// Unpack runs images.Unpack with the plan's filesystems mounted.
	Unpack(ctx context.Context, o images.UnpackOptions) (images.UnpackResult, error)
	// Configure makes the unpacked system start from the plan's disks with a kernel of the image.
	Configure(ctx context.Context, k installedKernel) (system.Boot, error)
	WriteSeed(ctx context.Context, seed cloudinit.NoCloud) error
	// LoadKernel makes a kernel of the installed system what System.Kexec starts.
	LoadKernel(ctx context.Context, k installedKernel) error
}

// Watchdog is petted while the agent lives.
type Watchdog interface {
	Pet() error
	// Disarm stops it before a restart that is meant.
	Disarm() error
}

// identity is what a machine is recognised by at the enrolment.
type identity struct {
	uuid, serial string
	macs         []string
}

func identify(inv *inventory.Inventory) (identity, error) {
	id := identity{uuid: strings.ToLower(inv.Product.UUID), serial: inv.Product.Serial}
	for _, nic := range inv.NICs {
		mac := nic.PermanentMAC
		if mac == "" {
			mac = nic.MAC
		}
		if mac != "" {
			id.macs = append(id.macs, strings.ToLower(mac))
		}
	}
	if id.uuid == "" {
		return id, errors.New("the machine's firmware gives no system UUID (SMBIOS type 1)")
	}
	if len(id.macs) == 0 {
		return id, errors.New("the machine has no network interface with a MAC address")
	}
	return id, nil
}
