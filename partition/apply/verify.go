package apply

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"bloomery/partition/layout"
)

// ErrNotAsPlanned is wrapped by a Report's error.
var ErrNotAsPlanned = errors.New("the disks are not as planned")

// Report is what Verify found of a plan's objects, each of which is in it.
type Report struct {
	Objects []Object `json:"objects"`
}

// Object is something that the plan made: a disk's partition table, an array, a LUKS volume, a volume group, a logical volume, a filesystem.
type Object struct {
	// Kind is table, array, luks, group, volume or filesystem.
	Kind string     `json:"kind"`
	Ref  layout.Ref `json:"ref"`
	// Differences are empty when it is there as planned.
	Differences []Difference `json:"differences,omitempty"`
}

// Err names the first objects that are not as planned; nil if all are.
func (r Report) Err() error {
	var wrong []string
	for _, o := range r.Objects {
		for _, d := range o.Differences {
			wrong = append(wrong, fmt.Sprintf("%s %s: %s", o.Kind, o.Ref, d))
		}
	}
	const most = 8
	switch {
	case len(wrong) == 0:
		return nil
	case len(wrong) > most:
		return fmt.Errorf("%w: %s and %d more", ErrNotAsPlanned, strings.Join(wrong[:most], "; "), len(wrong)-most)
	}
	return fmt.Errorf("%w: %s", ErrNotAsPlanned, strings.Join(wrong, "; "))
}

