package inventory

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
)

// Memory is what is plugged in and what the kernel has of it. A machine without SMBIOS type 17 has no modules and TotalBytes 0.
type Memory struct {
	TotalBytes  uint64   `json:"total_bytes"`  // sum of the modules
	UsableBytes uint64   `json:"usable_bytes"` // MemTotal of /proc/meminfo
	Slots       int      `json:"slots"`
	Modules     []Module `json:"modules"`
}

// Module is one filled slot (DSP0134, section 7.18).
type Module struct {
	Slot       string `json:"slot"`
	Bank       string `json:"bank,omitempty"`
	SizeBytes  uint64 `json:"size_bytes"`
	Type       string `json:"type,omitempty"`           // "DDR5"
	Speed      int    `json:"speed_mts,omitempty"`      // the module's own, MT/s
	Configured int    `json:"configured_mts,omitempty"` // what it runs at, MT/s
	Vendor     string `json:"vendor,omitempty"`
	Serial     string `json:"serial,omitempty"`
	Part       string `json:"part,omitempty"`
	Rank       int    `json:"rank,omitempty"`
	ECC        bool   `json:"ecc"` // total width is more than data width
}

func (c *collector) memory() error {
	usable, err := memTotal(filepath.Join(c.root.Proc, "meminfo"))
	c.problem("memory", err)
	c.inv.Memory.UsableBytes = usable
	table, err := readLimited(filepath.Join(c.root.Sys, "firmware/dmi/tables/DMI"))
	if err != nil {
		return fmt.Errorf("read the SMBIOS table: %w", err)
	}
	structures, err := parseSMBIOS(table)
	// A broken table still has what came before the damage.
	for _, s := range structures {
		if s.kind != smbiosMemoryDevice {
			continue
		}
		c.inv.Memory.Slots++
		if m, ok := s.module(); ok {
			c.inv.Memory.Modules = append(c.inv.Memory.Modules, m)
			c.inv.Memory.TotalBytes += m.SizeBytes
		}
	}
	return err
}

func memTotal(path string) (uint64, error) {
	data, err := readLimited(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) == 3 && f[0] == "MemTotal:" {
			kib, err := strconv.ParseUint(f[1], 10, 54)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no MemTotal in %s", path)
}
