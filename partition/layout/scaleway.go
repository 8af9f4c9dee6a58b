package layout

import (
	"strings"

	"go.yaml.in/yaml/v3"
)

// Scaleway's partitioning schema (scaleway-sdk-go, api/baremetal/v1, type Schema). Sizes are bytes.
type scalewaySchema struct {
	Disks       []scalewayDisk       `json:"disks"`
	RAIDs       []scalewayRAID       `json:"raids"`
	Filesystems []scalewayFilesystem `json:"filesystems"`
	ZFS         scalewayZFS          `json:"zfs"`
	LVM         unsupported          `json:"lvm"`
}

type scalewayDisk struct {
	Device     string              `json:"device"`
	Partitions []scalewayPartition `json:"partitions"`
}

type scalewayPartition struct {
	Label  string `json:"label"`
	Number int    `json:"number"`
	Size   int64  `json:"size"`
	// UseAll comes with size 0.
	UseAll bool `json:"use_all_available_space"`
}

type scalewayRAID struct {
	Name    string   `json:"name"`
	Level   string   `json:"level"`
	Devices []string `json:"devices"`
}

type scalewayFilesystem struct {
	Device     string `json:"device"`
	Format     string `json:"format"`
	MountPoint string `json:"mountpoint"`
}

type scalewayZFS struct {
	Pools []scalewayPool `json:"pools"`
}

type scalewayPool struct {
	Name              string   `json:"name"`
	Type              string   `json:"type"`
	Devices           []string `json:"devices"`
	Options           []string `json:"options"`
	FilesystemOptions []string `json:"filesystem_options"`
}

// unsupported is a field that may be there without a value only.
type unsupported struct{}

func (unsupported) decode(*yaml.Node) error { return errUnsupported }

func fromScaleway(root *yaml.Node) (*Layout, error) {
	s := &scalewaySchema{}
	return convert(root, "partitioning_schema", s, s.layout)
}

func (s *scalewaySchema) layout(p *Problems) *Layout {
	l := &Layout{Format: Format, Origin: OriginScaleway}
	dev := devices{l}
	for i, pool := range s.ZFS.Pools {
		p.add(at("zfs.pools", i), ReasonUnsupported, "%q: ZFS is not supported; use ext4, xfs or btrfs on raids", clip(pool.Name))
	}
	var swaps []string
	for i, d := range s.Disks {
		here := at("disks", i)
		spec, ok := dev.disk(p, at(here, "device"), d.Device)
		if !ok {
			continue
		}
		numbers := make([]PartitionSpec, len(d.Partitions))
		for k, part := range d.Partitions {
			numbers[k].Number = part.Number
		}
		for k, number := range partitionNumbers(numbers) {
			part := d.Partitions[k]
			out := PartitionSpec{Number: part.Number, Label: ownLabel(spec.Partitions, part.Label, number), Type: scalewayType(p, at(here, "partitions", k, "label"), part.Label)}
			out.Size = part.size(p, at(here, "partitions", k, "size"))
			spec.Partitions = append(spec.Partitions, out)
			if part.Label == "swap" {
				swaps = append(swaps, string(partRef(spec.Name, number)))
			}
		}
		l.Disks = append(l.Disks, spec)
	}
	used := map[string]bool{}
	for i, r := range s.RAIDs {
		spec := RAIDSpec{Name: arrayName(r.Name), Level: scalewayLevel(p, at("raids", i, "level"), r.Level)}
		for k, name := range r.Devices {
			ref, err := dev.ref(name)
			p.note(at("raids", i, "devices", k), err)
			spec.Members = append(spec.Members, ref)
			used[ref] = true
		}
		l.RAIDs = append(l.RAIDs, spec)
	}
	for i, f := range s.Filesystems {
		here := at("filesystems", i)
		ref, err := dev.ref(f.Device)
		p.note(at(here, "device"), err)
		used[ref] = true
		spec := FilesystemSpec{Device: ref, Format: scalewayFormat(p, at(here, "format"), f.Format), MountPoint: f.MountPoint}
		if spec.Format == FormatSwap {
			spec.MountPoint = ""
		}
		l.Filesystems = append(l.Filesystems, spec)
	}
	for _, ref := range swaps {
		if !used[ref] {
			l.Filesystems = append(l.Filesystems, FilesystemSpec{Device: ref, Format: FormatSwap})
		}
	}
	return l
}

func (s scalewayPartition) size(p *Problems, path string) Size {
	switch {
	case s.UseAll && s.Size == 0:
		return Size{Rest: true}
	case s.UseAll:
		p.add(path, ReasonConflict, "%d beside use_all_available_space; use 0", s.Size)
	case s.Size < 1 || s.Size > maxBytes:
		p.add(path, ReasonInvalid, "%d: use bytes, or 0 with use_all_available_space", s.Size)
	}
	return Size{Bytes: s.Size}
}

// scalewayType is the type of a partition where its label says one.
func scalewayType(p *Problems, path, label string) string {
	switch label {
	case "uefi":
		return "esp"
	case "legacy":
		return "bios-boot"
	case "swap", "root", "boot", "home", "data", "raid":
		return "" // what stands on it decides
	case "zfs":
		p.add(path, ReasonUnsupported, "ZFS is not supported; use another label and ext4, xfs or btrfs")
		return ""
	}
	p.add(path, ReasonInvalid, "%q: use one of uefi, legacy, root, boot, swap, data, home, raid", clip(label))
	return ""
}

func scalewayLevel(p *Problems, path, level string) int {
	number, _ := strings.CutPrefix(level, "raid_level_")
	for _, known := range []struct {
		text  string
		level int
	}{{"0", 0}, {"1", 1}, {"5", 5}, {"6", 6}, {"10", 10}} {
		if number == known.text && number != level {
			return known.level
		}
	}
	p.add(path, ReasonInvalid, "%q: use one of raid_level_0, raid_level_1, raid_level_5, raid_level_6, raid_level_10", clip(level))
	return 0
}

func scalewayFormat(p *Problems, path, format string) string {
	switch format {
	case "fat32":
		return FormatVFAT
	case FormatExt4, FormatSwap, FormatXFS:
		return format
	case "zfs":
		p.add(path, ReasonUnsupported, "ZFS is not supported; use ext4 or xfs")
		return FormatExt4
	}
	p.add(path, ReasonInvalid, "%q: use one of fat32, ext4, swap, xfs", clip(format))
	return FormatExt4
}
