package layout

import (
	"cmp"
	"slices"
)

const defaultChunk = 512 * kib // mdadm(8), --chunk

func (k *maker) makeArrays() {
	for i := range k.layout.RAIDs {
		k.makeArray(i)
	}
}

func (k *maker) makeArray(i int) {
	spec, here, members, spares := &k.layout.RAIDs[i], at("raids", i), k.raidMembers[i], k.raidSpares[i]
	least := map[int]int{0: 2, 1: 2, 5: 3, 6: 4, 10: 2}[spec.Level]
	if len(members) < least {
		k.problems.add(at(here, "members"), ReasonInvalid, "RAID %d needs at least %d members, there are %d", spec.Level, least, len(members))
		return
	}
	plan := ArrayPlan{Name: spec.Name, UUID: k.id("array", arrayRef(spec.Name)), Level: spec.Level, Members: members, Spares: spares, Metadata: cmp.Or(spec.Metadata, "1.2")}
	if k.isESP(members[0]) {
		plan.Metadata = "1.0"
	}
	if spec.Level != 1 {
		plan.ChunkBytes = defaultChunk
		if spec.Chunk != nil {
			plan.ChunkBytes = spec.Chunk.Bytes
		}
	}
	out := device{made: true}
	disks := map[string]Ref{}
	var data []int64
	for n, ref := range slices.Concat(members, spares) {
		dev := k.device[ref]
		out.logical, out.physical = max(out.logical, dev.logical), max(out.physical, dev.physical)
		data = append(data, memberData(dev.size, plan.Metadata, plan.ChunkBytes))
		if data[n] <= 0 {
			k.problems.add(at(here, "members"), ReasonDoesNotFit, "%s has %d bytes, too few for an array's member: %d bytes are missing", ref, dev.size, roundUp(1-data[n], mib))
			return
		}
		_, names := ref.split()
		if before, twice := disks[names[0]]; twice && spec.Level != 0 {
			k.problems.add(at(here, "members"), ReasonConflict, "%s and %s are on one disk, whose loss would take both; put each member on a disk of its own", before, ref)
		}
		disks[names[0]] = ref
	}
	smallest, largest := slices.Min(data[:len(members)]), slices.Max(data[:len(members)])
	for n, ref := range spares {
		if data[len(members)+n] < smallest {
			k.problems.add(at(here, "spares"), ReasonDoesNotFit, "%s is %d bytes too small to take the place of a member", ref, smallest-data[len(members)+n])
		}
	}
	mixed := slices.ContainsFunc(members, func(r Ref) bool { return k.device[r].logical != out.logical })
	if mixed && k.isESP(members[0]) {
		k.problems.add(at(here, "members"), ReasonCannotBoot, "firmware reads a vfat made for sectors of 4096 bytes on disks with such sectors only, and some members have sectors of 512; use disks of one kind")
	} else if mixed {
		k.warn("md/%s has members with sectors of 512 and of 4096 bytes; it works with 4096", spec.Name)
	}
	if lost := largest - smallest; spec.Level != 0 && lost > smallest/100 {
		total := int64(0)
		for _, d := range data[:len(members)] {
			total += d - smallest
		}
		k.warn("md/%s: its members differ in size, so that %d bytes (%s) of the larger ones are not used", spec.Name, total, bytesText(total))
	}
	n := int64(len(members))
	switch spec.Level {
	case 0:
		for _, d := range data {
			out.size += d
		}
		out.stripe = n * plan.ChunkBytes
	case 1:
		out.size = smallest
	case 5:
		out.size, out.stripe = (n-1)*smallest, (n-1)*plan.ChunkBytes
	case 6:
		out.size, out.stripe = (n-2)*smallest, (n-2)*plan.ChunkBytes
	case 10: // two copies each, the near layout
		out.size, out.stripe = roundDown(n*smallest/2, plan.ChunkBytes), n*plan.ChunkBytes/2
	}
	plan.SizeBytes = out.size
	k.device[arrayRef(spec.Name)] = out
	k.plan.Arrays = append(k.plan.Arrays, plan)
}

// memberData is a lower bound of what a member gives to its array (mdadm, super1.c, validate_geometry1). Version 1.2 has its superblock, a
// bitmap of at most 128 KiB and room for a later change of shape before the data; 1.0 has the first two behind the data.
func memberData(size int64, metadata string, chunk int64) int64 {
	const bitmap = 128 * kib
	if metadata == "1.0" {
		return roundDown(roundDown(size, 4*kib)-12*kib-bitmap, max(chunk, 64*kib))
	}
	headroom := 128 * mib
	for headroom > size/1024 && headroom/2 >= 2*cmp.Or(chunk, defaultChunk) {
		headroom /= 2
	}
	return roundDown(size-roundUp(12*kib+bitmap+headroom, mib), max(chunk, 64*kib))
}
