package apply

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// node is a block device and what uses it directly.
type node struct {
	name   string // the kernel's: "sda1", "dm-3"
	number string // "8:1"
	dmUUID string // of a device-mapper device
	dmName string
	swaps  []string // paths as in /proc/swaps
	mounts []string // mount points in the order in which they were mounted
}

func (n node) mapper() bool { return strings.HasPrefix(n.name, "dm-") }

// stack gives everything that stands on a disk, what stands on top first and the disk itself last: the order in which it can be ended.
// Partitions, holders, members of RAID containers and loop devices on mounted filesystems count.
func (m *Machine) stack(disk string) ([]node, error) {
	mounts, err := m.mounts()
	if err != nil {
		return nil, err
	}
	swaps, err := m.swapAreas()
	if err != nil {
		return nil, err
	}
	var found []node
	seen := map[string]bool{}
	var visit func(name string, depth int) error
	visit = func(name string, depth int) error {
		if seen[name] {
			return nil
		}
		if depth > maxStack {
			return fmt.Errorf("more than %d devices stand on each other above %s", maxStack, disk)
		}
		seen[name] = true
		n := node{
			name: name, number: m.attribute("class/block", name, "dev"),
			dmUUID: m.attribute("class/block", name, "dm/uuid"), dmName: m.attribute("class/block", name, "dm/name"),
		}
		if n.number == "" {
			return fmt.Errorf("the kernel shows no block device %s", name)
		}
		n.mounts = m.mountsOf(n, mounts)
		for _, s := range swaps {
			if s.number == n.number || s.file && below(s.path, n.mounts) {
				n.swaps = append(n.swaps, s.path)
			}
		}
		above, err := m.above(n)
		if err != nil {
			return err
		}
		for _, name := range above {
			if err := visit(name, depth+1); err != nil {
				return err
			}
		}
		found = append(found, n)
		return nil
	}
	return found, visit(disk, 0)
}

// maxStack is far more than anybody builds.
const maxStack = 32

// above names the devices that stand on n directly.
func (m *Machine) above(n node) ([]string, error) {
	var names []string
	entries, err := os.ReadDir(m.sysfs("class/block", n.name) + "/")
	if err != nil {
		return nil, fmt.Errorf("read what is on %s: %w", n.name, err)
	}
	for _, e := range entries {
		if m.attribute("class/block", n.name, e.Name(), "partition") != "" {
			names = append(names, e.Name())
		}
	}
	holders, err := os.ReadDir(m.sysfs("class/block", n.name, "holders"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read what holds %s: %w", n.name, err)
	}
	for _, e := range holders {
		names = append(names, e.Name())
	}
	// A volume of a container (Intel's and SNIA's formats) says "external:/md127/0"; the container itself "external:imsm" (md(4)).
	arrays, err := filepath.Glob(m.sysfs("class/block/md*/md/metadata_version"))
	if err != nil {
		return nil, err
	}
	for _, file := range arrays {
		name := filepath.Base(filepath.Dir(filepath.Dir(file)))
		if strings.HasPrefix(strings.TrimLeft(strings.TrimPrefix(m.attribute("class/block", name, "md/metadata_version"), "external:"), "-/"), n.name+"/") {
			names = append(names, name)
		}
	}
	loops, err := filepath.Glob(m.sysfs("class/block/loop*/loop/backing_file"))
	if err != nil {
		return nil, err
	}
	for _, file := range loops {
		name := filepath.Base(filepath.Dir(filepath.Dir(file)))
		if backing := m.attribute("class/block", name, "loop/backing_file"); backing == "/dev/"+n.name || below(backing, n.mounts) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// mount is a line of /proc/self/mountinfo.
type mount struct{ number, point, kind, source string }

func (m *Machine) mounts() ([]mount, error) {
	data, err := m.sys().mountinfo()
	if err != nil {
		return nil, fmt.Errorf("read what is mounted: %w", err)
	}
	return parseMounts(string(data)), nil
}

// parseMounts reads mountinfo (proc(5)): identifiers, major:minor, root, mount point, options, optional fields, "-", kind, source, options.
func parseMounts(text string) []mount {
	var mounts []mount
	for line := range strings.Lines(text) {
		before, after, _ := strings.Cut(line, " - ")
		place, what := strings.Fields(before), strings.Fields(after)
		if len(place) < 5 || len(what) < 2 {
			continue
		}
		mounts = append(mounts, mount{number: place[2], point: unescape(place[4]), kind: what[0], source: unescape(what[1])})
	}
	return mounts
}

// unescape undoes what the kernel does to blanks in paths (fs/seq_file.c, mangle_path).
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// mountsOf gives the mount points of a device, and those below them whatever is mounted there: they would be in the way.
func (m *Machine) mountsOf(n node, all []mount) []string {
	numbers := map[string]bool{n.number: true}
	// A btrfs is mounted under a number of its own; its source is any one of its devices.
	for _, peer := range m.btrfsPeers(n.name) {
		numbers[m.attribute("class/block", peer, "dev")] = true
	}
	var points []string
	for _, mounted := range all {
		here := mounted.number == n.number
		if mounted.kind == "btrfs" && !here {
			number, err := m.sys().number(mounted.source)
			here = err == nil && numbers[number]
		}
		if here || below(mounted.point, points) {
			points = append(points, mounted.point)
		}
	}
	return points
}

// btrfsPeers names the devices of the mounted btrfs that the device is part of.
func (m *Machine) btrfsPeers(name string) []string {
	found, err := filepath.Glob(m.sysfs("fs/btrfs/*/devices", name))
	if err != nil || len(found) == 0 {
		return nil
	}
	var names []string
	entries, err := os.ReadDir(filepath.Dir(found[0]))
	if err != nil {
		return nil
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// swapArea is a line of /proc/swaps.
type swapArea struct {
	path, number string
	file         bool
}

func (m *Machine) swapAreas() ([]swapArea, error) {
	data, err := m.sys().swaps()
	if err != nil {
		return nil, fmt.Errorf("read what is used for swapping: %w", err)
	}
	var areas []swapArea
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 || !strings.HasPrefix(fields[0], "/") {
			continue // the heading
		}
		area := swapArea{path: unescape(fields[0]), file: fields[1] == "file"}
		if !area.file {
			if area.number, err = m.sys().number(area.path); err != nil {
				return nil, fmt.Errorf("find swap space %s: %w", area.path, err)
			}
		}
		areas = append(areas, area)
	}
	return areas, nil
}

// below says whether a path lies under one of the folders.
func below(path string, folders []string) bool {
	for _, folder := range folders {
		if strings.HasPrefix(path, strings.TrimSuffix(folder, "/")+"/") {
			return true
		}
	}
	return false
}
