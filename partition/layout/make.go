package layout

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Target is what a plan has to know of the machine, beside its disks, and of the image.
type Target struct {
	// UEFI says that the machine starts through UEFI; TPM2 that it has a TPM 2.0.
	UEFI, TPM2 bool
	// Stacks are what the image's initial RAM filesystem can find its filesystems on (the manifest's boot.root_stacks); nil when no image is
	// meant yet, so that nothing is checked.
	Stacks []string
	// RootBytes is the size of the unpacked image, 0 when it is not known.
	RootBytes int64
	// Seed is what all identifiers are derived from: the job's id. The same layout, disks and seed make the same plan.
	Seed string
}

// maker fills a plan from a layout that was checked and disks that were chosen.
type maker struct {
	*model
	target Target
	seed   string
	plan   *Plan
	disk   []Disk // of each of the model's disks
	device map[Ref]device
}

// device is what stands on others and carries others.
type device struct {
	size int64
	// logical and physical sector sizes.
	logical, physical int64
	// stripe is the width over which an array spreads what is written, 0 when it does not.
	stripe int64
	made   bool
}

// MakePlan matches a layout with a machine's disks and says what becomes of them, or everything that stands against it as Problems.
// Disks that the layout does not choose are left alone.
func MakePlan(l *Layout, disks []Disk, t Target) (*Plan, error) {
	p, err := makePlan(l, disks, t)
	return p, l.inSource(err)
}

func makePlan(l *Layout, disks []Disk, t Target) (*Plan, error) {
	m, err := l.check()
	if err != nil {
		return nil, err
	}
	chosen := m.choose(disks)
	if len(m.problems) > 0 {
		return nil, m.problems
	}
	canonical, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode the layout: %w", err)
	}
	sum := sha256.Sum256(canonical)
	digest := hex.EncodeToString(sum[:])
	k := &maker{model: m, target: t, seed: cmp.Or(t.Seed, digest), device: map[Ref]device{}, plan: &Plan{Format: PlanFormat, LayoutSHA256: digest, UEFI: t.UEFI}}
	for i := range m.disks {
		k.disk = append(k.disk, disks[chosen[i]])
	}
	// Each stage stands on the sizes of the one before.
	for _, stage := range []func(){k.placePartitions, k.makeArrays, k.makeVolumes, k.makeFilesystems, k.checkBoot} {
		stage()
		if len(k.problems) > 0 {
			return nil, k.problems
		}
	}
	if err := k.plan.validate(); err != nil {
		return nil, fmt.Errorf("the plan that was made is wrong, which is a mistake in this program: %w", err)
	}
	if data, err := json.Marshal(k.plan); err != nil {
		return nil, fmt.Errorf("encode the plan: %w", err)
	} else if len(data) > MaxPlanSize {
		k.problems.add("disks", ReasonTooMany, "the plan has %d bytes and at most %d can be stored; use fewer disks or partitions", len(data), MaxPlanSize)
		return nil, k.problems
	}
	return k.plan, nil
}

