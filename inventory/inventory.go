// Package inventory finds out what a machine is made of: ghw, sysfs, /proc, the SMBIOS tables and ethtool. Disks are read
// from sysfs and memory modules from SMBIOS because ghw takes the former's names from udev, which the agent has not, and
// has no modules on Linux.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// Root says where to look, so that tests can show another machine. LinkInfo may be nil: then what only a driver
// can tell (permanent MAC, firmware) is missing.
type Root struct {
	Sys      string // "/sys"
	Proc     string // "/proc"
	Dev      string // "/dev"
	LinkInfo LinkInfo
	Log      *slog.Logger // may be nil
}

// DefaultRoot is the running machine.
func DefaultRoot(log *slog.Logger) Root {
	return Root{Sys: "/sys", Proc: "/proc", Dev: "/dev", LinkInfo: Ethtool{}, Log: log}
}

// Inventory is a machine. All strings are printable, on one line, and at most 256 bytes long.
type Inventory struct {
	Product   Product   `json:"product"`
	BIOS      BIOS      `json:"bios"`
	Baseboard Baseboard `json:"baseboard"`
	Chassis   Chassis   `json:"chassis"`
	CPUs      []CPU     `json:"cpus"`
	Memory    Memory    `json:"memory"`
	Disks     []Disk    `json:"disks"`
	Volumes   []Volume  `json:"volumes,omitempty"` // md and dm devices, which are no disks
	NICs      []NIC     `json:"nics"`
	GPUs      []PCI     `json:"gpus,omitempty"`
	TPM       TPM       `json:"tpm"`
	BMC       *BMC      `json:"bmc,omitempty"`
	Problems  []Problem `json:"problems,omitempty"`
}

// Problem is a part that could not be read; the rest of the inventory stands.
type Problem struct {
	Component string `json:"component"` // "memory", "disk sda"
	Message   string `json:"message"`
}

// TPM is a trusted platform module; Version is 1 or 2.
type TPM struct {
	Present bool `json:"present"`
	Version int  `json:"version,omitempty"`
}

// BMC is the management controller. Collect only says that there is a device for it; the caller, who can talk to it, fills in the rest.
type BMC struct {
	Device       string `json:"device,omitempty"` // "/dev/ipmi0"
	Manufacturer string `json:"manufacturer,omitempty"`
	Product      string `json:"product,omitempty"`
	Firmware     string `json:"firmware,omitempty"`
	IPMIVersion  string `json:"ipmi_version,omitempty"`
	Address      string `json:"address,omitempty"`
	MAC          string `json:"mac,omitempty"`
}

// PCI is a device on the PCI bus. Vendor and Device are hexadecimal numbers such as "10de".
type PCI struct {
	Address string `json:"address"`
	Vendor  string `json:"vendor"`
	Device  string `json:"device"`
	Driver  string `json:"driver,omitempty"`
}

// Collect looks at everything. What cannot be read is in Problems; the error is for a context that ended and for a root
// that is no machine at all.
func Collect(ctx context.Context, root Root) (*Inventory, error) {
	if _, err := os.Stat(root.Sys); err != nil {
		return nil, fmt.Errorf("collect the inventory: %w", err)
	}
	c := &collector{root: root, inv: &Inventory{
		CPUs: []CPU{}, Memory: Memory{Modules: []Module{}}, Disks: []Disk{}, NICs: []NIC{}, // JSON: [] rather than null
	}}
	for _, part := range []struct {
		name    string
		collect func() error
	}{
		{"system", c.system},
		{"cpu", c.cpus},
		{"memory", c.memory},
		{"disks", c.disks},
		{"network", c.nics},
		{"pci", c.gpus},
		{"management", c.management},
	} {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("collect the inventory: %w", err)
		}
		c.problem(part.name, part.collect())
	}
	return c.inv, nil
}

type collector struct {
	root Root
	inv  *Inventory
}

// problem records an error, if there is one.
func (c *collector) problem(component string, err error) {
	if err == nil {
		return
	}
	c.inv.Problems = append(c.inv.Problems, Problem{Component: component, Message: clean(err.Error())})
	if c.root.Log != nil {
		c.root.Log.Warn("inventory is incomplete", "component", component, "error", err)
	}
}

func (c *collector) gpus() error {
	dir := filepath.Join(c.root.Sys, "bus/pci/devices")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		// PCI base class 03 is a display controller; 0300 with a BMC's graphics is one too.
		if class, _ := readText(filepath.Join(path, "class")); strings.HasPrefix(class, "0x03") {
			c.inv.GPUs = append(c.inv.GPUs, pciDevice(path))
		}
	}
	return err
}

func pciDevice(path string) PCI {
	hex := func(name string) string {
		text, _ := readText(filepath.Join(path, name))
		return strings.TrimPrefix(text, "0x")
	}
	return PCI{Address: filepath.Base(path), Vendor: hex("vendor"), Device: hex("device"), Driver: linkName(filepath.Join(path, "driver"))}
}

func (c *collector) management() error {
	if _, err := os.Stat(filepath.Join(c.root.Sys, "class/tpm/tpm0")); err == nil {
		c.inv.TPM.Present = true
		c.inv.TPM.Version = int(readNumber(filepath.Join(c.root.Sys, "class/tpm/tpm0/tpm_version_major")))
	}
	if _, err := os.Stat(filepath.Join(c.root.Dev, "ipmi0")); err == nil {
		c.inv.BMC = &BMC{Device: "/dev/ipmi0"}
	}
	return nil
}
