package layout

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
)

var (
	digestExpression   = regexp.MustCompile(`^[0-9a-f]{64}$`)
	kernelExpression   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.!-]{0,31}$`)
	printedExpression  = regexp.MustCompile(`^[ -~]{1,128}$`)
	volumeIDExpression = regexp.MustCompile(`^[0-9A-F]{4}-[0-9A-F]{4}$`)
)

// validator looks at a plan from the disks up and remembers what may be stood on.
type validator struct {
	problems Problems
	size     map[Ref]int64
	used     map[Ref]bool
	ids      map[string]bool
}

// validate refuses a plan that MakePlan would not make: names, references, sizes and identifiers.
func (p *Plan) validate() error {
	v := &validator{size: map[Ref]int64{}, used: map[Ref]bool{}, ids: map[string]bool{}}
	if p.Format != PlanFormat {
		v.bad("format", "%q: want %q", clip(p.Format), PlanFormat)
	}
	if !digestExpression.MatchString(p.LayoutSHA256) {
		v.bad("layout_sha256", "want 64 lower-case hexadecimal digits")
	}
	counts := few(&v.problems, "disks", p.Disks, maxDisks) && few(&v.problems, "arrays", p.Arrays, maxArrays) && few(&v.problems, "luks", p.LUKS, maxVolumes) &&
		few(&v.problems, "volume_groups", p.Groups, maxGroups) && few(&v.problems, "filesystems", p.Files, maxFilesystems) && few(&v.problems, "warnings", p.Warnings, 512)
	if !counts {
		return v.err()
	}
	if len(p.Disks) == 0 {
		v.bad("disks", "a plan has at least one disk")
	}
	for i, d := range p.Disks {
		v.disk(at("disks", i), d)
	}
	for i, a := range p.Arrays {
		v.array(at("arrays", i), a)
	}
	v.declareVolumes(p)
	for i, l := range p.LUKS {
		v.luks(at("luks", i), l)
	}
	for i, g := range p.Groups {
		v.group(at("volume_groups", i), g)
	}
	for i, f := range p.Files {
		v.filesystem(at("filesystems", i), f)
	}
	if len(p.stacked()) < len(p.LUKS)+len(p.Groups) {
		v.bad("luks", "volumes stand on themselves")
	}
	for i, w := range p.Warnings {
		if len(w) == 0 || len(w) > 2048 || regexp.MustCompile(`[\x00-\x1f\x7f]`).MatchString(w) {
			v.bad(at("warnings", i), "want 1 to 2048 printable characters")
		}
	}
	return v.err()
}

func (v *validator) bad(path, format string, args ...any) {
	v.problems.add(path, ReasonPlanCorrupted, format, args...)
}

func (v *validator) err() error {
	if len(v.problems) == 0 {
		return nil
	}
	return fmt.Errorf("the plan is not sound: %w", v.problems)
}

func (v *validator) note(path string, err error) {
	if err != nil {
		v.bad(path, "%v", err)
	}
}

func (v *validator) id(path, id string) {
	if !guidExpression.MatchString(id) {
		v.bad(path, "%q: want RFC 4122 text in lower case", clip(id))
	}
	v.once(path, id)
}

func (v *validator) once(path, id string) {
	if v.ids[id] {
		v.bad(path, "%q is there twice", clip(id))
	}
	v.ids[id] = true
}

func (v *validator) declare(path string, ref Ref, size int64) {
	if _, twice := v.size[ref]; twice {
		v.bad(path, "%s is there twice", ref)
	}
	if size <= 0 || size > maxBytes {
		v.bad(path, "%s has %d bytes", ref, size)
	}
	v.size[ref] = size
}

// use notes that something stands on ref and gives its size.
func (v *validator) use(path string, ref Ref, kinds ...string) int64 {
	size, known := v.size[ref]
	switch {
	case !refExpression.MatchString(string(ref)) || !known || !slices.Contains(kinds, ref.kind()):
		v.bad(path, "%q is nothing that can stand here", clip(string(ref)))
	case v.used[ref]:
		v.bad(path, "%s is used twice", ref)
	}
	v.used[ref] = true
	return size
}

func (v *validator) disk(path string, d DiskPlan) {
	if !regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,35}$`).MatchString(d.Name) {
		v.bad(at(path, "name"), "%q is no disk's name", clip(d.Name))
	}
	if d.Serial == "" && d.WWN == "" {
		v.bad(at(path, "serial"), "neither serial number nor WWN binds the plan to a disk")
	}
	for _, identity := range []string{d.Serial, d.WWN} {
		if identity != "" {
			if !identityExpression.MatchString(identity) {
				v.bad(at(path, "serial"), "%q is no serial number or WWN", clip(identity))
			}
		}
	}
	v.once(at(path, "serial"), d.Serial+"\n"+d.WWN)
	if d.Model != "" && !printedExpression.MatchString(d.Model) {
		v.bad(at(path, "model"), "want printable characters")
	}
	if d.KernelName != "" && !kernelExpression.MatchString(d.KernelName) {
		v.bad(at(path, "kernel_name"), "%q is no kernel name", clip(d.KernelName))
	}
	if d.SectorSize != 512 && d.SectorSize != 4096 {
		v.bad(at(path, "sector_size"), "%d: want 512 or 4096", d.SectorSize)
		return
	}
	v.declare(path, diskRef(d.Name), d.SizeBytes)
	if !d.Table {
		if d.GUID != "" || len(d.Partitions) > 0 {
			v.bad(path, "partitions without a table")
		}
		return
	}
	if len(d.Partitions) == 0 {
		v.bad(at(path, "partitions"), "a table without partitions")
	}
	v.used[diskRef(d.Name)] = true
	v.id(at(path, "guid"), d.GUID)
	v.partitions(path, d)
}