// id derives an identifier of a kind of thing from the seed: a UUID of version 8 (RFC 9562, section 5.8).
func (k *maker) id(kind string, ref Ref) string {
	sum := sha256.Sum256([]byte(PlanFormat + "\n" + k.seed + "\n" + kind + "\n" + string(ref)))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	h := hex.EncodeToString(sum[:16])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// volumeID is id for vfat, whose identifiers have 32 bits.
func (k *maker) volumeID(ref Ref) string {
	id := strings.ToUpper(k.id("filesystem", ref))
	return id[:4] + "-" + id[4:8]
}

func (k *maker) placePartitions() {
	for i, d := range k.disks {
		disk, specs := k.disk[i], k.layout.Disks[d.spec].Partitions
		sector := int64(disk.LogicalSector)
		plan := DiskPlan{Name: d.name, Serial: disk.Serial, WWN: disk.WWN, Model: matched(printedExpression, disk.Model), KernelName: matched(kernelExpression, disk.Name), SizeBytes: disk.SizeBytes, SectorSize: disk.LogicalSector}
		whole := device{size: roundDown(disk.SizeBytes, sector), logical: sector, physical: max(sector, int64(disk.PhysicalSector)), made: true}
		k.device[diskRef(d.name)] = whole
		if len(specs) > 0 {
			plan.Table, plan.GUID = true, k.id("table", diskRef(d.name))
			plan.Partitions = k.place(d, specs, whole)
		}
		k.plan.Disks = append(k.plan.Disks, plan)
	}
}

// matched is s where it may be shown, else nothing: what a disk says of itself is not to be trusted.
func matched(allowed *regexp.Regexp, s string) string {
	if !allowed.MatchString(s) {
		return ""
	}
	return s
}

// place lays the partitions of a disk out one after the other.
func (k *maker) place(d modelDisk, specs []PartitionSpec, whole device) []PartitionPlan {
	sizes, aligns, here := make([]int64, len(specs)), make([]int64, len(specs)), at("disks", d.spec, "partitions")
	begin, end := firstUsable(whole.logical), usableEnd(whole.size, whole.logical)
	offered := roundDown(max(0, end-roundUp(begin, mib)), mib)
	rest := -1
	for i, s := range specs {
		aligns[i] = mib
		if s.Alignment != nil {
			aligns[i] = s.Alignment.Bytes
		}
		sizes[i] = s.Size.Bytes
		switch {
		case s.Size.Rest:
			rest = i
		case s.Size.Percent > 0:
			if sizes[i] = s.Size.part(offered, aligns[i]); sizes[i] == 0 {
				k.problems.add(at(here, i, "size"), ReasonDoesNotFit, "%s of disk %s is less than the alignment of %s", s.Size, d.name, bytesText(aligns[i]))
			}
		case sizes[i]%whole.logical != 0:
			k.problems.add(at(here, i, "size"), ReasonInvalid, "%d bytes are no multiple of the %d bytes of a sector of disk %s; use %d", sizes[i], whole.logical, d.name, roundUp(sizes[i], whole.logical))
		}
	}
	_, used := starts(begin, sizes, aligns)
	if rest >= 0 {
		// A multiple of the largest alignment behind it moves what follows without a new gap.
		unit := slices.Max(aligns[rest:])
		if sizes[rest] = roundDown(end-used, unit); sizes[rest] <= 0 {
			k.problems.add(at(here, rest, "size"), ReasonDoesNotFit, "nothing is left of disk %s: the other partitions take all but %d of its %d bytes, and at least %d are needed; %d bytes are missing",
				d.name, max(0, end-used), whole.size, unit, unit-(end-used))
			return nil
		}
	}
	first, used := starts(begin, sizes, aligns)
	if used > end {
		k.problems.add(here, ReasonDoesNotFit, "the partitions end at byte %d of disk %s, which can hold them up to byte %d: %d bytes (%s) too much", used, d.name, end, used-end, bytesText(used-end))
		return nil
	}
	var plans []PartitionPlan
	for i, number := range partitionNumbers(specs) {
		ref := partRef(d.name, number)
		k.device[ref] = device{size: sizes[i], logical: whole.logical, physical: whole.physical, made: true}
		plans = append(plans, PartitionPlan{
			Number: number, Label: specs[i].Label, Type: k.partitionType(ref, specs[i]), GUID: k.id("partition", ref),
			StartBytes: first[i], SizeBytes: sizes[i], Attributes: attributeBits(specs[i].Attributes),
		})
	}
	return plans
}

// starts gives where each part begins and where the last one ends.
func starts(begin int64, sizes, aligns []int64) (first []int64, end int64) {
	first, end = make([]int64, len(sizes)), begin
	for i := range sizes {
		first[i] = roundUp(end, aligns[i])
		end = first[i] + sizes[i]
	}
	return first, end
}

// partitionType is the type that was given, or else what stands on the partition.
func (k *maker) partitionType(ref Ref, spec PartitionSpec) string {
	if spec.Type != "" {
		return typeGUID(spec.Type)
	}
	use, used := k.users[ref]
	switch {
	case !used:
		return typeLinux
	case use.kind == useRAID:
		return typeRAID
	case use.kind == useGroup:
		return typeLVM
	case use.kind == useLUKS:
		return typeLUKS
	case k.layout.Filesystems[use.index].Format == FormatSwap:
		return typeSwap
	}
	return typeLinux
}

func (k *maker) warn(format string, args ...any) {
	k.plan.Warnings = append(k.plan.Warnings, fmt.Sprintf(format, args...))
}
