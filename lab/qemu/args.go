// Package qemu runs one QEMU machine: its command line, its QMP connection and its end.
package qemu

import (
	"fmt"
	"strconv"
)

// Boot says which device the firmware is made to start.
type Boot int

// Boot overrides. BootNone leaves the choice to the BootOrder in the firmware's variables.
const (
	BootNone Boot = iota
	BootNetwork
	BootDisk
)

// Spec is a machine. All paths are absolute.
type Spec struct {
	Name      string
	Accel     string // "tcg" or "kvm"
	CPUs      int
	MemoryMiB int
	// UUID, Serial and Product are for SMBIOS.
	UUID, Serial, Product string
	// Code is OVMF's code image, Vars the machine's own copy of its variables.
	Code, Vars string
	Disks      []Disk
	NICs       []NIC
	// Console, QMP and BMC are unix sockets that somebody listens on before QEMU starts.
	Console, QMP, BMC string
	// TPM is a TPM emulator's socket; empty without one.
	TPM string
}

// Disk is a raw file as a disk.
type Disk struct {
	Bus    string // "nvme", "virtio" or "scsi"
	Path   string
	Serial string
	WWN    string // in hexadecimal, NVMe and SCSI only
	Sector int    // bytes, 512 or 4096
	// Pulled leaves the disk out; the others keep their slots.
	Pulled bool
}

// NIC is a virtio card that connects to a listening unix socket, 4-byte big-endian lengths before frames.
type NIC struct {
	MAC    string
	Socket string
}

// PCI slots are fixed so that the firmware's device paths, and with them its boot entries, stay the
// same over power cycles.
const (
	firstNICSlot  = 0x03
	firstDiskSlot = 0x08
	rngSlot       = 0x10
)

// NICID and DiskID name devices for QMP.
func NICID(i int) string { return fmt.Sprintf("nic%d", i) }

// DiskID is the id of the i-th disk's device.
func DiskID(i int) string { return fmt.Sprintf("disk%d", i) }

// driveID is the id of the i-th disk's backend: devices of some buses hand theirs to a child of another name.
func driveID(i int) string { return fmt.Sprintf("drive%d", i) }

// NetdevID is the id of the i-th NIC's backend, for set_link.
func NetdevID(i int) string { return fmt.Sprintf("net%d", i) }

// Args is QEMU's command line without the program's name. It holds no secret.
func Args(s Spec, boot Boot) []string {
	a := []string{
		"-name", "guest=" + s.Name,
		"-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35,smm=off", "-cpu", "max",
		"-accel", accel(s.Accel),
		"-smp", strconv.Itoa(s.CPUs), "-m", strconv.Itoa(s.MemoryMiB),
		"-uuid", s.UUID,
		// A guest's reset and power-off stop the machine, so that the supervisor sees which it was.
		"-action", "reboot=shutdown,shutdown=pause",
		"-rtc", "base=utc",
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + s.Code,
		"-drive", "if=pflash,format=raw,unit=1,file=" + s.Vars,
		// Debian's OVMF tries PXE over IPv4 and IPv6 before HTTP boot, minutes that nobody needs.
		"-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=n",
		"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=n",
		"-object", "rng-random,id=rng0,filename=/dev/urandom",
		"-device", fmt.Sprintf("virtio-rng-pci,rng=rng0,addr=%#x", rngSlot),
		"-chardev", "socket,id=console,server=off,path=" + s.Console,
		"-serial", "chardev:console",
		"-chardev", "socket,id=qmp,server=off,path=" + s.QMP,
		"-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=bmc,server=off,reconnect=1,path=" + s.BMC,
		"-device", "ipmi-bmc-extern,id=bmc0,chardev=bmc",
		"-device", "isa-ipmi-kcs,bmc=bmc0",
	}
	a = append(a, smbios(s)...)
	if s.TPM != "" {
		a = append(a, TPMArgs(s.TPM)...)
	}
	for i, d := range s.Disks {
		if d.Pulled {
			continue
		}
		a = append(a, disk(i, d, diskIndex(s, boot, i))...)
	}
	for i, n := range s.NICs {
		a = append(a,
			"-netdev", fmt.Sprintf("stream,id=%s,server=off,addr.type=unix,addr.path=%s", NetdevID(i), n.Socket),
			// No option ROM: OVMF has a virtio driver of its own.
			"-device", fmt.Sprintf("virtio-net-pci,id=%s,netdev=%s,mac=%s,addr=%#x,romfile=%s",
				NICID(i), NetdevID(i), n.MAC, firstNICSlot+i, bootIndex(boot == BootNetwork, i)))
	}
	return a
}