func (v *validator) partitions(path string, d DiskPlan) {
	if !few(&v.problems, at(path, "partitions"), d.Partitions, maxPartitions) {
		return
	}
	sector := int64(d.SectorSize)
	end := firstUsable(sector)
	for i, p := range d.Partitions {
		here := at(path, "partitions", i)
		if p.Number < 1 || p.Number > maxPartitions {
			v.bad(at(here, "number"), "%d: want 1 to %d", p.Number, maxPartitions)
		}
		v.note(at(here, "label"), checkPartitionLabel(p.Label))
		if !guidExpression.MatchString(p.Type) {
			v.bad(at(here, "type"), "%q: want RFC 4122 text in lower case", clip(p.Type))
		}
		v.id(at(here, "guid"), p.GUID)
		switch {
		case p.StartBytes%sector != 0 || p.SizeBytes%sector != 0:
			v.bad(here, "start %d and size %d are no multiples of a sector's %d bytes", p.StartBytes, p.SizeBytes, sector)
		case p.StartBytes < end || p.SizeBytes <= 0 || p.SizeBytes > maxBytes || p.StartBytes > maxBytes:
			v.bad(here, "it begins at byte %d with %d bytes, and what is before it ends at %d", p.StartBytes, p.SizeBytes, end)
		}
		end = p.StartBytes + p.SizeBytes
		v.declare(here, partRef(d.Name, p.Number), p.SizeBytes)
	}
	if end > usableEnd(d.SizeBytes, sector) {
		v.bad(at(path, "partitions"), "they end at byte %d, behind the last that can be used of the disk's %d", end, d.SizeBytes)
	}
}

