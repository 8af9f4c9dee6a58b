package layout

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// model is a layout with its names resolved: which devices there are, and what stands on which.
type model struct {
	layout   *Layout
	problems Problems

	disks []modelDisk
	parts map[Ref]modelPart
	// Devices that each entry of the layout stands on, by its place.
	raidMembers, raidSpares, groupDevices [][]Ref
	luksDevice, fsDevice                  []Ref
	// users says what stands on a device.
	users map[Ref]user
	// known are all devices that something may stand on, and the thin pools, on which only thin volumes may.
	known map[Ref]bool
	pools map[Ref]bool
}

type modelDisk struct {
	name string
	// spec is the entry's place in layout.Disks, nth the disk's among those of the entry.
	spec, nth int
}

type modelPart struct {
	disk   int // place in model.disks
	number int
	spec   *PartitionSpec
	path   string
}

// Kinds of users of a device.
const (
	useRAID = iota
	useGroup
	useLUKS
	useFilesystem
)

type user struct {
	kind, index int
	path        string
}

func partRef(disk string, number int) Ref { return Ref("part/" + disk + "/" + strconv.Itoa(number)) }
func diskRef(disk string) Ref             { return Ref("disk/" + disk) }
func arrayRef(name string) Ref            { return Ref("md/" + name) }
func luksRef(name string) Ref             { return Ref("luks/" + name) }
func volumeRef(group, name string) Ref    { return Ref("lv/" + group + "/" + name) }

// split gives a reference's kind and the names behind it.
func (r Ref) split() (kind string, names []string) {
	parts := strings.Split(string(r), "/")
	return parts[0], parts[1:]
}

func (r Ref) kind() string {
	kind, _, _ := strings.Cut(string(r), "/")
	return kind
}

// newModel resolves l, whose fields are checked by themselves.
func newModel(l *Layout) *model {
	m := &model{layout: l, parts: map[Ref]modelPart{}, users: map[Ref]user{}, known: map[Ref]bool{}, pools: map[Ref]bool{}}
	m.addDisks()
	for i, r := range l.RAIDs {
		m.declare(arrayRef(r.Name), at("raids", i, "name"))
	}
	for i, v := range l.LUKS {
		m.declare(luksRef(v.Name), at("luks", i, "name"))
	}
	for i, g := range l.Groups {
		for k, v := range g.Volumes {
			ref := volumeRef(g.Name, v.Name)
			m.declare(ref, at("volume_groups", i, "volumes", k, "name"))
			m.pools[ref] = v.Kind == VolumeThinPool
		}
	}
	for i, r := range l.RAIDs {
		m.raidMembers = append(m.raidMembers, m.useAll(r.Members, at("raids", i, "members"), useRAID, i, "part", "disk"))
		m.raidSpares = append(m.raidSpares, m.useAll(r.Spares, at("raids", i, "spares"), useRAID, i, "part", "disk"))
	}
	for i, v := range l.LUKS {
		m.luksDevice = append(m.luksDevice, m.useOne(v.Device, at("luks", i, "device"), useLUKS, i, "part", "disk", "md", "lv"))
	}
	for i, g := range l.Groups {
		m.groupDevices = append(m.groupDevices, m.useAll(g.Devices, at("volume_groups", i, "devices"), useGroup, i, "part", "disk", "md", "luks"))
	}
	for i, f := range l.Filesystems {
		m.fsDevice = append(m.fsDevice, m.useOne(f.Device, at("filesystems", i, "device"), useFilesystem, i, "part", "disk", "md", "luks", "lv"))
	}
	m.findUnused()
	m.findCycles()
	return m
}

