package apply

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"bloomery/partition/layout"
)

// mounting is one filesystem or subvolume and where it goes.
type mounting struct {
	device layout.Ref
	format string
	point  string
	data   string // options of the filesystem's own
}

// mountings are the plan's mounts from the root down.
func mountings(p *layout.Plan) []mounting {
	var all []mounting
	for _, f := range p.Files {
		if f.MountPoint != "" && len(f.Subvolumes) == 0 {
			all = append(all, mounting{f.Device, f.Format, f.MountPoint, mountData(f.Options)})
		}
		for _, s := range f.Subvolumes {
			if s.MountPoint != "" {
				data := mountData(append(slices.Clone(s.Options), f.Options...), "subvol="+s.Name)
				all = append(all, mounting{f.Device, f.Format, s.MountPoint, data})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b mounting) int {
		return cmp.Or(cmp.Compare(depth(a.point), depth(b.point)), cmp.Compare(a.point, b.point))
	})
	return all
}

func depth(point string) int {
	if point == "/" {
		return 0
	}
	return strings.Count(point, "/")
}

// mountData keeps of the installed system's options what decides how files are stored. The others are for its own running: read-only, quotas, what
// systemd reads.
func mountData(options []string, more ...string) string {
	var keep []string
	for _, o := range options {
		if name, _, _ := strings.Cut(o, "="); (name == "compress" || name == "compress-force") && !slices.Contains(keep, o) {
			keep = append(keep, o)
		}
	}
	return strings.Join(append(keep, more...), ",")
}

// WithRoot activates the plan's devices, mounts its filesystems under one folder as the installed system will have them, calls use with that
// folder, and unmounts in any case. When it returns nil everything that use wrote is on the disks. The mounts are neither nosuid nor nodev: what
// is unpacked there has capabilities and device nodes.
func (m *Machine) WithRoot(ctx context.Context, p *layout.Plan, use func(root string) error) (err error) {
	all := mountings(p)
	if len(all) == 0 || all[0].point != "/" {
		return errors.New("the plan has no root filesystem")
	}
	if err := m.Activate(ctx, p); err != nil {
		return err
	}
	root, err := os.MkdirTemp("", "bloomery-root-")
	if err != nil {
		return fmt.Errorf("make a folder for the root filesystem: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(root)) }()
	var mounted []string
	defer func() {
		for _, point := range slices.Backward(mounted) {
			if unmountErr := m.unmount(context.WithoutCancel(ctx), point); unmountErr != nil {
				err = errors.Join(err, fmt.Errorf("unmount %s: %w", point, unmountErr))
			}
		}
	}()
	for _, mt := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		point, err := m.mountAt(ctx, p, root, mt)
		if err != nil {
			return fmt.Errorf("mount %s at %s: %w", mt.device, mt.point, err)
		}
		mounted = append(mounted, point)
	}
	return use(root)
}

// mountAt mounts below root and gives the mount point. What an image has unpacked there may hold links that lead out: the folder is made and opened
// within root, and mounted onto as it was opened.
func (m *Machine) mountAt(ctx context.Context, p *layout.Plan, root string, mt mounting) (string, error) {
	dev, err := m.Device(ctx, p, mt.device)
	if err != nil {
		return "", err
	}
	if mt.point == "/" {
		return root, unix.Mount(dev, root, mt.format, unix.MS_NOATIME, mt.data)
	}
	inside, err := os.OpenRoot(root)
	if err != nil {
		return "", err
	}
	defer inside.Close()
	name := strings.TrimPrefix(mt.point, "/")
	if err := inside.MkdirAll(name, 0o755); err != nil {
		return "", err
	}
	folder, err := inside.Open(name)
	if err != nil {
		return "", err
	}
	defer folder.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", folder.Fd())
	point, err := os.Readlink(path)
	if err != nil {
		return "", err
	}
	return point, unix.Mount(dev, path, mt.format, unix.MS_NOATIME, mt.data)
}