func (v *validator) array(path string, a ArrayPlan) {
	v.note(at(path, "name"), checkArrayName(a.Name))
	v.id(at(path, "uuid"), a.UUID)
	least, ok := map[int]int{0: 2, 1: 2, 5: 3, 6: 4, 10: 2}[a.Level]
	if !ok || len(a.Members) < least || len(a.Members)+len(a.Spares) > 2*maxMembers {
		v.bad(at(path, "level"), "level %d with %d members", a.Level, len(a.Members))
	}
	if a.Metadata != "1.2" && a.Metadata != "1.0" {
		v.bad(at(path, "metadata"), "%q: want 1.2 or 1.0", clip(a.Metadata))
	}
	if chunk := a.ChunkBytes; (a.Level == 1) != (chunk == 0) || chunk < 0 || chunk > 64*mib || chunk&(chunk-1) != 0 {
		v.bad(at(path, "chunk_bytes"), "%d bytes for level %d", chunk, a.Level)
	}
	total := int64(0)
	for i, ref := range a.Members {
		total += v.use(at(path, "members", i), ref, "part", "disk")
	}
	for i, ref := range a.Spares {
		v.use(at(path, "spares", i), ref, "part", "disk")
	}
	if a.SizeBytes > total {
		v.bad(at(path, "size_bytes"), "%d is more than its members have", a.SizeBytes)
	}
	v.declare(path, arrayRef(a.Name), a.SizeBytes)
}

// declareVolumes makes LUKS and logical volumes known, since they stand on each other in either order.
func (v *validator) declareVolumes(p *Plan) {
	for i, l := range p.LUKS {
		v.declare(at("luks", i), luksRef(l.Name), l.SizeBytes)
	}
	for i, g := range p.Groups {
		if !few(&v.problems, at("volume_groups", i, "volumes"), g.Volumes, maxVolumesEach) {
			continue
		}
		for k, one := range g.Volumes {
			ref := volumeRef(g.Name, one.Name)
			v.declare(at("volume_groups", i, "volumes", k), ref, one.SizeBytes)
			v.used[ref] = one.Kind == VolumeThinPool
		}
	}
}

func (v *validator) luks(path string, l LUKSPlan) {
	v.note(at(path, "name"), checkLUKSName(l.Name))
	v.id(at(path, "uuid"), l.UUID)
	v.note(at(path, "label"), checkLabel(l.Label, maxLUKSLabel))
	if len(l.Unlock) == 0 || len(l.Unlock) > 3 {
		v.bad(at(path, "unlock"), "%d ways to open it", len(l.Unlock))
	}
	for i, way := range l.Unlock {
		if !slices.Contains([]string{UnlockKeyFile, UnlockPassphrase, UnlockTPM2}, way) || slices.Contains(l.Unlock[:i], way) {
			v.bad(at(path, "unlock", i), "%q is no way to open it, or is there twice", clip(way))
		}
	}
	if slices.Contains(l.Unlock, UnlockPassphrase) {
		v.note(at(path, "secret"), checkSecretName(l.Secret))
	} else if l.Secret != "" {
		v.note(at(path, "secret"), errors.New("a secret without a passphrase"))
	}
	if l.SectorSize != 512 && l.SectorSize != 4096 {
		v.bad(at(path, "sector_size"), "%d: want 512 or 4096", l.SectorSize)
	}
	if below := v.use(at(path, "device"), l.Device, "part", "disk", "md", "lv"); l.SizeBytes > below-luksHeader {
		v.bad(at(path, "size_bytes"), "%d is more than %s has behind the header", l.SizeBytes, clip(string(l.Device)))
	}
}

