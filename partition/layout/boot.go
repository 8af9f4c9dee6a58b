package layout

import (
	"slices"
	"strings"
)

// What a filesystem may stand on or be; the names are those of an image's boot.root_stacks.
const (
	stackMD      = "md"
	stackLVM     = "lvm"
	stackLVMThin = "lvm-thin"
	stackLUKS    = "luks"
	stackTPM2    = "tpm2"
)

// checkBoot refuses what the machine would not start from, and warns of what it might not start from once a disk is gone.
func (k *maker) checkBoot() {
	mounts := k.layout.mounts()
	root, _ := holder(mounts, "/") // there is one: checkMounts
	boot, _ := holder(mounts, "/boot")
	k.checkLoader(mounts)
	k.checkBootFilesystem(boot)
	k.checkStacks()
	k.checkRootSize(mounts, root)
	k.warnRedundancy(root, boot)
	k.warnUnlock(root)
}

// checkLoader wants a place for the boot loader.
func (k *maker) checkLoader(mounts []mount) {
	if !k.target.UEFI {
		k.problems.add("", ReasonCannotBoot, "the machine started through a BIOS at its last inventory, and a system with a layout starts through UEFI only; set its firmware to UEFI and inspect it again")
		return
	}
	if len(k.partitionsOf(TypeESP)) == 0 {
		k.problems.add("disks", ReasonCannotBoot, "the machine starts through UEFI and the layout has no EFI system partition; add a partition of type esp with vfat on it, mounted at /boot/efi")
		return
	}
	if !slices.ContainsFunc(mounts, func(at mount) bool { return len(k.espsUnder(k.fsDevice[at.fs])) > 0 }) {
		k.problems.add("filesystems", ReasonCannotBoot, "no EFI system partition is mounted, so that no loader can be put there; give its vfat the mount point /boot/efi")
	}
}

// partitionsOf are all partitions of a type.
func (k *maker) partitionsOf(guid string) []Ref {
	var refs []Ref
	for _, d := range k.plan.Disks {
		for _, p := range d.Partitions {
			if p.Type == guid {
				refs = append(refs, partRef(d.Name, p.Number))
			}
		}
	}
	return refs
}

// espsUnder are the EFI system partitions that ref is or, as a RAID 1, stands on.
func (k *maker) espsUnder(ref Ref) []Ref {
	var refs []Ref
	for _, r := range k.under(ref) {
		if k.isESP(r) {
			refs = append(refs, r)
		}
	}
	return refs
}

// checkBootFilesystem keeps what holds /boot readable for GRUB as Debian signs it: it has mdraid1x with all levels, lvm, ext2, xfs, btrfs and
// fat built in. It has no thin volumes, and no Argon2 for LUKS2.
func (k *maker) checkBootFilesystem(boot mount) {
	for _, ref := range k.under(k.fsDevice[boot.fs]) {
		kind, names := ref.split()
		switch {
		case kind == "luks":
			k.problems.add(boot.path, ReasonCannotBoot, "%s holds /boot and stands on %s, which the boot loader cannot open; add a partition of about 1 GiB with ext4, mounted at /boot", boot.point, ref)
		case kind == "lv" && k.volumeKind(names[0], names[1]) == VolumeThin:
			k.problems.add(boot.path, ReasonCannotBoot, "%s holds /boot and stands on the thin volume %s, which the boot loader cannot read; add a linear volume or a partition, mounted at /boot", boot.point, ref)
		}
	}
}

func (k *maker) volumeKind(group, name string) string {
	for _, g := range k.layout.Groups {
		for _, v := range g.Volumes {
			if g.Name == group && v.Name == name {
				return v.Kind
			}
		}
	}
	return ""
}