func (m *model) addDisks() {
	names := map[string]bool{}
	for i := range m.layout.Disks {
		spec := &m.layout.Disks[i]
		for nth := range max(1, spec.Select.Count) {
			name := spec.Name
			if spec.Select.Count > 0 {
				name += "-" + strconv.Itoa(nth)
			}
			if names[name] {
				m.problems.add(at("disks", i, "name"), ReasonDuplicate, "there are two disks called %s; give each a name of its own", name)
				continue
			}
			names[name] = true
			m.known[diskRef(name)] = true
			m.disks = append(m.disks, modelDisk{name, i, nth})
			numbers := partitionNumbers(spec.Partitions)
			for k := range spec.Partitions {
				ref := partRef(name, numbers[k])
				m.known[ref] = true
				m.parts[ref] = modelPart{len(m.disks) - 1, numbers[k], &spec.Partitions[k], at("disks", i, "partitions", k)}
			}
		}
	}
	if len(m.disks) > maxDisks {
		m.problems.add("disks", ReasonTooMany, "%d disks; at most %d", len(m.disks), maxDisks)
	}
}

// partitionNumbers gives each partition without a number the lowest that is free.
func partitionNumbers(specs []PartitionSpec) []int {
	taken := map[int]bool{}
	for _, p := range specs {
		taken[p.Number] = true
	}
	numbers, next := make([]int, len(specs)), 1
	for i, p := range specs {
		if p.Number != 0 {
			numbers[i] = p.Number
			continue
		}
		for taken[next] {
			next++
		}
		numbers[i], taken[next] = next, true
	}
	return numbers
}

func (m *model) declare(ref Ref, path string) {
	if m.known[ref] {
		m.problems.add(path, ReasonDuplicate, "%s is there twice; names are unique", ref)
	}
	m.known[ref] = true
}

