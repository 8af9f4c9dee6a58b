package layout

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// randomLayout makes a layout and disks that may or may not fit it.
func randomLayout(r *rand.Rand) (*Layout, []Disk) {
	var disks []Disk
	sector := []int{512, 512, 4096}[r.IntN(3)]
	for i := range 2 + r.IntN(6) {
		disks = append(disks, disk(fmt.Sprintf("sd%c", 'a'+i), gib+r.Int64N(8*tib)/int64(sector)*int64(sector)+r.Int64N(2)*int64(sector), func(d *Disk) {
			d.LogicalSector, d.PhysicalSector, d.Transport, d.Rotational = sector, max(sector, 512<<(3*r.IntN(2))), "sas", r.IntN(2) == 0
		}))
	}
	size := func() Size {
		switch r.IntN(4) {
		case 0:
			return Size{Percent: 1 + r.Int64N(40)}
		case 1:
			return Size{Bytes: (1 + r.Int64N(1<<20)) * 4096}
		}
		return Size{Bytes: (1 + r.Int64N(64)) * []int64{mib, 64 * mib, gib}[r.IntN(3)]}
	}
	l := &Layout{Format: Format}
	count := 1 + r.IntN(len(disks))
	d := DiskSpec{Name: "d", Select: Select{Pick: []string{PickSmallest, PickLargest, PickAny}[r.IntN(3)], Count: count}}
	d.Partitions = append(d.Partitions, PartitionSpec{Label: "efi", Type: "esp", Size: Size{Bytes: (300 + r.Int64N(300)) * mib}})
	for i := range 1 + r.IntN(6) {
		p := PartitionSpec{Label: fmt.Sprintf("p%d", i), Size: size()}
		if r.IntN(3) == 0 {
			p.Alignment = &Size{Bytes: 4096 << r.IntN(12)}
		}
		if r.IntN(4) == 0 {
			p.Number = 20 + i
		}
		d.Partitions = append(d.Partitions, p)
	}
	d.Partitions[1+r.IntN(len(d.Partitions)-1)].Size = Size{Rest: true}
	l.Disks = append(l.Disks, d)
	efi, root := "part/d-0/efi", "part/d-0/p0"
	if count > 1 {
		l.RAIDs = append(l.RAIDs, RAIDSpec{Name: "efi", Level: 1, Members: []string{"part/d/efi"}}, RAIDSpec{Name: "root", Level: []int{0, 1, 5, 6, 10}[r.IntN(5)], Members: []string{"part/d/p0"}})
		efi, root = "md/efi", "md/root"
	}
	if r.IntN(3) == 0 {
		l.LUKS = append(l.LUKS, LUKSSpec{Name: "crypt", Device: root, Unlock: []string{UnlockTPM2}})
		root = "luks/crypt"
	}
	if r.IntN(2) == 0 {
		g := GroupSpec{Name: "vg", Devices: []string{root}, Volumes: []VolumeSpec{{Name: "root", Size: Size{Percent: 10 + r.Int64N(50)}}, {Name: "swap", Size: size()}}}
		if len(d.Partitions) > 2 && r.IntN(2) == 0 {
			g.Devices = append(g.Devices, "part/d/p1")
			g.Volumes = append(g.Volumes, VolumeSpec{Name: "fast", Kind: VolumeStriped, Size: Size{Percent: 1 + r.Int64N(30)}})
		}
		if r.IntN(2) == 0 {
			g.Volumes = append(g.Volumes, VolumeSpec{Name: "pool", Kind: VolumeThinPool, Size: []Size{{Rest: true}, size()}[r.IntN(2)]}, VolumeSpec{Name: "thin", Kind: VolumeThin, Pool: "pool", Size: size()})
		} else if r.IntN(2) == 0 {
			g.Volumes = append(g.Volumes, VolumeSpec{Name: "rest", Kind: []string{VolumeLinear, VolumeStriped}[r.IntN(2)], Size: Size{Rest: true}})
		}
		if r.IntN(3) == 0 {
			g.ExtentSize = &Size{Bytes: mib << r.IntN(6)}
		}
		l.Groups, root = append(l.Groups, g), "lv/vg/root"
	}
	l.Filesystems = []FilesystemSpec{
		{Device: efi, Format: FormatVFAT, MountPoint: "/boot/efi"},
		{Device: root, Format: []string{FormatExt4, FormatXFS, FormatBtrfs}[r.IntN(3)], MountPoint: "/"},
	}
	if len(l.LUKS) > 0 {
		d.Partitions = append(d.Partitions, PartitionSpec{Label: "boot", Size: Size{Bytes: gib}})
		l.Disks[0] = d
		l.Filesystems = append(l.Filesystems, FilesystemSpec{Device: "part/d-0/boot", Format: FormatExt4, MountPoint: "/boot"})
	}
	return l, disks
}

