package layout

import (
	"path"
	"slices"
	"strings"
)

// check finds what is wrong with a layout whatever the machine: first each field by itself, then, where those are right, how they fit together.
func (l *Layout) check() (*model, error) {
	var p Problems
	if l.Format != Format {
		p.add("format", ReasonInvalid, "%q: want %q", clip(l.Format), Format)
	}
	l.checkDisks(&p)
	l.checkRAIDs(&p)
	l.checkLUKS(&p)
	l.checkGroups(&p)
	l.checkFilesystems(&p)
	if len(p) > 0 {
		return nil, p
	}
	m := newModel(l)
	if len(m.problems) == 0 {
		m.checkESP()
		m.checkMounts()
		m.checkMapperNames()
	}
	return m, m.problems.err()
}

// few says whether a list has at most most entries; longer ones are not looked at.
func few[T any](p *Problems, path string, list []T, most int) bool {
	if len(list) <= most {
		return true
	}
	p.add(path, ReasonTooMany, "%d entries; at most %d", len(list), most)
	return false
}

// note adds err, if there is one, as an invalid value.
func (p *Problems) note(path string, err error) {
	if err != nil {
		p.add(path, ReasonInvalid, "%v", err)
	}
}

func oneOf(p *Problems, path, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		p.add(path, ReasonInvalid, "%q: use one of %s", clip(value), strings.Join(allowed, ", "))
	}
}

func powerOfTwo(p *Problems, path string, s *Size, least, most int64) {
	if s != nil && (s.Bytes < least || s.Bytes > most || s.Bytes&(s.Bytes-1) != 0) {
		p.add(path, ReasonInvalid, "%s: use a power of two from %s to %s", s, bytesText(least), bytesText(most))
	}
}

func (l *Layout) checkDisks(p *Problems) {
	if len(l.Disks) == 0 {
		p.add("disks", ReasonMissing, "name at least one disk")
	}
	if !few(p, "disks", l.Disks, maxDisks) {
		return
	}
	for i := range l.Disks {
		d, here := &l.Disks[i], at("disks", i)
		p.note(at(here, "name"), checkDiskName(d.Name))
		d.Select.check(p, at(here, "select"))
		if few(p, at(here, "partitions"), d.Partitions, maxPartitions) {
			checkPartitions(p, here, d.Partitions)
		}
	}
}

func checkPartitions(p *Problems, disk string, specs []PartitionSpec) {
	rest, numbers, labels := -1, map[int]int{}, map[string]int{}
	for k := range specs {
		s, here := &specs[k], at(disk, "partitions", k)
		if s.Number < 0 || s.Number > maxPartitions {
			p.add(at(here, "number"), ReasonInvalid, "%d: partitions have numbers from 1 to %d", s.Number, maxPartitions)
		}
		if before, twice := numbers[s.Number]; twice && s.Number != 0 {
			p.add(at(here, "number"), ReasonDuplicate, "%d is the number of partitions[%d] already", s.Number, before)
		}
		numbers[s.Number] = k
		p.note(at(here, "label"), checkPartitionLabel(s.Label))
		if before, twice := labels[s.Label]; twice && s.Label != "" {
			p.add(at(here, "label"), ReasonDuplicate, "%q is the label of partitions[%d] already; a label names one partition of its disk", s.Label, before)
		}
		labels[s.Label] = k
		if s.Type != "" && typeGUID(s.Type) == "" {
			p.add(at(here, "type"), ReasonInvalid, "%q: use a GUID or one of %s", clip(s.Type), strings.Join(typeNames(), ", "))
		}
		for n, a := range s.Attributes {
			oneOf(p, at(here, "attributes", n), a, attributeNames()...)
		}
		powerOfTwo(p, at(here, "alignment"), s.Alignment, 4*kib, gib)
		if s.Size.isZero() {
			p.add(at(here, "size"), ReasonMissing, "give a size: %s", sizeHelp)
		}
		if s.Size.Rest && rest >= 0 {
			p.add(at(here, "size"), ReasonConflict, `only one partition of a disk can be the rest; partitions[%d] is already`, rest)
		} else if s.Size.Rest {
			rest = k
		}
	}
}

