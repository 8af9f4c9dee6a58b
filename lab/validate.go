package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
)

// Limits of a machine, given by the PCI slots that qemu.Args deals out and by sense.
const (
	maxNICs      = 4
	maxDisks     = 8
	minMemoryMiB = 256
	maxMemoryMiB = 65536
	maxCPUs      = 64
	minDisk      = MiB
	maxDisk      = 64 * TiB
)

var (
	nameRE   = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?$`)
	portRE   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9/._-]{0,31}$`)
	uuidRE   = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
	serialRE = regexp.MustCompile(`^[A-Za-z0-9._-]{1,20}$`)
	textRE   = regexp.MustCompile(`^[A-Za-z0-9 ._()-]{1,48}$`)
	wwnRE    = regexp.MustCompile(`^[0-9a-f]{16}$`)
	userRE   = regexp.MustCompile(`^[A-Za-z0-9._-]{1,16}$`)
)

// Validate reports every mistake of the description at once, each with the field's name.
func (c Config) Validate() error {
	v := validator{seen: map[string]string{}}
	v.check(nameRE.MatchString(c.Name), "name: %q must be lower-case letters, digits and hyphens, at most 24", c.Name)
	v.check(c.Accel == "tcg" || c.Accel == "kvm", "accel: %q must be tcg or kvm", c.Accel)
	v.check(c.Coordinators == 1 || c.Coordinators == 3, "coordinators: %d must be 1 or 3: two are no safer than one", c.Coordinators)
	for _, end := range []string{"-c2", "-c3", "-oob"} {
		v.check(!strings.HasSuffix(c.Name, end), "name: %q must not end in %s, which names a part of rack %s", c.Name, end, strings.TrimSuffix(c.Name, end))
	}
	v.check(portRE.MatchString(c.Switch.Name), "switch.name: %q must start with a letter, at most 32 letters, digits, / . _ -", c.Switch.Name)
	v.check(userRE.MatchString(c.Switch.Username), "switch.username: %q must be at most 16 letters and digits", c.Switch.Username)
	v.address("switch.address", c.Switch.Address)
	v.check(c.Provisioning.Address.IsValid() && c.Provisioning.Address.Addr().Is4(), "provisioning.address: %s must be IPv4 with a prefix length, e.g. 10.66.0.1/24", c.Provisioning.Address)
	v.addressRange("provisioning.range", c.Provisioning.Range, c.Provisioning.Address)
	v.networks(c)
	v.check(len(c.Machines) >= 1 && len(c.Machines) <= maxMachines, "machines: %d, want 1 to %d", len(c.Machines), maxMachines)
	for i, m := range c.Machines {
		v.machine(fmt.Sprintf("machines[%d]", i), m)
		if bmc, err := netip.ParseAddrPort(m.BMC.Address); err == nil {
			v.check(c.oobPrefix().Contains(bmc.Addr()), "machines[%d].bmc.address: %s must be in %s, as the switch's is", i, m.BMC.Address, c.oobPrefix())
		}
	}
	if len(v.errs) == 0 { // addresses can be counted up only from sound ones
		v.places(c)
	}
	if len(v.errs) > 0 {
		return fmt.Errorf("rack description: %w", errors.Join(v.errs...))
	}
	return nil
}

// validator collects mistakes; seen maps values that must be unique to the field that has them.
type validator struct {
	errs []error
	seen map[string]string
}

func (v *validator) check(ok bool, format string, args ...any) {
	if !ok {
		v.errs = append(v.errs, fmt.Errorf(format, args...))
	}
}

func (v *validator) unique(kind, field, value string) {
	key := kind + " " + value
	if other, dup := v.seen[key]; dup {
		v.check(false, "%s: %s %q is %s's already", field, kind, value, other)
	}
	v.seen[key] = field
}

func (v *validator) address(field, value string) {
	ap, err := netip.ParseAddrPort(value)
	v.check(err == nil && ap.Addr().Is4() && ap.Port() != 0, "%s: %q must be IPv4:port, e.g. 10.65.0.11:623", field, value)
	v.unique("address", field, value)
}

func (v *validator) addressRange(field, value string, in netip.Prefix) {
	first, last, found := strings.Cut(value, "-")
	a, errA := netip.ParseAddr(first)
	b, errB := netip.ParseAddr(last)
	ok := found && errA == nil && errB == nil && in.IsValid() && in.Contains(a) && in.Contains(b) && a.Compare(b) <= 0
	v.check(ok, "%s: %q must be first-last inside %s", field, value, in)
}

// places sees that the coordinators' addresses are theirs alone and inside their networks.
func (v *validator) places(c Config) {
	for _, p := range c.places() {
		prov := p.provisioning().Addr()
		v.check(p.provisioning().Contains(prov) && !inRange(c.Provisioning.Range, prov), "provisioning: coordinator %s would have %s, which is outside of the network or in its range", p.name(), prov)
		for _, n := range c.customers() {
			gw := p.gateway(n).Addr()
			v.check(n.Prefix.Contains(gw) && gw != n.Customer && !inRange(n.Range, gw),
				"networks: %s: coordinator %s would have gateway %s, which is outside of the network, in its range or the customer's", n.Name, p.name(), gw)
		}
		for i, m := range c.Machines {
			bmc, err := netip.ParseAddrPort(m.BMC.Address)
			v.check(err != nil || bmc.Addr() != p.outOfBand().Addr(), "machines[%d].bmc.address: %s is coordinator %s's", i, m.BMC.Address, p.name())
		}
	}
}

// inRange tells whether an address is in a range that was checked.
func inRange(text string, a netip.Addr) bool {
	first, last, _ := strings.Cut(text, "-")
	from, errFrom := netip.ParseAddr(first)
	to, errTo := netip.ParseAddr(last)
	return errFrom == nil && errTo == nil && from.Compare(a) <= 0 && a.Compare(to) <= 0
}

