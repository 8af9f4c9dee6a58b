package lab

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
)

// Values of Default.
const (
	defaultRack      = "lab"
	defaultCPUs      = 2
	defaultMemoryMiB = 512
	defaultDisk      = 8 * GiB
	defaultSector    = 512
	maxMachines      = 64
)

// Default is a rack of n machines (1 to 64), each with one NVMe disk of 8 GiB and one NIC, on networks
// provisioning (VLAN 100), quarantine (999) and customer-a (200, 10.77.0.0/24). All identities follow
// from the names, so two calls give the same rack. Passwords are left for Up to make up.
func Default(n int) Config {
	c := Config{Name: defaultRack}
	for i := 1; i <= n; i++ {
		c.Machines = append(c.Machines, Machine{Name: fmt.Sprintf("m%d", i)})
	}
	c.fill()
	return c
}

// fill puts the default wherever a value was left out.
func (c *Config) fill() {
	setIfEmpty(&c.Name, defaultRack)
	setIfEmpty(&c.Accel, "tcg")
	if c.Coordinators == 0 {
		c.Coordinators = 1
	}
	setIfEmpty(&c.Switch.Name, "tor1")
	setIfEmpty(&c.Switch.Address, "10.65.0.1:9339")
	setIfEmpty(&c.Switch.Username, "bloomery")
	if !c.Provisioning.Address.IsValid() {
		c.Provisioning.Address = netip.MustParsePrefix("10.66.0.1/24")
		setIfEmpty(&c.Provisioning.Range, "10.66.0.100-10.66.0.199")
	}
	if len(c.Networks) == 0 {
		c.Networks = []Network{
			{Name: "provisioning", VLAN: 100},
			{Name: "quarantine", VLAN: 999},
			{
				Name: "customer-a", VLAN: 200, Prefix: netip.MustParsePrefix("10.77.0.0/24"), Gateway: netip.MustParseAddr("10.77.0.1"),
				Range: "10.77.0.100-10.77.0.199", Customer: netip.MustParseAddr("10.77.0.10"),
			},
		}
	}
	port := 0
	for i := range c.Machines {
		c.Machines[i].fill(c.Name, i+1, &port)
	}
}

// fill completes the machine that stands at place number (from 1); port counts the switch's ports.
func (m *Machine) fill(rack string, number int, port *int) {
	id := sha256.Sum256([]byte(rack + "/" + m.Name))
	if m.CPUs == 0 {
		m.CPUs = defaultCPUs
	}
	if m.MemoryMiB == 0 {
		m.MemoryMiB = defaultMemoryMiB
	}
	if len(m.Disks) == 0 {
		m.Disks = []Disk{{Bus: "nvme", Size: defaultDisk}}
	}
	for i := range m.Disks {
		setIfEmpty(&m.Disks[i].Bus, "nvme")
		if m.Disks[i].Size == 0 {
			m.Disks[i].Size = defaultDisk
		}
		if m.Disks[i].Sector == 0 {
			m.Disks[i].Sector = defaultSector
		}
		setIfEmpty(&m.Disks[i].Serial, fmt.Sprintf("BLD%X%02d%02d", id[6:10], number, i))
	}
	if len(m.NICs) == 0 {
		m.NICs = []NIC{{}}
	}
	for i := range m.NICs {
		*port++
		// 52:54:00 is QEMU's; the rest follows from the names.
		setIfEmpty(&m.NICs[i].MAC, fmt.Sprintf("52:54:00:%02x:%02x:%02x", id[0], number, i))
		setIfEmpty(&m.NICs[i].Port, fmt.Sprintf("Ethernet%d", *port))
	}
	setIfEmpty(&m.BMC.Address, fmt.Sprintf("10.65.0.%d:623", 10+number))
	setIfEmpty(&m.BMC.Username, "bloomery")
	setIfEmpty(&m.Serial, fmt.Sprintf("BLM%X%02d", id[10:14], number))
	setIfEmpty(&m.Product, "Bloomery Lab Machine")
	if m.UUID == "" {
		u := id[14:30]
		u[6], u[8] = u[6]&0x0f|0x80, u[8]&0x3f|0x80 // RFC 9562 section 5.8, version 8
		m.UUID = fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
	}
}

func setIfEmpty(s *string, v string) {
	if *s == "" {
		*s = v
	}
}
