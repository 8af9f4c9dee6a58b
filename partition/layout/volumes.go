package layout

import (
	"cmp"
	"slices"
)

const (
	luksHeader    = 16 * mib // what cryptsetup-luksFormat(8) reserves for a LUKS2 header
	defaultExtent = 4 * mib  // vgcreate(8)
	defaultStripe = 64 * kib // lvcreate(8)
	// LVM's default size of a thin pool's metadata: 64 bytes a chunk of 64 KiB, chunks growing so that 128 MiB are enough.
	leastPoolMetadata, mostPoolMetadata = 4 * mib, 128 * mib
)

// makeVolumes makes LUKS volumes and volume groups, each after what it stands on.
func (k *maker) makeVolumes() {
	luks, groups := make([]bool, len(k.layout.LUKS)), make([]bool, len(k.layout.Groups))
	for progress := true; progress && len(k.problems) == 0; {
		progress = false
		for i := range k.layout.LUKS {
			if !luks[i] && k.device[k.luksDevice[i]].made {
				k.makeLUKS(i)
				luks[i], progress = true, true
			}
		}
		for i := range k.layout.Groups {
			if !groups[i] && !slices.ContainsFunc(k.groupDevices[i], func(r Ref) bool { return !k.device[r].made }) {
				k.makeGroup(i)
				groups[i], progress = true, true
			}
		}
	}
}

func (k *maker) makeLUKS(i int) {
	spec, here := &k.layout.LUKS[i], at("luks", i)
	ref, dev := k.luksDevice[i], k.device[k.luksDevice[i]]
	sector := int64(spec.SectorSize)
	if sector == 0 {
		sector = 512
		if dev.physical >= 4096 {
			sector = 4096
		}
	}
	if sector < dev.logical {
		k.problems.add(at(here, "sector_size"), ReasonInvalid, "%d: %s has sectors of %d bytes; leave it out or use that", sector, ref, dev.logical)
	}
	size := roundDown(dev.size-luksHeader, sector)
	if size < mib {
		k.problems.add(at(here, "device"), ReasonDoesNotFit, "%s has %d bytes, of which LUKS2 takes %d for its header; %d bytes are missing", ref, dev.size, luksHeader, luksHeader+mib-dev.size)
		return
	}
	if slices.Contains(spec.Unlock, UnlockTPM2) && !k.target.TPM2 {
		k.problems.add(at(here, "unlock", slices.Index(spec.Unlock, UnlockTPM2)), ReasonTPM2Missing, "the machine has no TPM 2.0; use key-file or passphrase")
	}
	k.device[luksRef(spec.Name)] = device{size: size, logical: max(dev.logical, sector), physical: max(dev.physical, sector), stripe: dev.stripe, made: true}
	k.plan.LUKS = append(k.plan.LUKS, LUKSPlan{
		Name: spec.Name, UUID: k.id("luks", luksRef(spec.Name)), Device: ref, Label: spec.Label, Unlock: spec.Unlock, Secret: spec.Secret,
		SectorSize: int(sector), SizeBytes: size,
	})
}

