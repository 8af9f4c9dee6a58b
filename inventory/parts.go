package inventory

import (
	"fmt"
	"strings"
)

func productParts(i *Inventory) []part {
	p := i.Product
	return whole(p.Serial, said(p.Manufacturer, p.Name, p.Version, serialText(p.Serial)),
		trait{"manufacturer", p.Manufacturer}, trait{"name", p.Name}, trait{"version", p.Version}, trait{"serial", p.Serial},
		trait{"uuid", p.UUID}, trait{"sku", p.SKU}, trait{"family", p.Family})
}

func baseboardParts(i *Inventory) []part {
	b := i.Baseboard
	return whole(b.Serial, said(b.Manufacturer, b.Name, b.Version, serialText(b.Serial)),
		trait{"manufacturer", b.Manufacturer}, trait{"name", b.Name}, trait{"version", b.Version}, trait{"serial", b.Serial}, trait{"asset tag", b.AssetTag})
}

func chassisParts(i *Inventory) []part {
	c := i.Chassis
	return whole(c.Serial, said(c.Manufacturer, number(c.Type, ""), serialText(c.Serial)),
		trait{"manufacturer", c.Manufacturer}, trait{"type", number(c.Type, "")}, trait{"serial", c.Serial}, trait{"asset tag", c.AssetTag})
}

func biosParts(i *Inventory) []part {
	b := i.BIOS
	secure := ""
	if b.SecureBoot != nil {
		secure = fmt.Sprint(*b.SecureBoot)
	}
	return whole("", said(b.Vendor, b.Version, b.Date),
		trait{"vendor", b.Vendor}, trait{"version", b.Version}, trait{"date", b.Date}, trait{"uefi", fmt.Sprint(b.UEFI)}, trait{"secure boot", secure})
}

func cpuParts(i *Inventory) []part {
	var all []part
	for n, c := range i.CPUs {
		all = append(all, part{
			identity: c.Vendor + " " + c.Model, location: ordinal("", n), text: said(number(c.Sockets, " x"), c.Vendor, c.Model),
			traits: []trait{{"sockets", number(c.Sockets, "")}, {"cores", number(c.Cores, "")}, {"threads", number(c.Threads, "")}, {"microcode", c.Microcode}},
		})
	}
	return all
}

func memoryParts(i *Inventory) []part {
	var all []part
	if i.Memory.Slots > 0 {
		all = append(all, part{identity: "slots", text: number(i.Memory.Slots, " slots"), traits: []trait{{"slots", number(i.Memory.Slots, "")}}})
	}
	seen := map[string]int{}
	for _, m := range i.Memory.Modules {
		size := sizeText(m.SizeBytes)
		kind := m.Type
		if m.Speed > 0 {
			kind = fmt.Sprintf("%s-%d", m.Type, m.Speed)
		}
		all = append(all, part{
			identity: m.Serial, location: ordinal(m.Slot, seen[m.Slot]), text: said(size, kind, yes(m.ECC, "ECC"), m.Vendor, m.Part, serialText(m.Serial)),
			traits: []trait{
				{"bank", m.Bank}, {"size", size}, {"type", m.Type}, {"speed", number(m.Speed, " MT/s")}, {"running at", number(m.Configured, " MT/s")},
				{"vendor", m.Vendor}, {"part", m.Part}, {"rank", number(m.Rank, "")}, {"ecc", fmt.Sprint(m.ECC)},
			},
		})
		seen[m.Slot]++
	}
	return all
}

func diskParts(i *Inventory) []part {
	var all []part
	for _, d := range i.Disks {
		identity, location := d.Serial, d.ByPath
		if identity == "" {
			identity = d.WWN
		}
		if location == "" {
			// Kernel names follow the order of discovery; better than nothing where a disk tells no serial either.
			location = d.Name
			if identity != "" {
				location = ""
			}
		}
		size := sizeText(d.SizeBytes)
		all = append(all, part{
			identity: identity, location: location, text: said(size, d.Transport, d.Vendor, d.Model, serialText(d.Serial)),
			traits: []trait{
				{"vendor", d.Vendor}, {"model", d.Model}, {"wwn", d.WWN}, {"firmware", d.Firmware}, {"size", size}, {"transport", d.Transport},
				{"logical sector", number(d.LogicalSector, "")}, {"physical sector", number(d.PhysicalSector, "")}, {"rotational", fmt.Sprint(d.Rotational)},
				{"removable", fmt.Sprint(d.Removable)}, {"read-only", fmt.Sprint(d.ReadOnly)},
			},
		})
	}
	return all
}

func nicParts(i *Inventory) []part {
	var all []part
	for _, n := range i.NICs {
		identity := n.PermanentMAC
		if identity == "" {
			identity = n.MAC
		}
		all = append(all, part{
			identity: identity, location: n.PCIAddress, text: said(n.Vendor+":"+n.Product, "MAC", identity),
			traits: []trait{{"mac", n.MAC}, {"firmware", n.Firmware}, {"vendor", n.Vendor}, {"product", n.Product}},
		})
	}
	return all
}

func gpuParts(i *Inventory) []part {
	var all []part
	for _, g := range i.GPUs {
		id := g.Vendor + ":" + g.Device
		all = append(all, part{identity: g.Address + " " + id, location: g.Address, text: id})
	}
	return all
}

func tpmParts(i *Inventory) []part {
	if !i.TPM.Present {
		return nil
	}
	version := number(i.TPM.Version, "")
	return []part{{text: said("TPM", version), traits: []trait{{"version", version}}}}
}

func bmcParts(i *Inventory) []part {
	b := i.BMC
	if b == nil {
		return nil
	}
	return []part{{identity: strings.ToLower(b.MAC), text: said(b.Manufacturer, b.Product, b.Firmware, b.Address), traits: []trait{
		{"manufacturer", b.Manufacturer}, {"product", b.Product}, {"firmware", b.Firmware}, {"ipmi", b.IPMIVersion}, {"address", b.Address},
	}}}
}

// ordinal tells parts apart whose firmware gives them one name.
func ordinal(name string, n int) string {
	switch {
	case name == "" && n == 0:
		return ""
	case n == 0:
		return name
	}
	return strings.TrimSpace(fmt.Sprintf("%s #%d", name, n+1))
}