// accel bounds TCG's translation cache, which else takes a share of the host's memory.
func accel(name string) string {
	if name == "tcg" {
		return "tcg,thread=multi,tb-size=128"
	}
	return name
}

// diskIndex is a disk's place in the boot order. After a network boot that got no answer the firmware goes on to the disks.
func diskIndex(s Spec, boot Boot, i int) string {
	if boot == BootNetwork {
		i += len(s.NICs)
	}
	return bootIndex(boot == BootDisk || boot == BootNetwork, i)
}

// bootIndex is a device's place in the boot order if it has one.
func bootIndex(wanted bool, i int) string {
	if !wanted {
		return ""
	}
	return fmt.Sprintf(",bootindex=%d", i)
}

func disk(i int, d Disk, index string) []string {
	id := DiskID(i)
	// cache=unsafe: the host's page cache outlives QEMU, and a lab's disks need not outlive the host.
	drive := []string{"-drive", fmt.Sprintf("if=none,id=%s,format=raw,cache=unsafe,discard=unmap,file=%s", driveID(i), d.Path)}
	blocks := fmt.Sprintf("drive=drive%d", i)
	if d.Sector != 0 && d.Sector != 512 {
		blocks += fmt.Sprintf(",logical_block_size=%d,physical_block_size=%d", d.Sector, d.Sector)
	}
	addr := fmt.Sprintf("addr=%#x", firstDiskSlot+i)
	switch {
	case d.Bus == "virtio":
		return append(drive, "-device", fmt.Sprintf("virtio-blk-pci,id=%s,%s,serial=%s,%s%s", id, blocks, d.Serial, addr, index))
	case d.Bus == "scsi":
		if d.WWN != "" {
			blocks += ",wwn=0x" + d.WWN
		}
		return append(drive,
			"-device", fmt.Sprintf("virtio-scsi-pci,id=%shba,%s", id, addr),
			"-device", fmt.Sprintf("scsi-hd,id=%s,bus=%shba.0,%s,serial=%s%s", id, id, blocks, d.Serial, index))
	case d.WWN != "":
		return append(drive,
			"-device", fmt.Sprintf("nvme,id=%s,serial=%s,%s", id, d.Serial, addr),
			"-device", fmt.Sprintf("nvme-ns,id=%sns,bus=%s,%s,eui64=0x%s%s", id, id, blocks, d.WWN, index))
	}
	return append(drive, "-device", fmt.Sprintf("nvme,id=%s,%s,serial=%s,%s%s", id, blocks, d.Serial, addr, index))
}

// smbios describes firmware, system, board, chassis and memory (DSP0134 types 0 to 3 and 17).
func smbios(s Spec) []string {
	const maker = "Bloomery"
	return []string{
		"-smbios", "type=0,vendor=" + maker + ",version=1.0.0,date=01/01/2026,release=1.0,uefi=on",
		"-smbios", fmt.Sprintf("type=1,manufacturer=%s,product=%s,version=1,serial=%s,uuid=%s,sku=LAB,family=Lab", maker, s.Product, s.Serial, s.UUID),
		"-smbios", fmt.Sprintf("type=2,manufacturer=%s,product=Lab Board,version=1,serial=%sB", maker, s.Serial),
		"-smbios", fmt.Sprintf("type=3,manufacturer=%s,version=1,serial=%sC", maker, s.Serial),
		"-smbios", fmt.Sprintf("type=17,loc_pfx=DIMM,bank=0,manufacturer=%s,serial=%sM,part=LAB-DIMM,speed=3200", maker, s.Serial),
	}
}