// resolve finds the devices that a reference of the layout stands for: one, or one of each disk that an entry with a count has.
func (m *model) resolve(text string) ([]Ref, error) {
	if !refExpression.MatchString(text) {
		return nil, fmt.Errorf("%q names no device; write part/DISK/LABEL or part/DISK/NUMBER, disk/DISK, md/NAME, luks/NAME or lv/GROUP/NAME", clip(text))
	}
	kind, names := Ref(text).split()
	if kind != "disk" && kind != "part" {
		if !m.known[Ref(text)] {
			return nil, fmt.Errorf("the layout makes no %s", text)
		}
		return []Ref{Ref(text)}, nil
	}
	var refs []Ref
	for _, disk := range m.disks {
		if disk.name != names[0] && m.layout.Disks[disk.spec].Name != names[0] {
			continue
		}
		if kind == "disk" {
			refs = append(refs, diskRef(disk.name))
			continue
		}
		ref, err := m.findPartition(disk, names[1])
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	if len(refs) == 0 {
		return nil, fmt.Errorf("there is no disk called %q; there are %s", names[0], m.diskNames())
	}
	return refs, nil
}

func (m *model) findPartition(disk modelDisk, name string) (Ref, error) {
	specs := m.layout.Disks[disk.spec].Partitions
	numbers := partitionNumbers(specs)
	for i, p := range specs {
		if p.Label == name || strconv.Itoa(numbers[i]) == name {
			return partRef(disk.name, numbers[i]), nil
		}
	}
	var have []string
	for i, p := range specs {
		text := strconv.Itoa(numbers[i])
		if p.Label != "" {
			text += " (" + p.Label + ")"
		}
		have = append(have, text)
	}
	if len(have) == 0 {
		return "", fmt.Errorf("disk %s has no partitions", disk.name)
	}
	return "", fmt.Errorf("disk %s has no partition with number or label %q; it has %s", disk.name, name, strings.Join(have, ", "))
}

func (m *model) diskNames() string {
	var names []string
	for _, d := range m.disks {
		names = append(names, d.name)
	}
	return strings.Join(names, ", ")
}

// useAll resolves a list of devices and notes that what is at path stands on them.
func (m *model) useAll(texts []string, path string, kind, index int, kinds ...string) []Ref {
	var all []Ref
	for i, text := range texts {
		here := at(path, i)
		refs, err := m.resolve(text)
		if err != nil {
			m.problems.add(here, ReasonNotFound, "%v", err)
			continue
		}
		for _, ref := range refs {
			m.use(ref, here, kind, index, kinds)
			all = append(all, ref)
		}
	}
	if len(all) > maxMembers {
		m.problems.add(path, ReasonTooMany, "%d devices; at most %d", len(all), maxMembers)
	}
	return all
}

func (m *model) useOne(text, path string, kind, index int, kinds ...string) Ref {
	refs, err := m.resolve(text)
	if err != nil {
		m.problems.add(path, ReasonNotFound, "%v", err)
		return ""
	}
	if len(refs) > 1 {
		m.problems.add(path, ReasonInvalid, "%s stands for %d devices, one of each disk; name one, as in %s, or put an array over them", text, len(refs), refs[0])
		return ""
	}
	m.use(refs[0], path, kind, index, kinds)
	return refs[0]
}

func (m *model) use(ref Ref, path string, kind, index int, kinds []string) {
	name := Ref("")
	if ref.kind() == "disk" {
		name = ref
	}
	switch before, used := m.users[ref]; {
	case !slices.Contains(kinds, ref.kind()):
		m.problems.add(path, ReasonUnsupported, "%s cannot stand here; use one of %s", ref, strings.Join(kinds, ", "))
	case used:
		m.problems.add(path, ReasonConflict, "%s is used by %s already", ref, before.path)
	case m.pools[ref]:
		m.problems.add(path, ReasonConflict, "%s is a thin pool; put a thin volume into it and use that", ref)
	case name != "" && m.hasPartitions(name):
		m.problems.add(path, ReasonConflict, "%s has partitions; use one of them", ref)
	}
	m.users[ref] = user{kind, index, path}
}

func (m *model) hasPartitions(disk Ref) bool {
	for _, d := range m.disks {
		if diskRef(d.name) == disk {
			return len(m.layout.Disks[d.spec].Partitions) > 0
		}
	}
	return false
}

// findUnused refuses disks that would be erased for nothing.
func (m *model) findUnused() {
	for _, d := range m.disks {
		if _, used := m.users[diskRef(d.name)]; !used && len(m.layout.Disks[d.spec].Partitions) == 0 {
			m.problems.add(at("disks", d.spec), ReasonInvalid, "disk %s has no partitions and nothing stands on it; leave it out, so that it is not erased", d.name)
		}
	}
}

// findCycles refuses volumes that stand on themselves, which takes a group and a LUKS volume.
func (m *model) findCycles() {
	const visiting, done = 1, 2
	state := map[Ref]int{}
	var visit func(ref Ref, path string) bool
	visit = func(ref Ref, path string) bool {
		switch {
		case state[ref] == done:
			return true
		case state[ref] == visiting:
			m.problems.add(path, ReasonConflict, "%s stands on itself", ref)
			return false
		}
		state[ref] = visiting
		for _, below := range m.below(ref) {
			if !visit(below, path) {
				return false
			}
		}
		state[ref] = done
		return true
	}
	for i, v := range m.layout.LUKS {
		if !visit(luksRef(v.Name), at("luks", i, "device")) {
			return
		}
	}
}

// below are the devices that ref stands on.
func (m *model) below(ref Ref) []Ref {
	kind, names := ref.split()
	switch kind {
	case "md":
		for i, r := range m.layout.RAIDs {
			if r.Name == names[0] {
				return slices.Concat(m.raidMembers[i], m.raidSpares[i])
			}
		}
	case "luks":
		for i, v := range m.layout.LUKS {
			if v.Name == names[0] && m.luksDevice[i] != "" {
				return []Ref{m.luksDevice[i]}
			}
		}
	case "lv":
		for i, g := range m.layout.Groups {
			if g.Name == names[0] {
				return m.groupDevices[i]
			}
		}
	}
	return nil
}
