package layout

import (
	"cmp"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Disk is what the inventory knows of a disk; it decodes from the inventory's JSON.
type Disk struct {
	// Name is the kernel's at the time of the inventory, as in "nvme0n1".
	Name           string `json:"name"`
	Serial         string `json:"serial,omitempty"`
	WWN            string `json:"wwn,omitempty"`
	ByPath         string `json:"by_path,omitempty"`
	Model          string `json:"model,omitempty"`
	Transport      string `json:"transport"`
	SizeBytes      int64  `json:"size_bytes"`
	LogicalSector  int    `json:"logical_sector"`
	PhysicalSector int    `json:"physical_sector"`
	Rotational     bool   `json:"rotational"`
	Removable      bool   `json:"removable"`
	ReadOnly       bool   `json:"read_only"`
}

// Values of select.pick.
const (
	PickSmallest = "smallest"
	PickLargest  = "largest"
	PickAny      = "any"
)

func transports() []string {
	return []string{"nvme", "sata", "sas", "scsi", "virtio", "usb", "mmc"}
}

const selectHelp = "use exactly one of serial, wwn, by_path, device and pick"

var (
	// The values are only compared with the inventory's, so that any printable text is right.
	identityExpression = regexp.MustCompile(`^[!-~]([ -~]{0,126}[!-~])?$`)
	deviceExpression   = regexp.MustCompile(`^(/dev/)?(nvme[0-9]{1,3}n1|sd[a-z]{1,2}|vd[a-z])$`)
)

func (s *Select) check(p *Problems, here string) {
	ways := 0
	for _, way := range []struct{ field, value string }{{"serial", s.Serial}, {"wwn", s.WWN}, {"by_path", s.ByPath}, {"device", s.Device}, {"model", s.Model}} {
		if way.value == "" {
			continue
		}
		if way.field != "model" {
			ways++
		}
		if !identityExpression.MatchString(way.value) {
			p.add(at(here, way.field), ReasonInvalid, "%q: use 1 to 128 printable ASCII characters without spaces around them", clip(way.value))
		}
	}
	if s.Device != "" && !deviceExpression.MatchString(s.Device) {
		p.add(at(here, "device"), ReasonInvalid, "%q: use a name such as /dev/nvme0n1, /dev/sda or /dev/vda", clip(s.Device))
	}
	if s.Pick != "" {
		ways++
		oneOf(p, at(here, "pick"), s.Pick, PickSmallest, PickLargest, PickAny)
	}
	if ways != 1 {
		p.add(here, ReasonInvalid, "%d ways to choose a disk: %s", ways, selectHelp)
	}
	if s.Pick == "" && (s.Rotational != nil || s.Transport != "" || s.MinSize != nil || s.MaxSize != nil || s.Model != "" || s.Count != 0) {
		p.add(here, ReasonConflict, "rotational, transport, min_size, max_size, model and count go with pick only")
	}
	if s.Transport != "" {
		oneOf(p, at(here, "transport"), s.Transport, transports()...)
	}
	for _, size := range []struct {
		field string
		size  *Size
	}{{"min_size", s.MinSize}, {"max_size", s.MaxSize}} {
		if size.size != nil && size.size.Bytes == 0 {
			p.add(at(here, size.field), ReasonInvalid, "%s: give bytes, such as \"500GB\"", size.size)
		}
	}
	if s.MinSize != nil && s.MaxSize != nil && s.MinSize.Bytes > s.MaxSize.Bytes {
		p.add(at(here, "max_size"), ReasonConflict, "%s is below min_size %s", s.MaxSize, s.MinSize)
	}
	if s.Count < 0 || s.Count > maxDisks {
		p.add(at(here, "count"), ReasonInvalid, "%d: use 1 to %d", s.Count, maxDisks)
	}
}

// choose gives each of the model's disks one of the machine's, by its place in disks, -1 where there is none. Disks that are named come
// first, in whatever order the layout has them, so that no rule takes one of them away.
func (m *model) choose(disks []Disk) []int {
	chosen, taken := make([]int, len(m.disks)), map[int]string{}
	for i := range chosen {
		chosen[i] = -1
	}
	take := func(k, disk int, field string) {
		spec := m.disks[k].spec
		if before, twice := taken[disk]; twice {
			m.problems.add(at("disks", spec, "select", field), ReasonConflict, "it is %s, which disk %s is already", diskText(disks[disk]), before)
			return
		}
		taken[disk], chosen[k] = m.disks[k].name, disk
	}
	for k, d := range m.disks {
		sel := &m.layout.Disks[d.spec].Select
		if sel.Pick != "" {
			continue
		}
		if i, field, err := sel.named(disks); err != nil {
			m.problems.add(at("disks", d.spec, "select", field), ReasonDiskNotFound, "%v", err)
		} else {
			take(k, i, field)
		}
	}
	for k := 0; k < len(m.disks); k++ {
		spec := m.disks[k].spec
		sel := &m.layout.Disks[spec].Select
		if sel.Pick == "" {
			continue
		}
		want := max(1, sel.Count)
		matching := sel.matching(disks, taken)
		if len(matching) < want {
			m.problems.add(at("disks", spec, "select"), ReasonDiskNotFound, "%d disk(s) wanted, %d match; %s", want, len(matching), disksText(disks))
		}
		for n := range min(want, len(matching)) {
			take(k+n, matching[n], "pick")
		}
		k += want - 1
	}
	for k, i := range chosen {
		if i >= 0 {
			m.checkDisk(k, disks, i)
		}
	}
	return chosen
}

// named finds the disk that a serial number, WWN, path or device name stands for.
func (s *Select) named(disks []Disk) (found int, field string, err error) {
	match := func(d Disk) bool { return d.Serial == s.Serial }
	field, value := "serial", s.Serial
	switch {
	case s.WWN != "":
		field, value = "wwn", s.WWN
		match = func(d Disk) bool { return strings.EqualFold(d.WWN, s.WWN) }
	case s.ByPath != "":
		field, value = "by_path", s.ByPath
		match = func(d Disk) bool { return d.ByPath == strings.TrimPrefix(s.ByPath, "/dev/disk/by-path/") }
	case s.Device != "":
		found, err := byOrder(disks, s.Device)
		return found, "device", err
	}
	found = -1
	for i, d := range disks {
		if !match(d) {
			continue
		}
		if found >= 0 {
			return -1, field, fmt.Errorf("%q is on two disks, %s and %s; choose by wwn or by_path", value, diskText(disks[found]), diskText(d))
		}
		found = i
	}
	if found < 0 {
		return -1, field, fmt.Errorf("the machine has no disk with %s %q; %s", field, clip(value), disksText(disks))
	}
	return found, field, nil
}

// byOrder takes a device name for a place in an order: /dev/nvme1n1 is the second of the NVMe disks, /dev/sdb the second of those called sd*,
// in the order of their kernel names at the last inventory. Removable and read-only disks do not count.
func byOrder(disks []Disk, device string) (int, error) {
	name := strings.TrimPrefix(device, "/dev/")
	class, place := deviceOrder(name)
	var all []int
	for i, d := range disks {
		if c, _ := deviceOrder(d.Name); c == class && d.usable() == nil {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b int) int {
		_, x := deviceOrder(disks[a].Name)
		_, y := deviceOrder(disks[b].Name)
		return cmp.Compare(x, y)
	})
	if place >= len(all) {
		return -1, fmt.Errorf("%q is disk %d of its kind, by order, and the machine has %d; %s", clip(device), place+1, len(all), disksText(disks))
	}
	return all[place], nil
}

// deviceOrder splits a kernel name into its kind and its place, from 0; kind is "" for what is no disk's name.
func deviceOrder(name string) (class string, place int) {
	if !deviceExpression.MatchString(name) {
		return "", 0
	}
	if number, ok := strings.CutPrefix(name, "nvme"); ok {
		place, _ = strconv.Atoi(strings.TrimSuffix(number, "n1")) // the expression lets digits through only
		return "nvme", place
	}
	for _, c := range name[2:] {
		place = place*26 + int(c-'a') + 1
	}
	return name[:2], place - 1
}

// matching are the disks that a rule lets through, the wanted ones first.
func (s *Select) matching(disks []Disk, taken map[int]string) []int {
	model := glob(s.Model)
	var all []int
	for i, d := range disks {
		_, gone := taken[i]
		transport := s.Transport == d.Transport || (s.Transport == "" && d.Transport != "usb" && d.Transport != "mmc")
		switch {
		case gone, d.usable() != nil, !transport,
			s.Rotational != nil && *s.Rotational != d.Rotational,
			s.MinSize != nil && d.SizeBytes < s.MinSize.Bytes,
			s.MaxSize != nil && d.SizeBytes > s.MaxSize.Bytes,
			s.Model != "" && !model.MatchString(d.Model):
		default:
			all = append(all, i)
		}
	}
	slices.SortStableFunc(all, func(a, b int) int {
		x, y := disks[a], disks[b]
		bySize := cmp.Compare(x.SizeBytes, y.SizeBytes)
		switch s.Pick {
		case PickLargest:
			bySize = -bySize
		case PickAny:
			bySize = 0
		}
		return cmp.Or(bySize, cmp.Compare(x.ByPath, y.ByPath), cmp.Compare(len(x.Name), len(y.Name)), cmp.Compare(x.Name, y.Name))
	})
	return all
}

// glob is a text in which * stands for any text and ? for one character.
func glob(text string) *regexp.Regexp {
	return regexp.MustCompile("^" + strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(text)) + "$")
}

