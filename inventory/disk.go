package inventory

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// Disk is one whole block device of hardware. Partitions, loop, ram, zram, md, dm, optical and floppy devices are none.
type Disk struct {
	Name           string `json:"name"`              // "nvme0n1"
	Path           string `json:"path"`              // "/dev/nvme0n1"
	ByPath         string `json:"by_path,omitempty"` // as udev would name it: "pci-0000:00:04.0-nvme-1"
	Model          string `json:"model,omitempty"`
	Vendor         string `json:"vendor,omitempty"`
	Serial         string `json:"serial,omitempty"`
	WWN            string `json:"wwn,omitempty"` // "0x5002538e…", "eui.0025…", "nvme.1b36-…", "uuid.…"
	Firmware       string `json:"firmware,omitempty"`
	SizeBytes      uint64 `json:"size_bytes"`
	LogicalSector  int    `json:"logical_sector"`
	PhysicalSector int    `json:"physical_sector"`
	Rotational     bool   `json:"rotational"`
	Transport      string `json:"transport"` // nvme, sata, sas, scsi, virtio, usb, mmc; over a network nvmeof, iscsi, fc; "" if unknown
	Removable      bool   `json:"removable"`
	ReadOnly       bool   `json:"read_only"`
	NUMA           int    `json:"numa"` // node of its controller, -1 if there is none
}

// Volume is an md or device-mapper device that is active already.
type Volume struct {
	Name      string   `json:"name"`
	Kind      string   `json:"kind"`            // "md" or "dm"
	Label     string   `json:"label,omitempty"` // the device-mapper's name, the array's level
	SizeBytes uint64   `json:"size_bytes"`
	Members   []string `json:"members,omitempty"`
}

// sectorSize is the unit of /sys/block/*/size, whatever the disk's own sectors are.
const sectorSize = 512

func (c *collector) disks() error {
	dir := filepath.Join(c.root.Sys, "block")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		name, path := e.Name(), filepath.Join(dir, e.Name())
		switch {
		case strings.HasPrefix(name, "md"), strings.HasPrefix(name, "dm-"):
			c.inv.Volumes = append(c.inv.Volumes, volume(name, path))
		case isDisk(name, path):
			c.inv.Disks = append(c.inv.Disks, c.disk(name, path))
		}
	}
	return err
}

func isDisk(name, path string) bool {
	for _, prefix := range []string{"loop", "ram", "zram", "sr", "fd", "nbd", "mtdblock", "zd", "rbd", "drbd", "bcache"} {
		if rest, ok := strings.CutPrefix(name, prefix); ok && strings.Trim(rest, "0123456789") == "" {
			return false
		}
	}
	if strings.HasPrefix(name, "mmcblk") && (strings.Contains(name, "boot") || strings.Contains(name, "rpmb")) {
		return false
	}
	// The paths of an NVMe multipath disk (nvme0c0n1) are hidden behind it.
	return optional(filepath.Join(path, "hidden")) != "1"
}

func (c *collector) disk(name, path string) Disk {
	at := func(file string) string { return filepath.Join(path, file) }
	d := Disk{
		Name: clean(name), Path: filepath.Join("/dev", name), SizeBytes: uint64(max(readNumber(at("size")), 0)) * sectorSize,
		LogicalSector: int(readNumber(at("queue/logical_block_size"))), PhysicalSector: int(readNumber(at("queue/physical_block_size"))),
		Rotational: optional(at("queue/rotational")) == "1", Removable: optional(at("removable")) == "1", ReadOnly: optional(at("ro")) == "1",
		Model: optional(at("device/model")), Vendor: optional(at("device/vendor")), NUMA: -1,
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		c.problem("disk "+d.Name, err)
		real = path
	}
	if strings.Contains(real, "/nvme-subsystem/") {
		real = throughController(real, name)
	}
	d.Transport = transport(name, real)
	switch d.Transport {
	case "nvme", "nvmeof":
		d.Serial, d.Firmware = optional(at("device/serial")), optional(at("device/firmware_rev"))
		d.WWN = optional(at("wwid"))
	case "mmc":
		d.Model, d.Serial = optional(at("device/name")), optional(at("device/serial"))
	default:
		d.Serial, d.Firmware = optional(at("serial")), optional(at("device/rev"))
		if strings.HasPrefix(d.Vendor, "0x") {
			d.Vendor = "" // a virtio device's number
		}
		c.scsiIdentity(&d, path)
	}
	if d.Vendor == "ATA" {
		d.Vendor = "" // what libata writes for every maker
	}
	if pci := pciParent(real); pci != "" {
		d.NUMA = numaNode(pci)
		d.ByPath = byPath(filepath.Base(pci), d.Transport, real)
	}
	if d.SizeBytes == 0 && !d.Removable {
		c.problem("disk "+d.Name, errors.New("it has no size: the medium or the controller is broken"))
	}
	return d
}

