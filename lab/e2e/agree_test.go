package e2e

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"bloomery/partition/layout"
)

// lookAtDisks is run on an installed system, with its mount points listed first, since some are mounted only when they are looked into. Its
// parts are separated by lines that begin with "==".
const lookAtDisks = `
echo == findmnt; findmnt --json --list --output TARGET,SOURCE,FSTYPE,UUID,OPTIONS,FSROOT
echo == lsblk; lsblk --json --bytes --output NAME,KNAME,TYPE,SIZE,SERIAL,LOG-SEC,PTUUID,PTTYPE,PARTUUID,PARTTYPE,PARTLABEL,START,FSTYPE,UUID,LABEL,MOUNTPOINTS
for md in /sys/block/md*; do
	[ -e "$md" ] || continue
	echo "== mdadm ${md##*/}"; sudo mdadm --detail --export "/dev/${md##*/}"; sudo mdadm --detail "/dev/${md##*/}"
done
`

// found is what an installed system says of its disks.
type found struct {
	Mounts  []mount
	Blocks  map[string]block // by kernel name
	Parents map[string][]string
	Arrays  map[string]array // by kernel name
}

type mount struct{ Target, Source, FSType, UUID, Options, FSRoot string }

type block struct {
	Name, KName, Type, Serial     string
	Size                          int64
	LogSec                        int `json:"log-sec"`
	PTUUID, PTType                string
	PartUUID, PartType, PartLabel string
	Start                         int64 // of a partition, in 512 bytes
	FSType, UUID, Label           string
	MountPoints                   []string
	Children                      []block
}

// array is what mdadm says: the values of --export and of --detail by name.
type array map[string]string

// parseFound reads what lookAtDisks has printed.
func parseFound(text string) (found, error) {
	f := found{Blocks: map[string]block{}, Parents: map[string][]string{}, Arrays: map[string]array{}}
	for _, part := range strings.Split("\n"+text, "\n== ")[1:] {
		head, body, _ := strings.Cut(part, "\n")
		switch what, name, _ := strings.Cut(head, " "); what {
		case "findmnt":
			var tree struct{ Filesystems []mount }
			if err := json.Unmarshal([]byte(body), &tree); err != nil {
				return found{}, fmt.Errorf("findmnt: %w", err)
			}
			f.Mounts = tree.Filesystems
		case "lsblk":
			var tree struct{ BlockDevices []block }
			if err := json.Unmarshal([]byte(body), &tree); err != nil {
				return found{}, fmt.Errorf("lsblk: %w", err)
			}
			f.add(tree.BlockDevices, "")
		case "mdadm":
			f.Arrays[name] = parseArray(body)
		}
	}
	if len(f.Mounts) == 0 || len(f.Blocks) == 0 {
		return found{}, fmt.Errorf("findmnt or lsblk are not in %q", text)
	}
	return f, nil
}

// add takes a tree in which a device stands under each of those that it is made of.
func (f found) add(blocks []block, parent string) {
	for _, b := range blocks {
		f.Blocks[b.KName] = b
		if parent != "" && !slices.Contains(f.Parents[b.KName], parent) {
			f.Parents[b.KName] = append(f.Parents[b.KName], parent)
		}
		f.add(b.Children, b.KName)
	}
}

func parseArray(text string) array {
	a := array{}
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, "=")
		if !ok || strings.Contains(key, " ") {
			key, value, ok = strings.Cut(line, " : ")
		}
		if ok {
			a[strings.TrimSpace(key)] = strings.TrimSpace(value)
		}
	}
	return a
}

// lookAt is lookAtDisks for a plan's mount points.
func lookAt(p *layout.Plan) string {
	list := "sudo ls"
	for _, fs := range p.Files {
		if fs.MountPoint != "" {
			list += " " + fs.MountPoint + "/"
		}
	}
	return list + " >/dev/null" + lookAtDisks
}

// disagreements lists in what a system is not as its plan says. Disks that were pulled must not be there, and arrays do without them.
func disagreements(p *layout.Plan, f found, pulled ...string) []string {
	c := comparison{plan: p, found: f, pulled: pulled, names: map[layout.Ref]string{}}
	for _, d := range p.Disks {
		c.disk(d)
	}
	for _, a := range p.Arrays {
		c.array(a)
	}
	for _, l := range p.LUKS {
		c.luks(l)
	}
	for _, g := range p.Groups {
		c.group(g)
	}
	for _, fs := range p.Files {
		c.filesystem(fs)
	}
	return c.wrong
}

type comparison struct {
	plan   *layout.Plan
	found  found
	pulled []string
	// names are the kernel's for what the plan names.
	names map[layout.Ref]string
	wrong []string
}

func (c *comparison) want(ok bool, format string, args ...any) {
	if !ok {
		c.wrong = append(c.wrong, fmt.Sprintf(format, args...))
	}
}

