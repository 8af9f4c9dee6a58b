package layout

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Equinix Metal's custom partitioning and RAID, as it was sent in a device's storage field.
type equinixStorage struct {
	Disks       []equinixDisk       `json:"disks"`
	RAID        []equinixRAID       `json:"raid"`
	Filesystems []equinixFilesystem `json:"filesystems"`
	// Groups are tinkerbell's addition (actions, rootio).
	Groups unsupported `json:"volume_groups"`
}

type equinixDisk struct {
	Device     string             `json:"device"`
	Wipe       *bool              `json:"wipeTable"`
	WipeRootIO *bool              `json:"wipe_table"`
	Partitions []equinixPartition `json:"partitions"`
}

type equinixPartition struct {
	Label  string      `json:"label"`
	Number int         `json:"number"`
	Size   equinixSize `json:"size"`
}

type equinixRAID struct {
	Devices []string     `json:"devices"`
	Level   equinixLevel `json:"level"`
	Name    string       `json:"name"`
}

type equinixFilesystem struct {
	Mount equinixMount `json:"mount"`
}

type equinixMount struct {
	Device string        `json:"device"`
	Format string        `json:"format"`
	Point  string        `json:"point"`
	Create equinixCreate `json:"create"`
}

type equinixCreate struct {
	Options []string `json:"options"`
}

var errUnsupported = errors.New("not supported; leave it out, and use bloomery.layout/v1 for volume groups")

// equinixSize is a number of 512-byte sectors, or a text with a binary unit; 0 is the rest.
type equinixSize struct {
	Size
	given bool
}

func (s *equinixSize) decode(n *yaml.Node) error {
	s.given = true
	if tag := n.ShortTag(); tag != "!!int" && tag != "!!str" {
		return errors.New(`want a number of 512-byte sectors, or a text such as "512M"`)
	}
	digits := strings.TrimRight(n.Value, "KMGT")
	unit := map[string]int64{"": 512, "K": kib, "M": mib, "G": gib, "T": tib}[n.Value[len(digits):]]
	number, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || unit == 0 || number < 0 || number > maxBytes/unit {
		return fmt.Errorf(`%q: use a number of 512-byte sectors, a text such as "512M" or "4G", or 0 for the rest`, clip(n.Value))
	}
	s.Size = Size{Bytes: number * unit, Rest: number == 0}
	return nil
}

// equinixLevel is a text or a number.
type equinixLevel int

func (l *equinixLevel) decode(n *yaml.Node) error {
	number, err := strconv.Atoi(n.Value)
	if err != nil || !slices.Contains([]int{0, 1, 5, 6, 10}, number) {
		return fmt.Errorf("%q: use one of 0, 1, 5, 6, 10", clip(n.Value))
	}
	*l = equinixLevel(number)
	return nil
}

func fromEquinix(root *yaml.Node) (*Layout, error) {
	s := &equinixStorage{}
	return convert(root, "storage", s, s.layout)
}

func (s *equinixStorage) layout(p *Problems) *Layout {
	l := &Layout{Format: Format, Origin: OriginEquinix}
	dev := devices{l}
	for i, d := range s.Disks {
		here := at("disks", i)
		for _, wipe := range []struct {
			field string
			value *bool
		}{{"wipeTable", d.Wipe}, {"wipe_table", d.WipeRootIO}} {
			if wipe.value != nil && !*wipe.value {
				p.add(at(here, wipe.field), ReasonUnsupported, "an install erases every disk of its layout; say true, or leave the disk out so that it is not touched")
			}
		}
		spec, ok := dev.disk(p, at(here, "device"), d.Device)
		if !ok {
			continue
		}
		for k, part := range d.Partitions {
			if !part.Size.given {
				p.add(at(here, "partitions", k, "size"), ReasonMissing, "give a number of 512-byte sectors, a text such as \"512M\", or 0 for the rest")
			}
			out := PartitionSpec{Number: part.Number, Label: ownLabel(spec.Partitions, part.Label, part.Number), Size: part.Size.Size}
			if strings.EqualFold(part.Label, "BIOS") {
				out.Type = "bios-boot"
			}
			spec.Partitions = append(spec.Partitions, out)
		}
		l.Disks = append(l.Disks, spec)
	}
	for i, r := range s.RAID {
		spec := RAIDSpec{Name: arrayName(r.Name), Level: int(r.Level)}
		for k, name := range r.Devices {
			ref, err := dev.ref(name)
			p.note(at("raid", i, "devices", k), err)
			spec.Members = append(spec.Members, ref)
		}
		l.RAIDs = append(l.RAIDs, spec)
	}
	for i, f := range s.Filesystems {
		here := at("filesystems", i, "mount")
		ref, err := dev.ref(f.Mount.Device)
		p.note(at(here, "device"), err)
		spec := FilesystemSpec{Device: ref, Format: f.Mount.Format, MountPoint: f.Mount.Point}
		if spec.Format == FormatSwap {
			spec.MountPoint = "" // "none"
		}
		if spec.Format == "fat32" {
			spec.Format = FormatVFAT
		}
		spec.equinixOptions(p, at(here, "create.options"), f.Mount.Create.Options)
		l.Filesystems = append(l.Filesystems, spec)
		if spec.Format == FormatVFAT && (spec.MountPoint == "/boot/efi" || spec.MountPoint == "/efi") {
			l.makeESP(ref)
		}
	}
	return l
}

// makeESP gives the partition, or the members of the array, that firmware shall start from their type: labels do not say it.
func (l *Layout) makeESP(ref string) {
	refs := []string{ref}
	for _, r := range l.RAIDs {
		if "md/"+r.Name == ref {
			refs = r.Members
		}
	}
	for i := range l.Disks {
		numbers := partitionNumbers(l.Disks[i].Partitions)
		for k := range l.Disks[i].Partitions {
			if slices.Contains(refs, string(partRef(l.Disks[i].Name, numbers[k]))) {
				l.Disks[i].Partitions[k].Type = "esp"
			}
		}
	}
}

// equinixOptions takes the label out of mkfs's arguments, drops what only silences a question, and keeps the rest to be checked.
func (f *FilesystemSpec) equinixOptions(p *Problems, path string, args []string) {
	for k := 0; k < len(args); k++ {
		switch arg := args[k]; {
		case arg == "-F" && f.Format == FormatExt4, arg == "-f" && (f.Format == FormatXFS || f.Format == FormatBtrfs || f.Format == FormatSwap):
		case arg == "32" && f.Format == FormatVFAT, arg == "-F32" && f.Format == FormatVFAT:
		case arg == "-L" && f.Format != FormatVFAT, arg == "-n" && f.Format == FormatVFAT:
			if k++; k == len(args) {
				p.add(at(path, k-1), ReasonMissing, "%s has no value; it follows as the next entry", arg)
				return
			}
			f.Label = args[k]
		default:
			f.MakeOptions = append(f.MakeOptions, arg)
		}
	}
}