// Verify reads back what Apply made, by other means than it was made where there are any: sgdisk reads the tables, mdadm the arrays, cryptsetup the
// headers, LVM its metadata, blkid the filesystems. Differences are in the report; an error means that something could not be read. The plan must
// be active.
func (m *Machine) Verify(ctx context.Context, p *layout.Plan) (Report, error) {
	var r Report
	add := func(kind string, ref layout.Ref, d []Difference, err error) error {
		if err != nil && !errors.Is(err, ErrNotMade) {
			return fmt.Errorf("verify %s %s: %w", kind, ref, err)
		}
		if err != nil {
			d = []Difference{{Field: "presence", Planned: "there", Found: err.Error()}}
		}
		r.Objects = append(r.Objects, Object{Kind: kind, Ref: ref, Differences: d})
		return nil
	}
	for _, d := range p.Disks {
		if found, err := m.verifyTable(ctx, p, d); d.Table || err != nil {
			if err := add("table", layout.Ref("disk/"+d.Name), found, err); err != nil {
				return r, err
			}
		}
	}
	for _, a := range p.Arrays {
		found, err := m.verifyArray(ctx, p, a)
		if err := add("array", layout.Ref("md/"+a.Name), found, err); err != nil {
			return r, err
		}
	}
	for _, v := range p.LUKS {
		found, err := m.verifyLUKS(ctx, p, v)
		if err := add("luks", layout.Ref("luks/"+v.Name), found, err); err != nil {
			return r, err
		}
	}
	for _, g := range p.Groups {
		if err := m.verifyGroup(ctx, p, g, add); err != nil {
			return r, err
		}
	}
	for _, f := range p.Files {
		found, err := m.verifyFilesystem(ctx, p, f)
		if err := add("filesystem", f.Device, found, err); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (m *Machine) verifyTable(ctx context.Context, p *layout.Plan, d layout.DiskPlan) ([]Difference, error) {
	_, dev, err := m.disk(ctx, p, d.Name)
	if err != nil || !d.Table {
		return nil, err
	}
	result, err := m.answer(ctx, []string{"sgdisk", "--verify", "--print", dev})
	if err != nil {
		return nil, err
	}
	var found differences
	whole := parseTable(string(result.Stdout))
	// sgdisk mends in memory what it then finds no problems in; only its warnings tell. It ends with success either way.
	if warnings := strings.Join(strings.Fields(string(result.Stderr)), " "); result.ExitCode != 0 || !whole.sound || warnings != "" {
		found.compare("soundness", "no problems", cmp.Or(warnings, lastLine(result.Stdout), "exit code "+strconv.Itoa(result.ExitCode)))
	}
	found.compare("guid", d.GUID, whole.guid)
	found.compare("partitions", strconv.Itoa(len(d.Partitions)), strconv.Itoa(whole.partitions))
	for _, part := range d.Partitions {
		out, err := m.tool(ctx, []string{"sgdisk", "--info=" + strconv.Itoa(part.Number), dev})
		if err != nil {
			return nil, err
		}
		found = append(found, parseEntry(string(out)).against(part, int64(d.SectorSize))...)
	}
	return found.sorted(), nil
}

func lastLine(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return lines[len(lines)-1]
}

// sgdiskTable is what sgdisk says of a whole table.
type sgdiskTable struct {
	guid       string
	partitions int
	sound      bool
}

func parseTable(out string) sgdiskTable {
	t := sgdiskTable{sound: strings.Contains(out, "No problems found") && !strings.Contains(out, "corrupt")}
	listed := false
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		if guid, found := strings.CutPrefix(line, "Disk identifier (GUID): "); found {
			t.guid = strings.ToLower(guid)
		}
		if strings.HasPrefix(line, "Number ") && strings.Contains(line, "Start (sector)") {
			listed = true
			continue
		}
		if fields := strings.Fields(line); listed && len(fields) > 3 {
			if _, err := strconv.Atoi(fields[0]); err == nil {
				t.partitions++
			}
		}
	}
	return t
}

// sgdiskEntry is what sgdisk says of a partition, as text.
type sgdiskEntry map[string]string

func parseEntry(out string) sgdiskEntry {
	e := sgdiskEntry{}
	for line := range strings.Lines(out) {
		if name, value, found := strings.Cut(strings.TrimRight(line, "\n"), ": "); found {
			e[name] = value
		}
	}
	return e
}

func (e sgdiskEntry) first(name string) string {
	word, _, _ := strings.Cut(e[name], " ")
	return word
}

func (e sgdiskEntry) against(part layout.PartitionPlan, sector int64) []Difference {
	var d differences
	field := func(name string) string { return fmt.Sprintf("partition %d %s", part.Number, name) }
	if e["Partition unique GUID"] == "" {
		d.compare(field("presence"), "there", "not there")
		return d
	}
	d.compare(field("type"), part.Type, strings.ToLower(e.first("Partition GUID code")))
	d.compare(field("guid"), part.GUID, strings.ToLower(e["Partition unique GUID"]))
	d.compare(field("first sector"), strconv.FormatInt(part.StartBytes/sector, 10), e.first("First sector"))
	d.compare(field("last sector"), strconv.FormatInt((part.StartBytes+part.SizeBytes)/sector-1, 10), e.first("Last sector"))
	d.compare(field("attributes"), fmt.Sprintf("%016X", part.Attributes), e["Attribute flags"])
	d.compare(field("label"), part.Label, strings.TrimSuffix(strings.TrimPrefix(e["Partition name"], "'"), "'"))
	return d
}

func (m *Machine) verifyArray(ctx context.Context, p *layout.Plan, a layout.ArrayPlan) ([]Difference, error) {
	members, err := m.members(ctx, p, a)
	if err != nil {
		return nil, err
	}
	dev, err := m.activeArray(ctx, a.UUID)
	if err != nil {
		return nil, err
	}
	state, err := m.arrayState(ctx, dev)
	if err != nil {
		return nil, err
	}
	d := differences(state.against(a, members))
	if size := m.sectors(dev); size < a.SizeBytes {
		d.compare("size", "at least "+strconv.FormatInt(a.SizeBytes, 10), strconv.FormatInt(size, 10))
	}
	if a.ChunkBytes > 0 {
		name, err := m.kernelName(dev)
		if err != nil {
			return nil, err
		}
		d.compare("chunk", strconv.FormatInt(a.ChunkBytes, 10), m.attribute("class/block", name, "md/chunk_size"))
	}
	return d.sorted(), nil
}

// luksMetadata is the part of a LUKS2 header's JSON that a plan says something of (LUKS2 on-disk format specification, chapter 3).
type luksMetadata struct {
	Keyslots map[string]struct {
		KDF struct {
			Type   string `json:"type"`
			Memory int64  `json:"memory"` // KiB
		} `json:"kdf"`
	} `json:"keyslots"`
	Segments map[string]struct {
		Encryption string `json:"encryption"`
		SectorSize int    `json:"sector_size"`
	} `json:"segments"`
}

func (m *Machine) verifyLUKS(ctx context.Context, p *layout.Plan, v layout.LUKSPlan) ([]Difference, error) {
	dev, err := m.Device(ctx, p, v.Device)
	if err != nil {
		return nil, err
	}
	seen, err := m.probe(ctx, dev)
	if err != nil {
		return nil, err
	}
	var d differences
	d.compare("format", "crypto_LUKS", seen.kind)
	if len(d) > 0 {
		return d, nil
	}
	d.compare("uuid", v.UUID, strings.ToLower(seen.uuid))
	d.compare("label", v.Label, seen.label)
	out, err := m.tool(ctx, []string{"cryptsetup", "luksDump", "--type", "luks2", "--dump-json-metadata", dev})
	if err != nil {
		return nil, err
	}
	metadata, err := parseLUKS(out)
	if err != nil {
		return nil, err
	}
	d = append(d, metadata.against(v)...)
	opened, err := m.mapped(v.Name, cryptUUID(v))
	if err != nil {
		return nil, err
	}
	name, err := m.kernelName(opened)
	if err != nil {
		return nil, err
	}
	if size := m.sectors("/dev/" + name); size < v.SizeBytes {
		d.compare("size", "at least "+strconv.FormatInt(v.SizeBytes, 10), strconv.FormatInt(size, 10))
	}
	return d.sorted(), nil
}

func parseLUKS(out []byte) (luksMetadata, error) {
	var metadata luksMetadata
	if err := json.NewDecoder(bytes.NewReader(out)).Decode(&metadata); err != nil {
		return metadata, fmt.Errorf("read the LUKS2 header's JSON: %w", err)
	}
	return metadata, nil
}

func (metadata luksMetadata) against(v layout.LUKSPlan) []Difference {
	var d differences
	if len(metadata.Keyslots) == 0 {
		d.compare("key slots", "at least 1", "0")
	}
	for slot, k := range metadata.Keyslots {
		if k.KDF.Memory > argonMemory {
			d.compare("memory for key slot "+slot, "at most "+strconv.Itoa(argonMemory)+" KiB", strconv.FormatInt(k.KDF.Memory, 10)+" KiB")
		}
	}
	d.compare("segments", "1", strconv.Itoa(len(metadata.Segments)))
	for _, s := range metadata.Segments {
		d.compare("encryption", "aes-xts-plain64", s.Encryption)
		d.compare("sector size", strconv.Itoa(v.SectorSize), strconv.Itoa(s.SectorSize))
	}
	return d
}

func (m *Machine) verifyGroup(ctx context.Context, p *layout.Plan, g layout.GroupPlan, add func(string, layout.Ref, []Difference, error) error) error {
	ref := layout.Ref("vg/" + g.Name)
	devices, err := m.devices(ctx, p, g.Devices)
	if err != nil {
		return add("group", ref, nil, err)
	}
	state, err := m.groupState(ctx, devices, g.Name)
	if err != nil {
		return add("group", ref, nil, err)
	}
	planned, err := physicalUUIDs(p, g)
	if err != nil {
		return err
	}
	if err := add("group", ref, state.against(g, planned), nil); err != nil {
		return err
	}
	var states map[string]volumeState
	if state.found {
		if states, err = m.volumeStates(ctx, devices, g.Name); err != nil {
			return fmt.Errorf("verify group %s: %w", g.Name, err)
		}
	}
	for _, v := range g.Volumes {
		ref := layout.Ref("lv/" + g.Name + "/" + v.Name)
		s, found := states[v.Name]
		var d []Difference
		err := error(nil)
		switch {
		case !found:
			err = ErrNotMade
		case !s.active:
			err = fmt.Errorf("%w: it is not active", ErrNotMade)
		default:
			d = s.against(v)
		}
		if err := add("volume", ref, d, err); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) verifyFilesystem(ctx context.Context, p *layout.Plan, f layout.FilesystemPlan) ([]Difference, error) {
	dev, err := m.Device(ctx, p, f.Device)
	if err != nil {
		return nil, err
	}
	seen, err := m.probe(ctx, dev)
	if err != nil {
		return nil, err
	}
	d := differences(seen.against(f))
	if len(d) > 0 || len(f.Subvolumes) == 0 {
		return d.sorted(), nil
	}
	err = m.withTop(ctx, dev, func(top string) error {
		out, err := m.tool(ctx, []string{"btrfs", "subvolume", "list", top})
		if err != nil {
			return err
		}
		there := parseSubvolumes(string(out))
		for _, s := range f.Subvolumes {
			if !there[s.Name] {
				d.compare("subvolume "+s.Name, "there", "not there")
			}
		}
		return nil
	})
	return d.sorted(), err
}

// parseSubvolumes reads lines like "ID 256 gen 8 top level 5 path @home".
func parseSubvolumes(out string) map[string]bool {
	there := map[string]bool{}
	for line := range strings.Lines(out) {
		if _, path, found := strings.Cut(strings.TrimRight(line, "\n"), " path "); found {
			there[path] = true
		}
	}
	return there
}