func (l *Layout) checkRAIDs(p *Problems) {
	if !few(p, "raids", l.RAIDs, maxArrays) {
		return
	}
	for i := range l.RAIDs {
		r, here := &l.RAIDs[i], at("raids", i)
		p.note(at(here, "name"), checkArrayName(r.Name))
		if !slices.Contains([]int{0, 1, 5, 6, 10}, r.Level) {
			p.add(at(here, "level"), ReasonInvalid, "%d: use one of 0, 1, 5, 6, 10", r.Level)
		}
		if r.Metadata != "" {
			oneOf(p, at(here, "metadata"), r.Metadata, "1.2", "1.0")
		}
		if len(r.Members) == 0 {
			p.add(at(here, "members"), ReasonMissing, "name the members, such as part/DISK/LABEL")
		}
		if r.Level == 0 && len(r.Spares) > 0 {
			p.add(at(here, "spares"), ReasonConflict, "RAID 0 has no redundancy, so nothing can take a member's place")
		}
		if r.Level == 1 && r.Chunk != nil {
			p.add(at(here, "chunk"), ReasonConflict, "RAID 1 has no chunks; leave it out")
		}
		powerOfTwo(p, at(here, "chunk"), r.Chunk, 4*kib, 64*mib)
	}
}

func (l *Layout) checkLUKS(p *Problems) {
	if !few(p, "luks", l.LUKS, maxVolumes) {
		return
	}
	for i := range l.LUKS {
		v, here := &l.LUKS[i], at("luks", i)
		p.note(at(here, "name"), checkLUKSName(v.Name))
		p.note(at(here, "label"), checkLabel(v.Label, maxLUKSLabel))
		if len(v.Unlock) == 0 {
			p.add(at(here, "unlock"), ReasonMissing, "say how it is opened at boot: key-file, passphrase or tpm2, or several of them")
		}
		for k, way := range v.Unlock {
			oneOf(p, at(here, "unlock", k), way, UnlockKeyFile, UnlockPassphrase, UnlockTPM2)
			if slices.Contains(v.Unlock[:k], way) {
				p.add(at(here, "unlock", k), ReasonDuplicate, "%s is there twice", clip(way))
			}
		}
		switch asked := slices.Contains(v.Unlock, UnlockPassphrase); {
		case asked && v.Secret == "":
			p.add(at(here, "secret"), ReasonMissing, "name the secret that holds the passphrase; the secret itself is given beside the layout")
		case !asked && v.Secret != "":
			p.add(at(here, "secret"), ReasonConflict, "only a volume that is opened by passphrase has a secret of yours; other keys are made")
		case asked:
			p.note(at(here, "secret"), checkSecretName(v.Secret))
		}
		if !slices.Contains([]int{0, 512, 4096}, v.SectorSize) {
			p.add(at(here, "sector_size"), ReasonInvalid, "%d: use 512 or 4096", v.SectorSize)
		}
	}
}

func (l *Layout) checkGroups(p *Problems) {
	if !few(p, "volume_groups", l.Groups, maxGroups) {
		return
	}
	names := map[string]bool{}
	for i := range l.Groups {
		g, here := &l.Groups[i], at("volume_groups", i)
		p.note(at(here, "name"), checkGroupName(g.Name))
		if names[g.Name] {
			p.add(at(here, "name"), ReasonDuplicate, "there are two groups called %q", clip(g.Name))
		}
		names[g.Name] = true
		if len(g.Devices) == 0 {
			p.add(at(here, "devices"), ReasonMissing, "name the group's physical volumes, such as md/NAME or part/DISK/LABEL")
		}
		powerOfTwo(p, at(here, "extent_size"), g.ExtentSize, mib, gib)
		if len(g.Volumes) == 0 {
			p.add(at(here, "volumes"), ReasonMissing, "give at least one volume")
		}
		if few(p, at(here, "volumes"), g.Volumes, maxVolumesEach) {
			g.checkVolumes(p, here)
		}
	}
}

func (g *GroupSpec) checkVolumes(p *Problems, group string) {
	rest := -1
	for k := range g.Volumes {
		v, here := &g.Volumes[k], at(group, "volumes", k)
		p.note(at(here, "name"), checkVolumeName(v.Name))
		if v.Kind != "" {
			oneOf(p, at(here, "kind"), v.Kind, VolumeLinear, VolumeStriped, VolumeThinPool, VolumeThin)
		}
		if v.Size.isZero() {
			p.add(at(here, "size"), ReasonMissing, "give a size: %s", sizeHelp)
		}
		thin := v.Kind == VolumeThin
		switch {
		case thin && v.Size.Rest:
			p.add(at(here, "size"), ReasonConflict, "a thin volume's size is what it seems to have; give bytes or a share of its pool")
		case v.Size.Rest && rest >= 0:
			p.add(at(here, "size"), ReasonConflict, "only one volume of a group can be the rest; volumes[%d] is already", rest)
		case v.Size.Rest:
			rest = k
		}
		if v.Kind != VolumeStriped && (v.Stripes != 0 || v.StripeSize != nil) {
			p.add(at(here, "stripes"), ReasonConflict, "only a volume of kind striped has stripes")
		}
		if v.Stripes < 0 || v.Stripes == 1 {
			p.add(at(here, "stripes"), ReasonInvalid, "%d: use 2 or more, at most the number of the group's devices", v.Stripes)
		}
		powerOfTwo(p, at(here, "stripe_size"), v.StripeSize, 4*kib, mib)
		switch {
		case thin && !slices.ContainsFunc(g.Volumes, func(o VolumeSpec) bool { return o.Name == v.Pool && o.Kind == VolumeThinPool }):
			p.add(at(here, "pool"), ReasonNotFound, "%q is no thin pool of this group; name a volume of kind thin-pool", clip(v.Pool))
		case !thin && v.Pool != "":
			p.add(at(here, "pool"), ReasonConflict, "only a volume of kind thin has a pool")
		}
	}
}

