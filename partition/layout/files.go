package layout

import "slices"

// leastSize is the smallest device that mkfs makes a sound filesystem of.
func leastSize(format string, sector int64) int64 {
	switch format {
	case FormatExt4:
		return 16 * mib
	case FormatXFS:
		return 300 * mib // mkfs.xfs refuses less, since xfsprogs 5.19
	case FormatBtrfs:
		return 256 * mib // below, data and metadata would share their chunks
	case FormatVFAT:
		// FAT32 has at least 65,525 clusters (Microsoft, FAT32 File System Specification 1.03), each of a sector or more, and two tables.
		if sector == 4096 {
			return 258 * mib
		}
		return 33 * mib
	}
	return mib
}

func (k *maker) makeFilesystems() {
	for i := range k.layout.Filesystems {
		f, here, ref := &k.layout.Filesystems[i], at("filesystems", i), k.fsDevice[i]
		dev := k.device[ref]
		if least := leastSize(f.Format, dev.logical); dev.size < least {
			k.problems.add(at(here, "device"), ReasonDoesNotFit, "%s has %d bytes; %s with sectors of %d bytes needs at least %d (%s): %d bytes are missing",
				ref, dev.size, f.Format, dev.logical, least, bytesText(least), least-dev.size)
		}
		if f.Format == FormatVFAT && dev.size > dev.logical<<32 {
			k.problems.add(at(here, "device"), ReasonDoesNotFit, "%s has %d bytes; vfat can have %d", ref, dev.size, dev.logical<<32)
		}
		if block := blockSize(f.Format, f.MakeOptions); block > 0 && block < dev.logical {
			k.problems.add(at(here, "make_options"), ReasonInvalid, "blocks of %d bytes are smaller than the sectors of %s, %d bytes; use %d", block, ref, dev.logical, dev.logical)
		}
		plan := FilesystemPlan{
			Device: ref, Format: f.Format, UUID: k.id("filesystem", ref), Label: f.Label, MountPoint: f.MountPoint,
			Options: f.Options, MakeOptions: f.MakeOptions, SizeBytes: dev.size,
		}
		if f.Format == FormatVFAT {
			plan.UUID = k.volumeID(ref)
		}
		for _, s := range f.Subvolumes {
			plan.Subvolumes = append(plan.Subvolumes, SubvolumePlan(s))
		}
		k.plan.Files = append(k.plan.Files, plan)
	}
}

// under are all devices below ref, itself first, each once.
func (m *model) under(ref Ref) []Ref {
	all := []Ref{ref}
	for i := 0; i < len(all); i++ {
		for _, below := range m.below(all[i]) {
			if !slices.Contains(all, below) {
				all = append(all, below)
			}
		}
	}
	return all
}

// disksUnder are the names of the disks that ref stands on.
func (m *model) disksUnder(ref Ref) []string {
	var names []string
	for _, r := range m.under(ref) {
		kind, parts := r.split()
		if (kind == "part" || kind == "disk") && !slices.Contains(names, parts[0]) {
			names = append(names, parts[0])
		}
	}
	return names
}
