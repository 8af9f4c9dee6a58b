package layout

import (
	"fmt"
	"strings"
	"text/tabwriter"
)

// Text says what the plan destroys and creates, disk by disk, what is built on the disks, and the steps in their order.
func (p *Plan) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Plan from layout %s\n", p.LayoutSHA256[:min(12, len(p.LayoutSHA256))])
	for _, d := range p.Disks {
		p.diskText(&b, d)
	}
	p.stackText(&b)
	if asked := p.AskedSecrets(); len(asked) > 0 {
		fmt.Fprintf(&b, "\nPassphrases to give: %s\n", strings.Join(asked, ", "))
	}
	b.WriteString("\nSteps, in order\n")
	for i, a := range p.Actions() {
		lost := ""
		if a.Destroys {
			lost = " [destroys data]"
		}
		fmt.Fprintf(&b, "%4d. %s%s\n", i+1, a.Text, lost)
	}
	if len(p.Warnings) > 0 {
		b.WriteString("\nWarnings\n")
	}
	for _, w := range p.Warnings {
		fmt.Fprintf(&b, "  - %s\n", w)
	}
	return b.String()
}

func (p *Plan) diskText(b *strings.Builder, d DiskPlan) {
	what := d.KernelName
	for _, part := range []struct{ name, value string }{{"", d.Model}, {"serial ", d.Serial}, {"wwn ", d.WWN}} {
		if part.value != "" {
			what += ", " + part.name + part.value
		}
	}
	fmt.Fprintf(b, "\nDisk %s: %s\n  %d bytes (%s) in sectors of %d\n", d.Name, strings.TrimPrefix(what, ", "), d.SizeBytes, bytesText(d.SizeBytes), d.SectorSize)
	fmt.Fprintf(b, "  destroyed: everything that is on it\n")
	if !d.Table {
		fmt.Fprintf(b, "  created:   no partition table; the whole disk is %s\n", p.purpose(diskRef(d.Name)))
		return
	}
	fmt.Fprintf(b, "  created:   a GUID partition table\n")
	w := tabwriter.NewWriter(b, 0, 4, 2, ' ', 0)
	fmt.Fprintf(w, "    \tLABEL\tTYPE\tFROM BYTE\tBYTES\tSIZE\tFOR\n")
	for _, part := range d.Partitions {
		label := part.Label
		if label == "" {
			label = "-"
		}
		fmt.Fprintf(w, "  %d\t%s\t%s\t%d\t%d\t%s\t%s\n", part.Number, label, typeName(part.Type), part.StartBytes, part.SizeBytes, bytesText(part.SizeBytes), p.purpose(partRef(d.Name, part.Number)))
	}
	w.Flush() // a strings.Builder takes everything
}

// stackText says what stands on the disks.
func (p *Plan) stackText(b *strings.Builder) {
	if len(p.Arrays)+len(p.LUKS)+len(p.Groups) == 0 {
		return
	}
	b.WriteString("\nOn the disks\n")
	w := tabwriter.NewWriter(b, 0, 4, 2, ' ', 0)
	line := func(ref Ref, what string, size int64) {
		fmt.Fprintf(w, "  %s\t%s\t%d\t%s\t%s\n", ref, what, size, bytesText(size), p.purpose(ref))
	}
	for _, a := range p.Arrays {
		what := fmt.Sprintf("RAID %d, metadata %s, of %s", a.Level, a.Metadata, refsText(a.Members))
		if a.ChunkBytes > 0 {
			what += ", chunks of " + bytesText(a.ChunkBytes)
		}
		if len(a.Spares) > 0 {
			what += ", spare " + refsText(a.Spares)
		}
		line(arrayRef(a.Name), what, a.SizeBytes)
	}
	for _, v := range p.LUKS {
		line(luksRef(v.Name), fmt.Sprintf("LUKS2 on %s, opened by %s", v.Device, strings.Join(v.Unlock, " or ")), v.SizeBytes)
	}
	for _, g := range p.Groups {
		line(groupRef(g.Name), "volume group of "+refsText(g.Devices), g.SizeBytes)
		for _, v := range g.Volumes {
			what := v.Kind
			switch v.Kind {
			case VolumeStriped:
				what += fmt.Sprintf(" over %d devices, %s each", v.Stripes, bytesText(v.StripeBytes))
			case VolumeThin:
				what += " in " + v.Pool
			case VolumeThinPool:
				what += fmt.Sprintf(", and %s of metadata", bytesText(v.MetadataBytes))
			}
			line(volumeRef(g.Name, v.Name), what, v.SizeBytes)
		}
	}
	w.Flush() // as above
}

// purpose says in a few words what stands on a device.
func (p *Plan) purpose(ref Ref) string {
	for _, a := range p.Arrays {
		for _, m := range a.Members {
			if m == ref {
				return string(arrayRef(a.Name))
			}
		}
		for _, m := range a.Spares {
			if m == ref {
				return "spare of " + string(arrayRef(a.Name))
			}
		}
	}
	for _, v := range p.LUKS {
		if v.Device == ref {
			return string(luksRef(v.Name))
		}
	}
	for _, g := range p.Groups {
		if groupRef(g.Name) == ref {
			return fmt.Sprintf("%d volume(s)", len(g.Volumes))
		}
		for _, d := range g.Devices {
			if d == ref {
				return string(groupRef(g.Name))
			}
		}
		for _, v := range g.Volumes {
			if volumeRef(g.Name, v.Name) == ref && v.Kind == VolumeThinPool {
				return "thin volumes"
			}
		}
	}
	for _, f := range p.Files {
		if f.Device == ref {
			return f.purpose()
		}
	}
	return "nothing yet"
}

func (f FilesystemPlan) purpose() string {
	text := f.Format
	if f.MountPoint != "" {
		text += " " + f.MountPoint
	}
	for _, s := range f.Subvolumes {
		if s.MountPoint != "" {
			text += " " + s.MountPoint
		}
	}
	return text
}