// TestPlansOfRandomLayouts holds every plan that is made against what must be true of any plan, worked out here anew.
func TestPlansOfRandomLayouts(t *testing.T) {
	const rounds = 1500
	made, striped, thin := 0, 0, 0
	for seed := range uint64(rounds) {
		l, disks := randomLayout(rand.New(rand.NewPCG(seed, 0)))
		p, err := MakePlan(l, disks, uefi())
		var refused Problems
		if err != nil && (!errors.As(err, &refused) || strings.Contains(err.Error(), "mistake in this program")) {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if err != nil {
			continue
		}
		made++
		checkPlan(t, seed, l, p)
		for _, g := range p.Groups {
			for _, v := range g.Volumes {
				striped, thin = striped+boolInt(v.Kind == VolumeStriped), thin+boolInt(v.Kind == VolumeThin)
			}
		}
		shuffled := slices.Clone(disks)
		rand.New(rand.NewPCG(seed, 1)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		again, err := MakePlan(l, shuffled, uefi())
		if err != nil {
			t.Fatalf("seed %d: disks in another order: %v", seed, err)
		}
		if diff := cmp.Diff(p, again); diff != "" {
			t.Fatalf("seed %d: disks in another order make another plan (-first +second)\n%s", seed, diff)
		}
		if t.Failed() {
			return
		}
	}
	if made < rounds/4 || striped < 20 || thin < 20 {
		t.Errorf("%d plans of %d layouts, %d striped and %d thin volumes: too few to say anything", made, rounds, striped, thin)
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func checkPlan(t *testing.T, seed uint64, l *Layout, p *Plan) {
	t.Helper()
	bad := func(format string, args ...any) { t.Errorf("seed %d: "+format, append([]any{seed}, args...)...) }
	size, ids := map[Ref]int64{}, map[string]bool{}
	id := func(s string) {
		if ids[s] {
			bad("identifier %s is there twice", s)
		}
		ids[s] = true
	}
	for _, d := range p.Disks {
		size[diskRef(d.Name)] = d.SizeBytes
		id(d.GUID)
		end, sector := int64(0), int64(d.SectorSize)
		for i, part := range d.Partitions {
			align, spec := mib, l.Disks[0].Partitions[i]
			if spec.Alignment != nil {
				align = spec.Alignment.Bytes
			}
			switch {
			case part.StartBytes%align != 0, part.StartBytes%sector != 0, part.SizeBytes%sector != 0:
				bad("%s partition %d begins at %d with %d: not aligned", d.Name, part.Number, part.StartBytes, part.SizeBytes)
			case part.StartBytes < end || part.StartBytes-end >= align && i > 0:
				bad("%s partition %d begins at %d, the one before ends at %d", d.Name, part.Number, part.StartBytes, end)
			case spec.Size.Bytes > 0 && part.SizeBytes != spec.Size.Bytes:
				bad("%s partition %d has %d bytes, asked for %d", d.Name, part.Number, part.SizeBytes, spec.Size.Bytes)
			case part.SizeBytes <= 0:
				bad("%s partition %d is empty", d.Name, part.Number)
			}
			end = part.StartBytes + part.SizeBytes
			size[partRef(d.Name, part.Number)] = part.SizeBytes
			id(part.GUID)
		}
		// The header and the entries at both ends: 33 sectors of 512 bytes, 5 of 4096, and the MBR before.
		table := map[int64]int64{512: 33, 4096: 5}[sector] * sector
		if first := d.Partitions[0].StartBytes; first < table+sector || end > d.SizeBytes-table {
			bad("%s: partitions from %d to %d of %d bytes", d.Name, first, end, d.SizeBytes)
		}
		if free := d.SizeBytes - table - end; free >= 128*mib {
			bad("%s: %d bytes are left though one partition is the rest", d.Name, free)
		}
	}
	for _, a := range p.Arrays {
		id(a.UUID)
		least, sum := int64(1)<<62, int64(0)
		for _, m := range a.Members {
			least, sum = min(least, size[m]), sum+size[m]
		}
		n := int64(len(a.Members))
		most := map[int]int64{0: sum, 1: least, 5: (n - 1) * least, 6: (n - 2) * least, 10: n * least / 2}[a.Level]
		// mdadm takes at most 130 MiB and a chunk of each member.
		if a.SizeBytes > most || a.SizeBytes < most-n*131*mib-n*a.ChunkBytes {
			bad("md/%s of level %d has %d bytes, of at most %d", a.Name, a.Level, a.SizeBytes, most)
		}
		size[arrayRef(a.Name)] = a.SizeBytes
	}
	for _, v := range p.LUKS {
		id(v.UUID)
		if v.SizeBytes > size[v.Device]-16*mib || v.SizeBytes <= size[v.Device]-17*mib || v.SizeBytes%int64(v.SectorSize) != 0 {
			bad("luks/%s has %d bytes on %d", v.Name, v.SizeBytes, size[v.Device])
		}
		size[luksRef(v.Name)] = v.SizeBytes
	}
	for _, g := range p.Groups {
		sum, taken, spare := int64(0), int64(0), int64(0)
		for _, d := range g.Devices {
			sum += size[d]
		}
		for _, v := range g.Volumes {
			if v.SizeBytes <= 0 || v.SizeBytes%g.ExtentBytes != 0 || v.Stripes > 0 && v.SizeBytes%(int64(v.Stripes)*g.ExtentBytes) != 0 {
				bad("lv/%s/%s has %d bytes in extents of %d, %d stripes", g.Name, v.Name, v.SizeBytes, g.ExtentBytes, v.Stripes)
			}
			if v.Kind != VolumeThin {
				taken += v.SizeBytes + v.MetadataBytes
				spare = max(spare, v.MetadataBytes)
			}
			size[volumeRef(g.Name, v.Name)] = v.SizeBytes
		}
		if g.SizeBytes >= sum || taken+spare > g.SizeBytes {
			bad("vg/%s of %d bytes has %d on devices of %d", g.Name, g.SizeBytes, taken+spare, sum)
		}
	}
	for _, f := range p.Files {
		id(f.UUID)
		if f.SizeBytes != size[f.Device] {
			bad("%s on %s has %d bytes, the device %d", f.Format, f.Device, f.SizeBytes, size[f.Device])
		}
	}
	checkActions(t, seed, p)
	if data, err := p.Encode(); err != nil {
		bad("encode: %v", err)
	} else if again, err := DecodePlan(data); err != nil {
		bad("decode: %v", err)
	} else if diff := cmp.Diff(p, again); diff != "" {
		bad("decoded plan (-made +read)\n%s", diff)
	}
}

// checkActions sees that each thing is made once, after what it stands on and after the disk below was erased.
func checkActions(t *testing.T, seed uint64, p *Plan) {
	t.Helper()
	done := map[string]bool{}
	need := func(what Action, ids ...string) {
		for _, id := range ids {
			if !done[id] {
				t.Errorf("seed %d: %s comes before %s", seed, what.ID, id)
			}
		}
	}
	maker := func(r Ref) string {
		kind, names := r.split()
		switch kind {
		case "part":
			return "table/disk/" + names[0]
		case "md":
			return "array/" + string(r)
		case "luks":
			return "encrypt/" + string(r)
		case "lv":
			return "volume/" + string(r)
		}
		return "erase/" + string(r)
	}
	for _, a := range p.Actions() {
		if done[a.ID] {
			t.Errorf("seed %d: %s is there twice", seed, a.ID)
		}
		switch a.Kind {
		case ActionErase:
			need(a, "stop/"+string(a.Target))
		case ActionTable:
			need(a, "erase/"+string(a.Target))
		case ActionArray:
			for _, one := range p.Arrays {
				for _, m := range one.Members {
					if arrayRef(one.Name) == a.Target {
						need(a, maker(m))
					}
				}
			}
		case ActionEncrypt:
			for _, v := range p.LUKS {
				if luksRef(v.Name) == a.Target {
					need(a, maker(v.Device))
				}
			}
		case ActionGroup:
			for _, g := range p.Groups {
				for _, d := range g.Devices {
					if groupRef(g.Name) == a.Target {
						need(a, maker(d))
					}
				}
			}
		case ActionVolume:
			_, names := a.Target.split()
			need(a, "group/vg/"+names[0])
		case ActionFilesystem:
			need(a, maker(a.Target))
		}
		done[a.ID] = true
	}
}
