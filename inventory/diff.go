package inventory

import (
	"fmt"
	"slices"
	"strings"
)

// ChangeKind says what happened to a part.
type ChangeKind int

// The kinds of change.
const (
	Added ChangeKind = iota + 1
	Removed
	// Replaced: another part is in the same place.
	Replaced
	// Changed: the same part, with another firmware, setting or place.
	Changed
)

// Change is one difference between two inventories of a machine.
type Change struct {
	Kind ChangeKind
	// Component is memory, disk, nic, cpu, gpu, bios, product, baseboard, chassis, tpm or bmc.
	Component string
	// Location is the slot, the bus path or the address; empty for what a machine has one of.
	Location      string
	Before, After string
}

// part is one thing that can be plugged in, taken out or replaced.
type part struct {
	// identity is a serial number or an address burnt in; empty when the part tells none.
	identity string
	location string
	// text describes the part where it appears or disappears.
	text string
	// traits are what may differ of one and the same part, in the order in which they are shown.
	traits []trait
}

type trait struct{ name, value string }

// Diff compares two inventories of a machine. What differs from boot to boot without a hand on the machine is left out: links and
// their speed, kernel names, drivers, usable memory, CPU flags, active arrays, and problems of the reading itself.
func Diff(before, after *Inventory) []Change {
	var all []Change
	for _, component := range []struct {
		name  string
		parts func(*Inventory) []part
	}{
		{"product", productParts},
		{"baseboard", baseboardParts},
		{"chassis", chassisParts},
		{"bios", biosParts},
		{"cpu", cpuParts},
		{"memory", memoryParts},
		{"disk", diskParts},
		{"nic", nicParts},
		{"gpu", gpuParts},
		{"tpm", tpmParts},
		{"bmc", bmcParts},
	} {
		all = append(all, diffParts(component.name, component.parts(before), component.parts(after))...)
	}
	return all
}

// diffParts pairs parts by identity first, so that one that moved is not taken for two; then by place; what is left came or went.
func diffParts(component string, before, after []part) []Change {
	var changes []Change
	gone, come := before, after
	pair := func(same func(a, b part) bool, changed func(a, b part) []Change) {
		var left []part
		for _, a := range gone {
			i := slices.IndexFunc(come, func(b part) bool { return same(a, b) })
			if i < 0 {
				left = append(left, a)
				continue
			}
			changes = append(changes, changed(a, come[i])...)
			come = slices.Delete(slices.Clone(come), i, i+1)
		}
		gone = left
	}
	traits := func(a, b part) []Change { return diffTraits(component, a, b) }
	pair(func(a, b part) bool { return a.identity != "" && a.identity == b.identity && a.location == b.location }, traits)
	pair(func(a, b part) bool { return a.identity != "" && a.identity == b.identity }, traits)
	pair(func(a, b part) bool { return a.location == b.location && a.identity == b.identity }, traits)
	pair(func(a, b part) bool { return a.location == b.location }, func(a, b part) []Change {
		return []Change{{Kind: Replaced, Component: component, Location: a.location, Before: a.text, After: b.text}}
	})
	for _, a := range gone {
		changes = append(changes, Change{Kind: Removed, Component: component, Location: a.location, Before: a.text})
	}
	for _, b := range come {
		changes = append(changes, Change{Kind: Added, Component: component, Location: b.location, After: b.text})
	}
	slices.SortStableFunc(changes, func(a, b Change) int { return strings.Compare(a.Location, b.Location) })
	return changes
}

// diffTraits says what differs of one part, in one change.
func diffTraits(component string, a, b part) []Change {
	var before, after []string
	note := func(name, was, is string) {
		if was != is {
			before, after = append(before, name+" "+orNone(was)), append(after, name+" "+orNone(is))
		}
	}
	note("place", a.location, b.location)
	for i, t := range a.traits {
		note(t.name, t.value, b.traits[i].value)
	}
	if len(before) == 0 {
		return nil
	}
	return []Change{{Kind: Changed, Component: component, Location: b.location, Before: strings.Join(before, ", "), After: strings.Join(after, ", ")}}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// whole makes the one part of a component that a machine has once; a component that tells nothing is absent.
func whole(identity, text string, traits ...trait) []part {
	for _, t := range traits {
		if t.value != "" {
			return []part{{identity: identity, text: text, traits: traits}}
		}
	}
	return nil
}

// said joins what is not empty.
func said(words ...string) string {
	return strings.Join(slices.DeleteFunc(words, func(s string) bool { return s == "" }), " ")
}

func serialText(serial string) string {
	if serial == "" {
		return ""
	}
	return "serial " + serial
}

// number is empty for what is not known.
func number(n int, unit string) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("%d%s", n, unit)
}

// sizeText is exact in the unit that parts are sold in.
func sizeText(bytes uint64) string {
	switch {
	case bytes == 0:
		return ""
	case bytes%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", bytes>>30)
	case bytes < 1e9:
		return fmt.Sprintf("%.1f MB", float64(bytes)/1e6)
	}
	return fmt.Sprintf("%.1f GB", float64(bytes)/1e9)
}

func yes(b bool, word string) string {
	if b {
		return word
	}
	return ""
}