// find is the first device for which is holds.
func (c *comparison) find(is func(block) bool) (block, bool) {
	for _, b := range c.found.Blocks {
		if is(b) {
			return b, true
		}
	}
	return block{}, false
}

func (c *comparison) disk(d layout.DiskPlan) {
	b, ok := c.find(func(b block) bool { return b.Type == "disk" && b.Serial == d.Serial })
	if slices.Contains(c.pulled, d.Serial) {
		c.want(!ok, "disk %s was pulled and is there", d.Serial)
		return
	}
	if !ok {
		c.want(false, "there is no disk %s", d.Serial)
		return
	}
	c.names[layout.Ref("disk/"+d.Name)] = b.KName
	c.want(b.LogSec == d.SectorSize, "disk %s has sectors of %d bytes, the plan says %d", d.Serial, b.LogSec, d.SectorSize)
	if !d.Table {
		return
	}
	c.want(b.PTType == "gpt" && strings.EqualFold(b.PTUUID, d.GUID), "disk %s has a %q table %s, the plan says gpt %s", d.Serial, b.PTType, b.PTUUID, d.GUID)
	c.want(len(b.Children) == len(d.Partitions), "disk %s has %d partitions, the plan says %d", d.Serial, len(b.Children), len(d.Partitions))
	for _, p := range d.Partitions {
		ref := layout.Ref(fmt.Sprintf("part/%s/%d", d.Name, p.Number))
		got, ok := c.find(func(b block) bool { return strings.EqualFold(b.PartUUID, p.GUID) })
		if !ok {
			c.want(false, "%s: there is no partition %s", ref, p.GUID)
			continue
		}
		c.names[ref] = got.KName
		c.want(slices.Equal(c.found.Parents[got.KName], []string{b.KName}) && strings.HasSuffix(got.KName, strconv.Itoa(p.Number)), "%s is %s on %v", ref, got.KName, c.found.Parents[got.KName])
		c.want(got.Size == p.SizeBytes && got.Start*512 == p.StartBytes, "%s begins at %d and has %d bytes, the plan says %d and %d", ref, got.Start*512, got.Size, p.StartBytes, p.SizeBytes)
		c.want(strings.EqualFold(got.PartType, p.Type) && got.PartLabel == p.Label, "%s is of type %s, label %q, the plan says %s, %q", ref, got.PartType, got.PartLabel, p.Type, p.Label)
	}
}

func (c *comparison) array(a layout.ArrayPlan) {
	ref := layout.Ref("md/" + a.Name)
	for name, got := range c.found.Arrays {
		if !strings.EqualFold(strings.ReplaceAll(got["MD_UUID"], ":", ""), strings.ReplaceAll(a.UUID, "-", "")) {
			continue
		}
		c.names[ref] = name
		c.want(got["MD_LEVEL"] == fmt.Sprintf("raid%d", a.Level) && got["MD_METADATA"] == a.Metadata && got["MD_DEVICES"] == strconv.Itoa(len(a.Members)),
			"%s is %s, metadata %s, of %s devices; the plan says RAID %d, %s, %d", ref, got["MD_LEVEL"], got["MD_METADATA"], got["MD_DEVICES"], a.Level, a.Metadata, len(a.Members))
		members := c.present(a.Members)
		active, gone := strconv.Itoa(len(members)), len(a.Members)-len(members)
		c.want(got["Active Devices"] == active && strings.Contains(got["State"], "degraded") == (gone > 0), "%s has %s active devices and is %q, want %s",
			ref, got["Active Devices"], got["State"], active)
		c.madeOf(ref, append(members, c.present(a.Spares)...))
		c.want(c.found.Blocks[name].Size >= a.SizeBytes, "%s has %d bytes, the plan says at least %d", ref, c.found.Blocks[name].Size, a.SizeBytes)
		return
	}
	c.want(false, "%s: there is no array %s", ref, a.UUID)
}

// present are the kernel's names of those that were not pulled with their disks.
func (c *comparison) present(refs []layout.Ref) []string {
	var names []string
	for _, ref := range refs {
		parts := strings.Split(string(ref), "/")
		i := slices.IndexFunc(c.plan.Disks, func(d layout.DiskPlan) bool { return (parts[0] == "part" || parts[0] == "disk") && d.Name == parts[1] })
		if i >= 0 && slices.Contains(c.pulled, c.plan.Disks[i].Serial) {
			continue
		}
		names = append(names, c.names[ref])
	}
	return names
}

// madeOf wants a device to stand on others and on nothing else.
func (c *comparison) madeOf(ref layout.Ref, want []string) {
	got := slices.Sorted(slices.Values(c.found.Parents[c.names[ref]]))
	slices.Sort(want)
	c.want(slices.Equal(got, want), "%s (%s) stands on %v, the plan says %v", ref, c.names[ref], got, want)
}