func (k *maker) makeGroup(i int) {
	spec, here := &k.layout.Groups[i], at("volume_groups", i)
	extent := defaultExtent
	if spec.ExtentSize != nil {
		extent = spec.ExtentSize.Bytes
	}
	g := group{maker: k, spec: spec, path: here, extent: extent, device: device{made: true}}
	for n, ref := range k.groupDevices[i] {
		dev := k.device[ref]
		if n > 0 && dev.logical != g.device.logical {
			k.problems.add(at(here, "devices"), ReasonConflict, "%s has sectors of %d bytes and %s of %d, which LVM does not mix", k.groupDevices[i][0], g.device.logical, ref, dev.logical)
			return
		}
		g.device.logical, g.device.physical = dev.logical, max(g.device.physical, dev.physical)
		// LVM's own area, then data from a multiple of the array's stripe on (lvm.conf(5), md_chunk_alignment).
		extents := (dev.size - roundUp(mib, max(dev.stripe, 1))) / extent
		if extents < 1 {
			k.problems.add(at(here, "devices"), ReasonDoesNotFit, "%s has %d bytes, less than LVM's own area and one extent of %d", ref, dev.size, extent)
			return
		}
		g.free = append(g.free, extents)
		g.total += extents
	}
	sizes, ok := g.sizes()
	if !ok || !g.allocate(sizes) {
		return
	}
	plan := GroupPlan{Name: spec.Name, Devices: k.groupDevices[i], ExtentBytes: extent, SizeBytes: g.total * extent}
	for _, n := range g.order() {
		v := spec.Volumes[n]
		out := VolumePlan{Name: v.Name, Kind: cmp.Or(v.Kind, VolumeLinear), SizeBytes: sizes[n] * extent, Pool: v.Pool}
		dev := g.device
		dev.size = out.SizeBytes
		switch v.Kind {
		case VolumeStriped:
			out.Stripes, out.StripeBytes = g.stripes(v), g.stripeBytes(v)
			dev.stripe = int64(out.Stripes) * out.StripeBytes
		case VolumeThinPool:
			out.MetadataBytes = g.metadata(sizes[n]) * extent
		}
		k.device[volumeRef(spec.Name, v.Name)] = dev
		plan.Volumes = append(plan.Volumes, out)
	}
	k.plan.Groups = append(k.plan.Groups, plan)
	k.warnOvercommitted(plan)
}

func (k *maker) warnOvercommitted(g GroupPlan) {
	for _, pool := range g.Volumes {
		promised := int64(0)
		for _, v := range g.Volumes {
			if v.Kind == VolumeThin && v.Pool == pool.Name {
				promised += v.SizeBytes
			}
		}
		if pool.Kind == VolumeThinPool && promised > pool.SizeBytes {
			k.warn("lv/%s/%s: its thin volumes seem to have %d bytes (%s) more than the pool has", g.Name, pool.Name, promised-pool.SizeBytes, bytesText(promised-pool.SizeBytes))
		}
	}
}

// group divides a volume group's extents among its volumes.
type group struct {
	*maker
	spec   *GroupSpec
	path   string
	extent int64
	total  int64
	free   []int64 // extents of each physical volume
	device device
}

func (g *group) stripes(v VolumeSpec) int { return cmp.Or(v.Stripes, len(g.free)) }

func (g *group) stripeBytes(v VolumeSpec) int64 {
	if v.StripeSize != nil {
		return v.StripeSize.Bytes
	}
	return defaultStripe
}

// metadata of a thin pool, in extents.
func (g *group) metadata(pool int64) int64 {
	bytes := min(max(pool*g.extent/1024, leastPoolMetadata), mostPoolMetadata)
	return roundUp(bytes, g.extent) / g.extent
}

// order of creation: striped volumes first, while all devices are as empty as each other, those over most devices before; thin ones last.
func (g *group) order() []int {
	rank := func(v VolumeSpec) int {
		switch v.Kind {
		case VolumeStriped:
			return -g.stripes(v)
		case VolumeThin:
			return 1
		}
		return 0
	}
	all := make([]int, len(g.spec.Volumes))
	for i := range all {
		all[i] = i
	}
	slices.SortStableFunc(all, func(a, b int) int { return cmp.Compare(rank(g.spec.Volumes[a]), rank(g.spec.Volumes[b])) })
	return all
}

