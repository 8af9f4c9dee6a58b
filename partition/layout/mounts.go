package layout

import (
	"slices"
	"strings"
)

// mount is a place in the installed system's tree.
type mount struct {
	path    string // in the layout
	point   string
	fs      int // place of its filesystem
	options []string
}

func (l *Layout) mounts() []mount {
	var all []mount
	for i, f := range l.Filesystems {
		if f.MountPoint != "" {
			all = append(all, mount{at("filesystems", i, "mount_point"), f.MountPoint, i, f.Options})
		}
		for k, s := range f.Subvolumes {
			if s.MountPoint != "" {
				all = append(all, mount{at("filesystems", i, "subvolumes", k, "mount_point"), s.MountPoint, i, s.Options})
			}
		}
	}
	return all
}

// holder is the mount that the path stands on: the longest that is above it or is it.
func holder(mounts []mount, path string) (mount, bool) {
	best, found := mount{}, false
	for _, m := range mounts {
		above := m.point == path || m.point == "/" || strings.HasPrefix(path, m.point+"/")
		if above && (!found || len(m.point) > len(best.point)) {
			best, found = m, true
		}
	}
	return best, found
}

// checkMounts wants a root and no mount point twice.
func (m *model) checkMounts() {
	mounts, seen := m.layout.mounts(), map[string]string{}
	for _, at := range mounts {
		if before, twice := seen[at.point]; twice {
			m.problems.add(at.path, ReasonDuplicate, "%s is the mount point of %s already; one would hide the other", at.point, before)
		}
		seen[at.point] = at.path
		if slices.Contains(at.options, "noauto") && slices.Contains([]string{"/", "/boot", "/usr", "/var"}, at.point) {
			m.problems.add(strings.TrimSuffix(at.path, "mount_point")+"options", ReasonCannotBoot, "noauto: the system does not start without %s; leave the option out", at.point)
		}
		if above, ok := holder(mounts, parent(at.point)); ok && at.point != "/" && m.layout.Filesystems[above.fs].Format == FormatVFAT {
			m.problems.add(at.path, ReasonConflict, "%s would stand on the vfat filesystem at %s, which firmware and others may change; mount it elsewhere", at.point, above.point)
		}
	}
	root, ok := holder(mounts, "/")
	switch {
	case !ok:
		m.problems.add("filesystems", ReasonMissing, `nothing is mounted at "/"; give one filesystem the mount point /`)
	case m.layout.Filesystems[root.fs].Format == FormatVFAT:
		m.problems.add(root.path, ReasonCannotBoot, "vfat cannot hold a root filesystem; use ext4, xfs or btrfs")
	}
}

func parent(point string) string {
	i := strings.LastIndexByte(point, '/')
	if i <= 0 {
		return "/"
	}
	return point[:i]
}

// checkESP keeps EFI system partitions what firmware can read: vfat on the partition itself, or on a RAID 1 whose members look like it.
func (m *model) checkESP() {
	for i, r := range m.layout.RAIDs {
		esps := 0
		for _, ref := range slices.Concat(m.raidMembers[i], m.raidSpares[i]) {
			if m.isESP(ref) {
				esps++
			}
		}
		if esps == 0 {
			continue
		}
		here := at("raids", i)
		if esps < len(m.raidMembers[i])+len(m.raidSpares[i]) {
			m.problems.add(at(here, "members"), ReasonConflict, "an array over EFI system partitions has only such members; give all of them type esp, or none")
		}
		if r.Level != 1 {
			m.problems.add(at(here, "level"), ReasonCannotBoot, "%d: firmware reads each EFI system partition by itself, so only RAID 1 can stand on them", r.Level)
		}
		if r.Metadata != "" && r.Metadata != "1.0" {
			m.problems.add(at(here, "metadata"), ReasonCannotBoot, "%s: firmware reads each EFI system partition from its start, so the array's metadata must be at the end; use \"1.0\"", r.Metadata)
		}
		if use, used := m.users[arrayRef(r.Name)]; used && (use.kind != useFilesystem || m.layout.Filesystems[use.index].Format != FormatVFAT) {
			m.problems.add(use.path, ReasonCannotBoot, "md/%s stands on EFI system partitions and can only be vfat", r.Name)
		}
	}
	for _, d := range m.disks {
		for k, number := range partitionNumbers(m.layout.Disks[d.spec].Partitions) {
			ref := partRef(d.name, number)
			use, used := m.users[ref]
			if !used || !m.isESP(ref) || use.kind == useRAID {
				continue
			}
			if use.kind != useFilesystem || m.layout.Filesystems[use.index].Format != FormatVFAT {
				m.problems.add(use.path, ReasonCannotBoot, "%s (%s) is an EFI system partition and can only be vfat", ref, at("disks", d.spec, "partitions", k))
			}
		}
	}
}

// isESP says whether ref is an EFI system partition.
func (m *model) isESP(ref Ref) bool {
	part, ok := m.parts[ref]
	return ok && typeGUID(part.spec.Type) == TypeESP
}