func (c *comparison) luks(l layout.LUKSPlan) {
	ref := layout.Ref("luks/" + l.Name)
	b, ok := c.find(func(b block) bool { return b.Type == "crypt" && b.Name == l.Name })
	if !ok {
		c.want(false, "%s is not open", ref)
		return
	}
	c.names[ref] = b.KName
	c.madeOf(ref, []string{c.names[l.Device]})
	under := c.found.Blocks[c.names[l.Device]]
	c.want(under.FSType == "crypto_LUKS" && strings.EqualFold(under.UUID, l.UUID), "%s is on %q %s, the plan says LUKS %s", ref, under.FSType, under.UUID, l.UUID)
	c.want(b.Size == l.SizeBytes, "%s has %d bytes, the plan says %d", ref, b.Size, l.SizeBytes)
}

func (c *comparison) group(g layout.GroupPlan) {
	for _, v := range g.Volumes {
		ref := layout.Ref("lv/" + g.Name + "/" + v.Name)
		// Device mapper's name of a volume doubles the hyphens of both (lvm(8)).
		name := strings.ReplaceAll(g.Name, "-", "--") + "-" + strings.ReplaceAll(v.Name, "-", "--")
		b, ok := c.find(func(b block) bool { return b.Type == "lvm" && b.Name == name })
		if !ok && v.Kind == layout.VolumeThinPool { // stands behind its volumes as NAME-tpool
			continue
		}
		if !ok {
			c.want(false, "%s is not active", ref)
			continue
		}
		c.names[ref] = b.KName
		c.want(b.Size == v.SizeBytes, "%s has %d bytes, the plan says %d", ref, b.Size, v.SizeBytes)
		for _, parent := range c.found.Parents[b.KName] {
			c.want(v.Kind == layout.VolumeThin || slices.Contains(c.present(g.Devices), parent), "%s stands on %s, which is none of %v", ref, parent, g.Devices)
		}
	}
}

func (c *comparison) filesystem(fs layout.FilesystemPlan) {
	name := c.names[fs.Device]
	if name == "" && len(c.present([]layout.Ref{fs.Device})) == 0 {
		return // pulled with its disk
	}
	b := c.found.Blocks[name]
	c.want(b.FSType == fs.Format && strings.EqualFold(b.UUID, fs.UUID) && b.Label == fs.Label, "%s (%s) has %q %s %q, the plan says %s %s %q",
		fs.Device, name, b.FSType, b.UUID, b.Label, fs.Format, fs.UUID, fs.Label)
	if fs.Format == layout.FormatSwap {
		c.want(slices.Contains(b.MountPoints, "[SWAP]"), "%s is not swapped to: %v", fs.Device, b.MountPoints)
		return
	}
	if len(fs.Subvolumes) == 0 {
		c.mount(fs, fs.MountPoint, "/", fs.Options)
	}
	for _, s := range fs.Subvolumes {
		c.mount(fs, s.MountPoint, path.Join("/", s.Name), append(slices.Clone(fs.Options), s.Options...))
	}
}

func (c *comparison) mount(fs layout.FilesystemPlan, target, root string, options []string) {
	if target == "" {
		return
	}
	i := slices.IndexFunc(c.found.Mounts, func(m mount) bool { return m.Target == target && m.FSType != "autofs" })
	if i < 0 {
		c.want(false, "nothing is mounted at %s", target)
		return
	}
	m := c.found.Mounts[i]
	c.want(m.FSType == fs.Format && strings.EqualFold(m.UUID, fs.UUID) && m.FSRoot == root, "%s is %s %s, of it %s; the plan says %s %s, of it %s",
		target, m.FSType, m.UUID, m.FSRoot, fs.Format, fs.UUID, root)
	have := strings.Split(m.Options, ",")
	for _, o := range options {
		c.want(onlyInFstab(o) || slices.ContainsFunc(have, func(h string) bool { return sameOption(o, h) }), "%s is mounted with %s, the plan says %s", target, m.Options, o)
	}
}

// sameOption tells whether the kernel shows an option as it was given, or with what it took for granted behind it (compress=zstd:3), or, for
// vfat's umask, as its two halves.
func sameOption(given, shown string) bool {
	if mask, ok := strings.CutPrefix(given, "umask="); ok {
		return strings.TrimLeft(strings.TrimPrefix(shown, "fmask="), "0") == strings.TrimLeft(mask, "0")
	}
	return shown == given || strings.HasPrefix(shown, given+":")
}

// onlyInFstab tells options that mount(8) and systemd act on and the kernel never hears of.
func onlyInFstab(option string) bool {
	return option == "defaults" || option == "nofail" || strings.HasPrefix(option, "x-")
}