// sizes of all volumes in extents.
func (g *group) sizes() ([]int64, bool) {
	sizes, rest, needed, spare := make([]int64, len(g.spec.Volumes)), -1, int64(0), int64(0)
	for n, v := range g.spec.Volumes {
		here, unit := at(g.path, "volumes", n), int64(1)
		if v.Kind == VolumeStriped {
			if unit = int64(g.stripes(v)); unit < 2 || unit > int64(len(g.free)) {
				g.problems.add(at(here, "stripes"), ReasonInvalid, "%d stripes need as many devices, and at least 2; the group has %d", unit, len(g.free))
				return nil, false
			}
			if g.stripeBytes(v) > g.extent {
				g.problems.add(at(here, "stripe_size"), ReasonInvalid, "%s is more than an extent of %s", v.StripeSize, bytesText(g.extent))
			}
		}
		switch {
		case v.Kind == VolumeThin && v.Size.Percent > 0:
			continue // of its pool, below
		case v.Size.Percent > 0:
			sizes[n] = v.Size.part(g.total, unit)
		case v.Size.Rest:
			rest = n
		default:
			sizes[n] = roundUp(roundUp(v.Size.Bytes, g.extent)/g.extent, unit)
		}
		if sizes[n] == 0 && !v.Size.Rest {
			g.problems.add(at(here, "size"), ReasonDoesNotFit, "%s of the group is less than an extent of %s for each stripe", v.Size, bytesText(g.extent))
			return nil, false
		}
		if v.Kind != VolumeThin {
			needed += sizes[n]
		}
		if v.Kind == VolumeThinPool && !v.Size.Rest {
			needed += g.metadata(sizes[n])
			spare = max(spare, g.metadata(sizes[n]))
		}
	}
	left := g.total - needed - spare // LVM keeps a spare of the largest pool's metadata
	if rest >= 0 {
		left = g.rest(rest, sizes, left, spare)
		sizes[rest] = left
	}
	if left < 0 || (rest >= 0 && left == 0) {
		short := max(-left, 1) * g.extent
		g.problems.add(at(g.path, "volumes"), ReasonDoesNotFit, "the group offers %d extents of %s (%s), and its volumes need at least %d bytes (%s) more", g.total, bytesText(g.extent), bytesText(g.total*g.extent), short, bytesText(short))
		return nil, false
	}
	for n, v := range g.spec.Volumes {
		if v.Kind == VolumeThin && v.Size.Percent > 0 {
			pool := slices.IndexFunc(g.spec.Volumes, func(o VolumeSpec) bool { return o.Name == v.Pool })
			sizes[n] = max(1, v.Size.part(sizes[pool], 1))
		}
	}
	return sizes, len(g.problems) == 0
}

// rest is what one volume can have of the extents that are left.
func (g *group) rest(n int, sizes []int64, left, spare int64) int64 {
	v := g.spec.Volumes[n]
	switch v.Kind {
	case VolumeThinPool:
		// As much metadata as all that is left would need, and the spare that then grows with it.
		metadata := g.metadata(max(left, 1))
		return left - metadata - max(0, metadata-spare)
	case VolumeStriped:
		free := slices.Clone(g.free)
		for _, o := range g.order() {
			if other := g.spec.Volumes[o]; o != n && other.Kind == VolumeStriped {
				takeStripes(free, g.stripes(other), sizes[o])
			}
		}
		slices.SortFunc(free, func(a, b int64) int { return cmp.Compare(b, a) })
		stripes := int64(g.stripes(v))
		return min(left/stripes, free[stripes-1]) * stripes
	}
	return left
}

// allocate sees that the stripes of each striped volume fit on devices of their own.
func (g *group) allocate(sizes []int64) bool {
	free := slices.Clone(g.free)
	for _, n := range g.order() {
		v := g.spec.Volumes[n]
		if v.Kind != VolumeStriped {
			continue
		}
		if short := takeStripes(free, g.stripes(v), sizes[n]); short > 0 {
			g.problems.add(at(g.path, "volumes", n, "size"), ReasonDoesNotFit, "its %d stripes need devices of their own, on which %d bytes (%s) are missing; make it smaller or use fewer stripes",
				g.stripes(v), short*g.extent, bytesText(short*g.extent))
			return false
		}
	}
	return true
}

// takeStripes takes size extents in equal shares from the devices with the most left; it gives how many extents are missing.
func takeStripes(free []int64, stripes int, size int64) (short int64) {
	order := make([]int, len(free))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(free[b], free[a]) })
	each := size / int64(stripes)
	for _, i := range order[:stripes] {
		short += max(0, each-free[i])
		free[i] = max(0, free[i]-each)
	}
	return short
}
