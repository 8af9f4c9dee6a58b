package inventory

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/safchain/ethtool"
)

// NIC is one physical network interface.
type NIC struct {
	Name         string     `json:"name"`
	MAC          string     `json:"mac"`
	PermanentMAC string     `json:"permanent_mac,omitempty"`
	Driver       string     `json:"driver,omitempty"`
	Firmware     string     `json:"firmware,omitempty"`
	SpeedMbps    int        `json:"speed_mbps,omitempty"` // 0 without a link, and for virtual hardware
	Link         bool       `json:"link"`
	MTU          int        `json:"mtu,omitempty"`
	PCIAddress   string     `json:"pci_address,omitempty"`
	Vendor       string     `json:"vendor,omitempty"`  // PCI vendor id: "8086"
	Product      string     `json:"product,omitempty"` // PCI device id
	NUMA         int        `json:"numa"`              // node, -1 if there is none
	LLDP         *Neighbour `json:"lldp,omitempty"`    // filled in by the caller, who listens
}

// Neighbour is the switch port at the other end of a NIC's cable.
type Neighbour struct {
	ChassisID  string `json:"chassis_id,omitempty"`
	PortID     string `json:"port_id,omitempty"`
	SystemName string `json:"system_name,omitempty"`
	PortVLAN   int    `json:"port_vlan,omitempty"`
}

// LinkInfo asks a driver. Empty strings are for what it does not know.
type LinkInfo interface {
	Ask(name string) (permanentMAC, firmware string, err error)
}

// Ethtool asks the running kernel's drivers (SIOCETHTOOL).
type Ethtool struct{}

// Ask implements LinkInfo.
func (Ethtool) Ask(name string) (permanentMAC, firmware string, err error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return "", "", fmt.Errorf("ask the driver of %s: %w", name, err)
	}
	defer e.Close()
	info, err := e.DriverInfo(name)
	if err != nil {
		return "", "", fmt.Errorf("ask the driver of %s: %w", name, err)
	}
	// Virtual drivers have no permanent address; that is no error.
	mac, err := e.PermAddr(name)
	if err != nil || mac == "00:00:00:00:00:00" {
		mac = ""
	}
	return mac, info.FwVersion, nil
}

func (c *collector) nics() error {
	dir := filepath.Join(c.root.Sys, "class/net")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if _, err := os.Stat(filepath.Join(path, "device")); err != nil {
			continue // lo, bridges, tunnels
		}
		if readNumber(filepath.Join(path, "type")) != 1 {
			continue // ARPHRD_ETHER only
		}
		c.inv.NICs = append(c.inv.NICs, c.nic(e.Name(), path))
	}
	return err
}

func (c *collector) nic(name, path string) NIC {
	n := NIC{
		Name: clean(name), MAC: optional(filepath.Join(path, "address")), Link: optional(filepath.Join(path, "carrier")) == "1",
		MTU: int(readNumber(filepath.Join(path, "mtu"))), SpeedMbps: int(max(readNumber(filepath.Join(path, "speed")), 0)),
		Driver: linkName(filepath.Join(path, "device/driver")), NUMA: -1,
	}
	device, err := filepath.EvalSymlinks(filepath.Join(path, "device"))
	if err != nil {
		c.problem("nic "+n.Name, err)
		return n
	}
	if pci := pciParent(device); pci != "" {
		p := pciDevice(pci)
		n.PCIAddress, n.Vendor, n.Product = p.Address, p.Vendor, p.Device
		n.NUMA = numaNode(pci)
	}
	if c.root.LinkInfo != nil {
		mac, firmware, err := c.root.LinkInfo.Ask(name)
		c.problem("nic "+n.Name, err)
		n.PermanentMAC, n.Firmware = clean(mac), clean(firmware)
		if n.Firmware == "N/A" {
			n.Firmware = ""
		}
	}
	return n
}

// pciParent is the directory of the nearest PCI device above path, "" if there is none.
func pciParent(path string) string {
	for ; len(path) > 1 && path != "."; path = filepath.Dir(path) {
		if isPCIAddress(filepath.Base(path)) {
			return path
		}
	}
	return ""
}

// isPCIAddress knows 0000:00:04.0 and, behind Intel VMD, 10000:e1:00.0.
func isPCIAddress(s string) bool {
	domain, rest, ok := strings.Cut(s, ":")
	if !ok || len(domain) < 4 || len(rest) != len("00:04.0") || rest[2] != ':' || rest[5] != '.' {
		return false
	}
	return strings.Trim(domain+rest, "0123456789abcdef:.") == ""
}

func numaNode(pci string) int {
	if optional(filepath.Join(pci, "numa_node")) == "" {
		return -1
	}
	return int(readNumber(filepath.Join(pci, "numa_node")))
}