func (v *validator) group(path string, g GroupPlan) {
	v.note(at(path, "name"), checkGroupName(g.Name))
	v.once(at(path, "name"), "group\n"+g.Name)
	if len(g.Devices) == 0 || len(g.Devices) > maxMembers {
		v.bad(at(path, "devices"), "%d devices", len(g.Devices))
	}
	total := int64(0)
	for i, ref := range g.Devices {
		total += v.use(at(path, "devices", i), ref, "part", "disk", "md", "luks")
	}
	if e := g.ExtentBytes; e < mib || e > gib || e&(e-1) != 0 {
		v.bad(at(path, "extent_bytes"), "%d: want a power of two from %d to %d", e, mib, gib)
		return
	}
	if g.SizeBytes > total || g.SizeBytes <= 0 || g.SizeBytes%g.ExtentBytes != 0 {
		v.bad(at(path, "size_bytes"), "%d is more than its devices have, or no multiple of an extent", g.SizeBytes)
	}
	if len(g.Volumes) == 0 {
		v.bad(at(path, "volumes"), "a group without volumes")
	}
	pools, taken, spare := map[string]bool{}, int64(0), int64(0)
	for i, one := range g.Volumes {
		here := at(path, "volumes", i)
		v.volume(here, g, one, pools)
		if one.Kind != VolumeThin {
			taken += one.SizeBytes + one.MetadataBytes
			spare = max(spare, one.MetadataBytes)
		}
	}
	if taken+spare > g.SizeBytes {
		v.bad(at(path, "volumes"), "they take %d bytes of the group's %d", taken+spare, g.SizeBytes)
	}
}

func (v *validator) volume(path string, g GroupPlan, one VolumePlan, pools map[string]bool) {
	v.note(at(path, "name"), checkVolumeName(one.Name))
	if one.SizeBytes%g.ExtentBytes != 0 || one.MetadataBytes%g.ExtentBytes != 0 || one.MetadataBytes < 0 || one.MetadataBytes > maxBytes {
		v.bad(at(path, "size_bytes"), "no multiple of an extent")
	}
	if striped := one.Kind == VolumeStriped; striped != (one.Stripes > 1 && one.Stripes <= len(g.Devices)) || striped != (one.StripeBytes > 0) ||
		one.StripeBytes < 0 || one.StripeBytes > g.ExtentBytes || one.StripeBytes&(one.StripeBytes-1) != 0 {
		v.bad(at(path, "stripes"), "%d stripes of %d bytes for kind %q", one.Stripes, one.StripeBytes, clip(one.Kind))
	}
	pool := one.Kind == VolumeThinPool
	switch {
	case !slices.Contains([]string{VolumeLinear, VolumeStriped, VolumeThinPool, VolumeThin}, one.Kind):
		v.bad(at(path, "kind"), "%q is no kind of volume", clip(one.Kind))
	case (one.Kind == VolumeThin) != (one.Pool != "") || (one.Pool != "" && !pools[one.Pool]):
		v.bad(at(path, "pool"), "%q is no pool before it in the group", clip(one.Pool))
	case pool != (one.MetadataBytes > 0):
		v.bad(at(path, "metadata_bytes"), "%d for kind %s", one.MetadataBytes, one.Kind)
	}
	pools[one.Name] = pool
}

func (v *validator) filesystem(path string, f FilesystemPlan) {
	size := v.use(at(path, "device"), f.Device, "part", "disk", "md", "luks", "lv")
	if f.SizeBytes <= 0 || f.SizeBytes > size {
		v.bad(at(path, "size_bytes"), "%d is more than %s has", f.SizeBytes, clip(string(f.Device)))
	}
	if f.Format == FormatVFAT {
		if !volumeIDExpression.MatchString(f.UUID) {
			v.bad(at(path, "uuid"), `%q: want a volume id such as "1A2B-3C4D"`, clip(f.UUID))
		}
		v.once(at(path, "uuid"), f.UUID)
	} else {
		v.id(at(path, "uuid"), f.UUID)
	}
	// What is the author's is checked as it was in the layout.
	spec := FilesystemSpec{Device: string(f.Device), Format: f.Format, Label: f.Label, MountPoint: f.MountPoint, Options: f.Options, MakeOptions: f.MakeOptions}
	for _, s := range f.Subvolumes {
		spec.Subvolumes = append(spec.Subvolumes, SubvolumeSpec(s))
	}
	checkFilesystem(&v.problems, path, &spec)
	for _, m := range (&Layout{Filesystems: []FilesystemSpec{spec}}).mounts() {
		v.once(path, "mount\n"+m.point)
	}
}