func (v *validator) networks(c Config) {
	for i, n := range c.Networks {
		field := fmt.Sprintf("networks[%d]", i)
		v.check(nameRE.MatchString(n.Name), "%s.name: %q must be lower-case letters, digits and hyphens, at most 24", field, n.Name)
		v.check(n.VLAN >= 1 && n.VLAN <= 4094, "%s.vlan: %d must be 1 to 4094", field, n.VLAN)
		v.unique("network", field+".name", n.Name)
		v.unique("VLAN", field+".vlan", fmt.Sprint(n.VLAN))
		v.check(n.VLAN != oobVLAN, "%s.vlan: %d is the out-of-band network's", field, oobVLAN)
		if n.Prefix.IsValid() {
			v.check(n.Name != "c2" && n.Name != "c3" && n.Name != "oob", "%s.name: %q names a part of the rack", field, n.Name)
			v.check(n.Prefix.Addr().Is4() && n.Prefix == n.Prefix.Masked(), "%s.prefix: %s must be an IPv4 network, e.g. 10.77.0.0/24", field, n.Prefix)
			v.check(n.Prefix.Contains(n.Gateway), "%s.gateway: %s must be in %s", field, n.Gateway, n.Prefix)
			v.check(n.Prefix.Contains(n.Customer) && n.Customer != n.Gateway, "%s.customer: %s must be in %s and not the gateway", field, n.Customer, n.Prefix)
			v.addressRange(field+".range", n.Range, n.Prefix)
		} else {
			v.check(n.Range == "" && !n.Gateway.IsValid() && !n.Customer.IsValid(), "%s: gateway, range and customer need a prefix", field)
		}
	}
	for _, name := range []string{"provisioning", "quarantine"} {
		_, ok := c.network(name)
		v.check(ok, "networks: %q is missing", name)
	}
}

func (v *validator) machine(field string, m Machine) {
	v.check(nameRE.MatchString(m.Name), "%s.name: %q must be lower-case letters, digits and hyphens, at most 24", field, m.Name)
	v.unique("machine", field+".name", m.Name)
	v.check(m.CPUs >= 1 && m.CPUs <= maxCPUs, "%s.cpus: %d must be 1 to %d", field, m.CPUs, maxCPUs)
	v.check(m.MemoryMiB >= minMemoryMiB && m.MemoryMiB <= maxMemoryMiB, "%s.memory: %d must be %d to %d (MiB)", field, m.MemoryMiB, minMemoryMiB, maxMemoryMiB)
	v.check(uuidRE.MatchString(m.UUID), "%s.uuid: %q must be 8-4-4-4-12 lower-case hexadecimal digits", field, m.UUID)
	v.unique("uuid", field+".uuid", m.UUID)
	v.check(serialRE.MatchString(m.Serial), "%s.serial: %q must be at most 20 letters, digits, . _ -", field, m.Serial)
	v.check(textRE.MatchString(m.Product), "%s.product: %q must be at most 48 letters, digits, spaces, . _ ( ) -", field, m.Product)
	v.address(field+".bmc.address", m.BMC.Address)
	v.check(userRE.MatchString(m.BMC.Username), "%s.bmc.username: %q must be 1 to 16 letters, digits, . _ -", field, m.BMC.Username)
	v.check(len(m.BMC.Password) <= 20, "%s.bmc.password: has %d bytes, IPMI allows 20", field, len(m.BMC.Password))
	v.check(len(m.Disks) <= maxDisks, "%s.disks: %d, at most %d", field, len(m.Disks), maxDisks)
	for i, d := range m.Disks {
		v.disk(fmt.Sprintf("%s.disks[%d]", field, i), d)
	}
	v.check(len(m.NICs) >= 1 && len(m.NICs) <= maxNICs, "%s.nics: %d, want 1 to %d", field, len(m.NICs), maxNICs)
	for i, n := range m.NICs {
		f := fmt.Sprintf("%s.nics[%d]", field, i)
		mac, err := net.ParseMAC(n.MAC)
		v.check(err == nil && len(mac) == 6 && mac[0]&1 == 0 && mac.String() == n.MAC, "%s.mac: %q must be a unicast MAC like 52:54:00:12:34:56", f, n.MAC)
		v.check(portRE.MatchString(n.Port), "%s.port: %q must start with a letter, at most 32 letters, digits, / . _ -", f, n.Port)
		v.unique("mac", f+".mac", n.MAC)
		v.unique("switch port", f+".port", n.Port)
	}
}

func (v *validator) disk(field string, d Disk) {
	v.check(d.Bus == "nvme" || d.Bus == "virtio" || d.Bus == "scsi", "%s.bus: %q must be nvme, virtio or scsi", field, d.Bus)
	v.check(d.Sector == 512 || d.Sector == 4096, "%s.sector: %d must be 512 or 4096 (bytes)", field, d.Sector)
	v.check(d.Size >= minDisk && d.Size <= maxDisk && d.Size%4096 == 0, "%s.size: %s must be %s to %s in whole sectors of 4096 bytes", field, d.Size, minDisk, maxDisk)
	v.check(serialRE.MatchString(d.Serial), "%s.serial: %q must be at most 20 letters, digits, . _ -", field, d.Serial)
	v.check(d.WWN == "" || d.Bus != "virtio" && wwnRE.MatchString(d.WWN), "%s.wwn: %q must be 16 lower-case hexadecimal digits, on nvme and scsi only", field, d.WWN)
	v.unique("disk serial", field+".serial", d.Serial)
	if d.WWN != "" {
		v.unique("wwn", field+".wwn", d.WWN)
	}
}
