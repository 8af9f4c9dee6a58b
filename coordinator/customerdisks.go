package coordinator

import (
	"cmp"
	"slices"
	"strings"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// A machine's record lists the disks that carry a customer's data, or may: a disk is put on it before its first byte is written, and struck
// off once it was wiped. Whoever has the machine next must not find anything on them.

// sameDisk says that two references mean one disk: what both have agrees, and they have something in common. The serial number alone does
// not tell the namespaces of one NVMe disk apart; a record of before schema version 8 has nothing else.
func sameDisk(a, b *bloomeryv1.DiskRef) bool {
	serials, wwns := a.GetSerial() != "" && b.GetSerial() != "", a.GetWwn() != "" && b.GetWwn() != ""
	return (serials || wwns) && (!serials || a.GetSerial() == b.GetSerial()) && (!wwns || a.GetWwn() == b.GetWwn())
}

func containsDisk(disks []*bloomeryv1.DiskRef, want *bloomeryv1.DiskRef) bool {
	return slices.ContainsFunc(disks, func(d *bloomeryv1.DiskRef) bool { return sameDisk(d, want) })
}

func addCustomerDisk(m *bloomeryv1.Machine, disk *bloomeryv1.DiskRef) {
	if !containsDisk(m.GetCustomerDisks(), disk) {
		setCustomerDisks(m, append(m.GetCustomerDisks(), disk))
	}
}

func strikeCustomerDisk(m *bloomeryv1.Machine, disk *bloomeryv1.DiskRef) {
	setCustomerDisks(m, slices.DeleteFunc(m.GetCustomerDisks(), func(d *bloomeryv1.DiskRef) bool { return sameDisk(d, disk) }))
}

func setCustomerDisks(m *bloomeryv1.Machine, disks []*bloomeryv1.DiskRef) {
	m.CustomerDisks, m.DiskSerial = disks, ""
	if len(disks) > 0 {
		m.DiskSerial = disks[0].GetSerial()
	}
}

// customerDisks refers to the disks on record by all that the inventory knows of each; one that is in the inventory no more stays as it was recorded.
func customerDisks(m *bloomeryv1.Machine) []*bloomeryv1.DiskRef {
	var refs []*bloomeryv1.DiskRef
	inventory := inventoryDisks(m)
	for _, on := range m.GetCustomerDisks() {
		ref := on
		if i := slices.IndexFunc(inventory, func(d disk) bool { return sameDisk(d.ref(), on) }); i >= 0 {
			ref = inventory[i].ref()
		}
		refs = append(refs, ref)
	}
	return refs
}

// diskNames lists disks for people.
func diskNames(disks []*bloomeryv1.DiskRef) string {
	var names []string
	for _, d := range disks {
		names = append(names, cmp.Or(d.GetSerial(), d.GetWwn()))
	}
	return strings.Join(names, ", ")
}