// throughController gives an NVMe disk that may have several paths, and so lies below a virtual subsystem, the place that
// it has below its first PCI controller.
func throughController(real, name string) string {
	controllers, _ := filepath.Glob(filepath.Join(filepath.Dir(real), "nvme[0-9]*")) // the pattern is well-formed
	for _, controller := range controllers {
		if place, err := filepath.EvalSymlinks(controller); err == nil && pciParent(place) != "" {
			return filepath.Join(place, name)
		}
	}
	return real
}

// scsiIdentity takes serial and WWN from the vital product data that the kernel keeps (SPC-4, sections 7.8.4 and 7.8.15).
func (c *collector) scsiIdentity(d *Disk, path string) {
	if page, err := readLimited(filepath.Join(path, "device/vpd_pg80")); err == nil && d.Serial == "" {
		d.Serial = unitSerial(page)
	}
	if page, err := readLimited(filepath.Join(path, "device/vpd_pg83")); err == nil {
		d.WWN = unitName(page)
	}
	if wwid := optional(filepath.Join(path, "device/wwid")); d.WWN == "" && !strings.HasPrefix(wwid, "t10.") {
		d.WWN = wwnForm(wwid)
	}
}

// wwnForm writes a NAA name as lsblk and udev do.
func wwnForm(wwid string) string {
	if rest, ok := strings.CutPrefix(wwid, "naa."); ok {
		return "0x" + rest
	}
	return wwid
}

func transport(name, real string) string {
	switch {
	case strings.HasPrefix(name, "nvme") && (strings.Contains(real, "/nvme-fabrics/") || strings.Contains(real, "/nvme-subsystem/")):
		// Below the fabrics' control device, or a subsystem that has no PCI controller to stand in for it.
		return "nvmeof"
	case strings.HasPrefix(name, "nvme"):
		return "nvme"
	case strings.HasPrefix(name, "mmcblk"):
		return "mmc"
	case strings.Contains(real, "/usb"):
		return "usb"
	case strings.Contains(real, "/session"):
		return "iscsi"
	case strings.Contains(real, "/rport-"):
		return "fc"
	case strings.Contains(real, "/virtio"):
		return "virtio"
	case strings.Contains(real, "/ata"):
		return "sata"
	case strings.Contains(real, "/end_device-"), strings.Contains(real, "/sas_"):
		return "sas"
	case strings.Contains(real, "/target"):
		return "scsi"
	default:
		return ""
	}
}

// byPath follows udev's path_id builtin for the transports whose names are simple; "" for the others.
func byPath(pci, transport, real string) string {
	base := "pci-" + pci
	find := func(pattern string) string {
		if m := regexp.MustCompile(pattern).FindStringSubmatch(real); m != nil {
			return m[1]
		}
		return ""
	}
	switch transport {
	case "virtio":
		if find(`/host\d+/target[\d:]+/\d+:(\d+:\d+:\d+)/`) == "" {
			return base
		}
	case "nvme":
		if ns := find(`/nvme\d+n(\d+)$`); ns != "" {
			return base + "-nvme-" + ns
		}
	case "sata":
		// ata2 is the second of all ports of the machine; udev counts each controller's own, which port_no tells.
		if port := find(`(.*/ata\d+)/`); port != "" {
			name := filepath.Base(port)
			if no := optional(filepath.Join(port, "ata_port", name, "port_no")); no != "" {
				return base + "-ata-" + no
			}
		}
	}
	return ""
}

func volume(name, path string) Volume {
	v := Volume{Name: clean(name), Kind: "md", SizeBytes: uint64(max(readNumber(filepath.Join(path, "size")), 0)) * sectorSize}
	v.Label = optional(filepath.Join(path, "md/level"))
	if strings.HasPrefix(name, "dm-") {
		v.Kind, v.Label = "dm", optional(filepath.Join(path, "dm/name"))
	}
	members, _ := os.ReadDir(filepath.Join(path, "slaves"))
	for _, m := range members {
		v.Members = append(v.Members, clean(m.Name()))
	}
	return v
}