// stacks are what a filesystem of the layout stands on and is.
func (k *maker) stacks(fs int) []string {
	var all []string
	for _, ref := range k.under(k.fsDevice[fs]) {
		kind, names := ref.split()
		switch kind {
		case "md":
			all = append(all, stackMD)
		case "lv":
			all = append(all, stackLVM)
			if k.volumeKind(names[0], names[1]) == VolumeThin {
				all = append(all, stackLVMThin)
			}
		case "luks":
			all = append(all, stackLUKS)
			for _, v := range k.layout.LUKS {
				if v.Name == names[0] && slices.Contains(v.Unlock, UnlockTPM2) {
					all = append(all, stackTPM2)
				}
			}
		}
	}
	if f := k.layout.Filesystems[fs].Format; f == FormatXFS || f == FormatBtrfs {
		all = append(all, f)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// checkStacks compares what is mounted at boot with what the image can do. The root filesystem's stack must be in the initial RAM filesystem, and
// what it lacks for the others the installed system most likely lacks too.
func (k *maker) checkStacks() {
	if k.target.Stacks == nil {
		return
	}
	for i, f := range k.layout.Filesystems {
		mounted := f.MountPoint != "" || f.Format == FormatSwap || slices.ContainsFunc(f.Subvolumes, func(s SubvolumeSpec) bool { return s.MountPoint != "" })
		for _, stack := range k.stacks(i) {
			if mounted && !slices.Contains(k.target.Stacks, stack) {
				able := "a partition with ext4 only"
				if len(k.target.Stacks) > 0 {
					able = "partitions, ext4, " + strings.Join(k.target.Stacks, ", ")
				}
				k.problems.add(at("filesystems", i), ReasonStackMissing, "it needs %s, which the image cannot start from; the image can do %s", stack, able)
			}
		}
	}
}

// checkRootSize wants room for the image with a tenth to spare, which filesystems take for themselves.
func (k *maker) checkRootSize(mounts []mount, root mount) {
	need := k.target.RootBytes + k.target.RootBytes/10
	have, where := int64(0), "/"
	for _, at := range mounts {
		// The filesystems that an image's files may be spread over; one with several subvolumes counts once.
		spread := at.point == "/usr" || at.point == "/var" || at.point == "/opt" || at.point == "/boot"
		if at.fs == root.fs && at.point == "/" {
			have += k.device[k.fsDevice[at.fs]].size
		} else if spread && at.fs != root.fs {
			have, where = have+k.device[k.fsDevice[at.fs]].size, where+" and "+at.point
		}
	}
	if have < need {
		k.problems.add(root.path, ReasonDoesNotFit, "the image needs %d bytes (%s) and %s offers %d: %d bytes (%s) are missing", need, bytesText(need), where, have, need-have, bytesText(need-have))
	}
}

// warnRedundancy tells of a root that outlives a disk while the loader or /boot does not.
func (k *maker) warnRedundancy(root, boot mount) {
	disks := k.redundant(k.fsDevice[root.fs])
	if len(disks) == 0 {
		return
	}
	var without []string
	for _, name := range disks {
		if !slices.ContainsFunc(k.partitionsOf(TypeESP), func(r Ref) bool { return slices.Contains(k.disksUnder(r), name) }) {
			without = append(without, name)
		}
	}
	if len(without) > 0 {
		k.warn("/ outlives the loss of a disk, but disk %s has no EFI system partition: without the others the machine does not start; give each disk one and a RAID 1 over them", strings.Join(without, ", "))
	} else if !slices.ContainsFunc(k.layout.mounts(), func(at mount) bool { return len(k.espsUnder(k.fsDevice[at.fs])) >= len(disks) }) {
		k.warn("each disk has an EFI system partition of its own, and nothing keeps them the same after the install; put a RAID 1 over them")
	}
	if boot.fs != root.fs && len(k.redundant(k.fsDevice[boot.fs])) == 0 {
		k.warn("/ outlives the loss of a disk, but %s stands on disk %s alone", boot.point, strings.Join(k.disksUnder(k.fsDevice[boot.fs]), ", "))
	}
}

// redundant are the disks of the array that ref stands on, if that outlives the loss of one and nothing else is below.
func (k *maker) redundant(ref Ref) []string {
	var disks []string
	for _, r := range k.under(ref) {
		kind, names := r.split()
		if kind != "md" {
			continue
		}
		for _, a := range k.plan.Arrays {
			if a.Name == names[0] && a.Level == 0 {
				return nil
			}
		}
		for _, name := range k.disksUnder(r) {
			if !slices.Contains(disks, name) {
				disks = append(disks, name)
			}
		}
	}
	if len(disks) < len(k.disksUnder(ref)) {
		return nil // some of it stands on a disk beside the arrays
	}
	return disks
}

func (k *maker) warnUnlock(root mount) {
	for _, v := range k.plan.LUKS {
		if !slices.Contains(k.under(k.fsDevice[root.fs]), luksRef(v.Name)) {
			continue
		}
		switch {
		case slices.Contains(v.Unlock, UnlockKeyFile):
			k.warn("luks/%s opens with a key that lies in the clear beside the boot loader: it keeps what a returned or thrown away disk holds only if /boot is on another disk", v.Name)
		case slices.Equal(v.Unlock, []string{UnlockPassphrase}):
			k.warn("luks/%s asks for its passphrase on the console at every start; nobody can log in before", v.Name)
		}
	}
}
