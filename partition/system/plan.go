package system

import (
	"cmp"
	"slices"
	"strings"

	"bloomery/partition/layout"
)

// mount is a filesystem, or a subvolume of one, in the installed system's tree.
type mount struct {
	point     string
	fs        layout.FilesystemPlan
	subvolume string
	options   []string
}

// mounts are the plan's, from the root down.
func mounts(p *layout.Plan) []mount {
	var all []mount
	for _, f := range p.Files {
		if f.MountPoint != "" && len(f.Subvolumes) == 0 {
			all = append(all, mount{point: f.MountPoint, fs: f, options: f.Options})
		}
		for _, s := range f.Subvolumes {
			if s.MountPoint != "" {
				all = append(all, mount{point: s.MountPoint, fs: f, subvolume: s.Name, options: append(slices.Clone(s.Options), f.Options...)})
			}
		}
	}
	// "/" has as many parts as "/home" and stands before it as a text.
	slices.SortStableFunc(all, func(a, b mount) int {
		return cmp.Or(cmp.Compare(len(strings.Split(a.point, "/")), len(strings.Split(b.point, "/"))), cmp.Compare(a.point, b.point))
	})
	return all
}

// holder is the mount that a path of the tree lies on.
func holder(all []mount, path string) (mount, bool) {
	for _, m := range slices.Backward(all) {
		if m.point == path || m.point == "/" || strings.HasPrefix(path, m.point+"/") {
			return m, true
		}
	}
	return mount{}, false
}

// within is where a path of the tree is in the filesystem that holds it, as a boot loader sees it.
func (m mount) within(path string) string {
	inside := strings.TrimPrefix(path, strings.TrimSuffix(m.point, "/"))
	if m.subvolume != "" {
		inside = "/" + m.subvolume + inside
	}
	return inside
}

// split gives a reference's kind and names.
func split(r layout.Ref) (kind string, names []string) {
	parts := strings.Split(string(r), "/")
	return parts[0], parts[1:]
}

// below are the things that one stands on, itself first, down to the disks.
func below(p *layout.Plan, ref layout.Ref) []layout.Ref {
	all := []layout.Ref{ref}
	for i := 0; i < len(all); i++ {
		for _, r := range standsOn(p, all[i]) {
			if !slices.Contains(all, r) {
				all = append(all, r)
			}
		}
	}
	return all
}

func standsOn(p *layout.Plan, ref layout.Ref) []layout.Ref {
	kind, names := split(ref)
	switch kind {
	case "part":
		return []layout.Ref{layout.Ref("disk/" + names[0])}
	case "md":
		for _, a := range p.Arrays {
			if a.Name == names[0] {
				return a.Members
			}
		}
	case "luks":
		for _, v := range p.LUKS {
			if v.Name == names[0] {
				return []layout.Ref{v.Device}
			}
		}
	case "lv":
		for _, g := range p.Groups {
			if g.Name == names[0] {
				return g.Devices
			}
		}
	}
	return nil
}

// findPartition finds a plan's partition and its disk by reference.
func findPartition(p *layout.Plan, ref layout.Ref) (layout.DiskPlan, layout.PartitionPlan, bool) {
	kind, names := split(ref)
	if kind != "part" {
		return layout.DiskPlan{}, layout.PartitionPlan{}, false
	}
	for _, d := range p.Disks {
		for _, part := range d.Partitions {
			if d.Name == names[0] && names[1] == decimal(part.Number) {
				return d, part, true
			}
		}
	}
	return layout.DiskPlan{}, layout.PartitionPlan{}, false
}
