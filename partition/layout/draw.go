package layout

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// bar is a disk or a volume group with what it is divided into; both drawings show the same bars.
type bar struct {
	title string
	cells []cell
}

type cell struct {
	// kind is what stands on it, for its colour: esp, swap, filesystem, md, luks, lvm, other or free.
	kind  string
	name  string
	size  int64
	sizes string
	use   string
}

// maxCells of a bar; the ones behind are one cell.
const maxCells = 12

func (p *Plan) bars() []bar {
	var all []bar
	for _, d := range p.Disks {
		b := bar{title: fmt.Sprintf("disk/%s  %s  %s  %s", d.Name, d.KernelName, d.about(), bytesText(d.SizeBytes))}
		if !d.Table {
			b.add(p.cell(diskRef(d.Name), "whole disk", d.SizeBytes))
		}
		end := firstUsable(int64(d.SectorSize))
		for _, part := range d.Partitions {
			b.addFree(part.StartBytes - end)
			name := fmt.Sprintf("%d %s", part.Number, part.Label)
			c := p.cell(partRef(d.Name, part.Number), strings.TrimSpace(name), part.SizeBytes)
			if part.Type == TypeESP {
				c.kind = "esp"
			}
			b.add(c)
			end = part.StartBytes + part.SizeBytes
		}
		if d.Table {
			b.addFree(usableEnd(d.SizeBytes, int64(d.SectorSize)) - end)
		}
		all = append(all, b)
	}
	for _, a := range p.Arrays {
		b := bar{title: fmt.Sprintf("%s  RAID %d of %s", arrayRef(a.Name), a.Level, refsText(a.Members))}
		if len(a.Spares) > 0 {
			b.title += ", spare " + refsText(a.Spares)
		}
		b.add(p.cell(arrayRef(a.Name), a.Name, a.SizeBytes))
		all = append(all, b)
	}
	for _, ref := range p.stacked() {
		kind, names := ref.split()
		if kind == "luks" {
			v := p.luks(names[0])
			b := bar{title: fmt.Sprintf("%s  LUKS2 on %s, opened by %s", ref, v.Device, strings.Join(v.Unlock, " or "))}
			b.add(p.cell(ref, v.Name, v.SizeBytes))
			all = append(all, b)
			continue
		}
		all = append(all, p.groupBar(p.group(names[0])))
	}
	for i := range all {
		if len(all[i].cells) == 0 {
			all[i].add(cell{kind: "free", name: "empty"})
		}
	}
	return all
}

// groupBar shows a group's volumes; thin ones are named in their pool's title, since they take no room beside it.
func (p *Plan) groupBar(g GroupPlan) bar {
	b := bar{title: fmt.Sprintf("%s  volume group of %s  %s", groupRef(g.Name), refsText(g.Devices), bytesText(g.SizeBytes))}
	left := g.SizeBytes
	for _, v := range g.Volumes {
		c := p.cell(volumeRef(g.Name, v.Name), v.Name, v.SizeBytes)
		if v.Kind == VolumeThin {
			b.title += fmt.Sprintf("\n  in %s: %s  %s  %s", v.Pool, v.Name, bytesText(v.SizeBytes), c.use)
			continue
		}
		b.add(c)
		left -= v.SizeBytes + v.MetadataBytes
	}
	b.addFree(left)
	return b
}

func (p *Plan) cell(ref Ref, name string, size int64) cell {
	c := cell{kind: "other", name: name, size: size, sizes: bytesText(size), use: p.purpose(ref)}
	switch kind, _, _ := strings.Cut(c.use, "/"); {
	case c.use == FormatSwap:
		c.kind = "swap"
	case kind == "md" || kind == "luks":
		c.kind = kind
	case kind == "vg" || c.use == "thin volumes":
		c.kind = "lvm"
	case c.use != "nothing yet" && !strings.HasPrefix(c.use, "spare"):
		c.kind = "filesystem"
	}
	return c
}

func (b *bar) add(c cell) {
	if len(b.cells) < maxCells {
		b.cells = append(b.cells, c)
		return
	}
	last := &b.cells[maxCells-1]
	last.size += c.size
	last.kind, last.name, last.sizes, last.use = "other", "more", bytesText(last.size), "see above"
}

// addFree shows what is left between parts where it is worth showing.
func (b *bar) addFree(size int64) {
	if size >= 4*mib {
		b.add(cell{kind: "free", name: "free", size: size, sizes: bytesText(size)})
	}
}

// widths divides total among cells: least for each, and the rest by size.
func (b bar) widths(total, least int) []int {
	sum := int64(0)
	for _, c := range b.cells {
		sum += c.size
	}
	widths, free, edge, done := make([]int, len(b.cells)), total-least*len(b.cells), 0, int64(0)
	for i, c := range b.cells {
		done += c.size
		next := int(float64(done) / float64(max(sum, 1)) * float64(free))
		widths[i], edge = least+next-edge, next
	}
	return widths
}

// drawingWidth is how many columns a text drawing takes at most.
const drawingWidth = 100

// Drawing shows disks, arrays, encrypted volumes and volume groups as bars of text, at most 100 columns wide.
func (p *Plan) Drawing() string {
	var out strings.Builder
	for i, b := range p.bars() {
		if i > 0 {
			out.WriteByte('\n')
		}
		for _, line := range strings.Split(b.title, "\n") {
			out.WriteString(cut(line, drawingWidth) + "\n")
		}
		// One column for each border, and the one at the end.
		room := drawingWidth - len(b.cells) - 1
		widths := b.widths(room, min(14, room/len(b.cells)/2))
		edge := func(left, between, right string) {
			for k, w := range widths {
				out.WriteString(map[bool]string{true: left, false: between}[k == 0] + strings.Repeat("─", w))
			}
			out.WriteString(right + "\n")
		}
		edge("┌", "┬", "┐")
		for _, line := range []func(cell) string{func(c cell) string { return c.name }, func(c cell) string { return c.sizes }, func(c cell) string { return c.use }} {
			for k, c := range b.cells {
				text := cut(line(c), widths[k])
				out.WriteString("│" + text + strings.Repeat(" ", widths[k]-utf8.RuneCountInString(text)))
			}
			out.WriteString("│\n")
		}
		edge("└", "┴", "┘")
	}
	return out.String()
}

// cut shortens s to so many columns.
func cut(s string, columns int) string {
	if len(s) <= columns { // what a plan holds is one byte a column
		return s
	}
	return s[:max(0, columns-1)] + "…"
}