func (l *Layout) checkFilesystems(p *Problems) {
	if !few(p, "filesystems", l.Filesystems, maxFilesystems) {
		return
	}
	for i := range l.Filesystems {
		checkFilesystem(p, at("filesystems", i), &l.Filesystems[i])
	}
}

func checkFilesystem(p *Problems, here string, f *FilesystemSpec) {
	oneOf(p, at(here, "format"), f.Format, FormatExt4, FormatXFS, FormatBtrfs, FormatVFAT, FormatSwap)
	p.note(at(here, "label"), checkLabel(f.Label, maxLabel(f.Format)))
	if f.MountPoint != "" {
		p.note(at(here, "mount_point"), checkMountPoint(f.MountPoint))
	}
	if f.Format == FormatSwap && f.MountPoint != "" {
		p.add(at(here, "mount_point"), ReasonConflict, "swap is not mounted; leave it out")
	}
	checkOptions(p, here, f.Options)
	if few(p, at(here, "make_options"), f.MakeOptions, maxOptions) {
		checkMakeOptions(p, here, f.Format, f.MakeOptions)
	}
	if len(f.Subvolumes) > 0 && f.Format != FormatBtrfs {
		p.add(at(here, "subvolumes"), ReasonConflict, "only btrfs has subvolumes")
	}
	if len(f.Subvolumes) > 0 && f.MountPoint != "" {
		p.add(at(here, "mount_point"), ReasonConflict, "a filesystem with subvolumes is mounted by them; give the mount point to a subvolume")
	}
	if few(p, at(here, "subvolumes"), f.Subvolumes, maxSubvolumes) {
		checkSubvolumes(p, here, f.Subvolumes)
	}
}

func checkSubvolumes(p *Problems, filesystem string, specs []SubvolumeSpec) {
	names := map[string]bool{}
	for k, s := range specs {
		here := at(filesystem, "subvolumes", k)
		p.note(at(here, "name"), checkSubvolumeName(s.Name))
		if names[s.Name] {
			p.add(at(here, "name"), ReasonDuplicate, "%q is there twice", clip(s.Name))
		}
		names[s.Name] = true
		if parent := path.Dir(s.Name); parent != "." && !names[parent] {
			p.add(at(here, "name"), ReasonNotFound, "%q stands in %q, which is no subvolume above it in the list", clip(s.Name), clip(parent))
		}
		if s.MountPoint != "" {
			p.note(at(here, "mount_point"), checkMountPoint(s.MountPoint))
		}
		checkOptions(p, here, s.Options)
	}
}

func checkOptions(p *Problems, owner string, options []string) {
	if !few(p, at(owner, "options"), options, maxOptions) {
		return
	}
	for k, o := range options {
		p.note(at(owner, "options", k), checkMountOption(o))
		if slices.Contains(options[:k], o) {
			p.add(at(owner, "options", k), ReasonDuplicate, "%s is there twice", clip(o))
		}
	}
}

// checkMapperNames refuses two things that would have one name in /dev/mapper.
func (m *model) checkMapperNames() {
	names := map[string]string{}
	note := func(name, path string) {
		if before, twice := names[name]; twice {
			m.problems.add(path, ReasonDuplicate, "/dev/mapper/%s would be %s too; use another name", name, before)
		}
		names[name] = path
	}
	for i, v := range m.layout.LUKS {
		note(v.Name, at("luks", i, "name"))
	}
	for i, g := range m.layout.Groups {
		for k, v := range g.Volumes {
			path, name := at("volume_groups", i, "volumes", k, "name"), mapperName(g.Name, v.Name)
			if len(name) > maxMapperName {
				m.problems.add(path, ReasonInvalid, "/dev/mapper/%s has %d characters in its name; at most %d, dashes counted twice", name, len(name), maxMapperName)
			}
			note(name, path)
		}
	}
}