// usable says why no rule may take the disk, nil when one may.
func (d Disk) usable() error {
	switch {
	case d.ReadOnly:
		return errors.New("it is read-only")
	case d.Removable:
		return errors.New("it is removable")
	case d.Serial == "" && d.WWN == "":
		return errors.New("it has neither serial number nor WWN, so that nothing tells it from another disk")
	case d.Serial != "" && !identityExpression.MatchString(d.Serial), d.WWN != "" && !identityExpression.MatchString(d.WWN):
		return errors.New("its serial number or WWN has characters that cannot be compared safely")
	case d.SizeBytes <= 0 || d.SizeBytes > maxBytes:
		return errors.New("it has no size that can be worked with")
	case d.LogicalSector != 512 && d.LogicalSector != 4096:
		return fmt.Errorf("its sectors have %d bytes; 512 and 4096 are supported", d.LogicalSector)
	}
	return nil
}

// checkDisk refuses a chosen disk that must not be used. A removable one is right where its serial number or WWN was given.
func (m *model) checkDisk(k int, disks []Disk, i int) {
	spec, d := m.disks[k].spec, disks[i]
	here, sel := at("disks", spec, "select"), &m.layout.Disks[spec].Select
	named := sel.Serial != "" || sel.WWN != ""
	fixed := d
	if named {
		fixed.Removable = false
	}
	if err := fixed.usable(); err != nil {
		m.problems.add(here, ReasonDiskUnfit, "%s cannot be used: %v", diskText(d), err)
	} else if !named && sel.Transport != d.Transport && (d.Transport == "usb" || d.Transport == "mmc") {
		m.problems.add(here, ReasonDiskUnfit, "%s is a %s disk, which may be what the machine started from; choose it by serial or wwn", diskText(d), clip(d.Transport))
	}
	for j, other := range disks {
		if j != i && other.Serial == d.Serial && strings.EqualFold(other.WWN, d.WWN) {
			m.problems.add(here, ReasonDiskUnfit, "%s and %s have the same serial number and WWN, so that nothing tells them apart", diskText(d), diskText(other))
			break
		}
	}
}

func diskText(d Disk) string {
	text := clip(d.Name)
	if d.Serial != "" {
		text += " (serial " + clip(d.Serial) + ")"
	} else if d.WWN != "" {
		text += " (wwn " + clip(d.WWN) + ")"
	}
	return strings.TrimSpace(text)
}

// disksText says which disks there are, so that an error is enough to write the layout anew.
func disksText(disks []Disk) string {
	if len(disks) == 0 {
		return "it has no disks"
	}
	var all []string
	for i, d := range disks {
		if i == 16 {
			all = append(all, fmt.Sprintf("and %d more", len(disks)-i))
			break
		}
		text := fmt.Sprintf("%s %s %s", diskText(d), cmp.Or(clip(d.Transport), "unknown"), bytesText(d.SizeBytes))
		if err := d.usable(); err != nil {
			text += ", which no rule takes: " + err.Error()
		}
		all = append(all, text)
	}
	return "it has " + strings.Join(all, "; ")
}
