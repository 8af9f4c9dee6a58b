package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"bloomery/internal/run"
	"bloomery/partition"
	"bloomery/partition/layout"
)

// ErrNotMade is wrapped when a plan's object is not there or not active.
var ErrNotMade = errors.New("not made or not active")

// Machine is the machine whose disks are worked on. One goroutine at a time may use it.
type Machine struct {
	// Disks has the runner of the tools and knows where sysfs is.
	Disks partition.Disks
	// Find gives the device path of the disk with this serial or WWN as it is at this moment.
	Find func(ctx context.Context, serial, wwn string) (string, error)
	// Secrets are the keys that the plan's LUKS volumes are opened with, by name.
	Secrets map[string][]byte
	// Progress is told of each action before it begins, and once at the end with done equal to total. It may be nil.
	Progress func(a layout.Action, done, total int)

	// kernel is the running one unless a test sets it.
	kernel kernel
}

// kernel is what is asked of it beside sysfs.
type kernel interface {
	// mountinfo and swaps are the files of proc(5).
	mountinfo() ([]byte, error)
	swaps() ([]byte, error)
	// number is the device number of a block device, as in "8:1".
	number(path string) (string, error)
	unmount(path string) error
	swapoff(path string) error
}

func (m *Machine) sys() kernel {
	if m.kernel == nil {
		return running{}
	}
	return m.kernel
}

func (m *Machine) sysfs(elem ...string) string {
	root := m.Disks.Sysfs
	if root == "" {
		root = "/sys"
	}
	return filepath.Join(append([]string{root}, elem...)...)
}

// attribute reads a file of sysfs; one that is not there is empty.
func (m *Machine) attribute(elem ...string) string {
	text, err := os.ReadFile(m.sysfs(elem...))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

// noUdev tells the tools that nobody else makes device nodes: the agent has no udev, and without this each would look for one.
var noUdev = run.Env("DM_DISABLE_UDEV=1", "MDADM_NO_UDEV=1", "LVM_SUPPRESS_FD_WARNINGS=1")

// tool runs a program to its success and gives its output.
func (m *Machine) tool(ctx context.Context, argv []string, opts ...run.Option) ([]byte, error) {
	return run.Output(ctx, m.Disks.Runner, argv, append(opts, noUdev)...)
}

// answer runs a program whose exit code is an answer.
func (m *Machine) answer(ctx context.Context, argv []string, opts ...run.Option) (run.Result, error) {
	return m.Disks.Runner.Run(ctx, argv, append(opts, noUdev)...)
}

// Device is the kernel's path of a plan's object; an error that wraps ErrNotMade says that it is not there.
func (m *Machine) Device(ctx context.Context, p *layout.Plan, ref layout.Ref) (string, error) {
	dev, err := m.device(ctx, p, ref)
	if err != nil {
		return "", fmt.Errorf("find %s: %w", ref, err)
	}
	return dev, nil
}

func (m *Machine) device(ctx context.Context, p *layout.Plan, ref layout.Ref) (string, error) {
	kind, name, _ := strings.Cut(string(ref), "/")
	switch kind {
	case "disk":
		_, dev, err := m.disk(ctx, p, name)
		return dev, err
	case "part":
		disk, number, _ := strings.Cut(name, "/")
		n, err := strconv.Atoi(number)
		if err != nil {
			return "", fmt.Errorf("partition number %q: %w", number, err)
		}
		_, dev, err := m.disk(ctx, p, disk)
		if err != nil {
			return "", err
		}
		return present(partition.PartitionPath(dev, n))
	case "md":
		a, err := array(p, name)
		if err != nil {
			return "", err
		}
		return m.activeArray(ctx, a.UUID)
	case "luks":
		v, err := volumeLUKS(p, name)
		if err != nil {
			return "", err
		}
		return m.mapped(name, cryptUUID(v))
	case "lv":
		group, volume, _ := strings.Cut(name, "/")
		return m.mapped(mapperName(group, volume), "LVM-")
	}
	return "", errors.New("the plan has no such kind of object")
}

// disk finds a disk of the plan anew and refuses one that is not as large as planned or has other sectors.
func (m *Machine) disk(ctx context.Context, p *layout.Plan, name string) (layout.DiskPlan, string, error) {
	for _, d := range p.Disks {
		if d.Name != name {
			continue
		}
		dev, err := m.Find(ctx, d.Serial, d.WWN)
		if err != nil {
			return d, "", fmt.Errorf("disk %s (serial %q, WWN %q): %w", name, d.Serial, d.WWN, err)
		}
		if size := m.sectors(dev); size != d.SizeBytes {
			return d, "", fmt.Errorf("disk %s (%s) has %d bytes, planned are %d", name, dev, size, d.SizeBytes)
		}
		if sector := m.attribute("class/block", filepath.Base(dev), "queue/logical_block_size"); sector != strconv.Itoa(d.SectorSize) {
			return d, "", fmt.Errorf("disk %s (%s) has sectors of %q bytes, planned are %d", name, dev, sector, d.SectorSize)
		}
		return d, dev, nil
	}
	return layout.DiskPlan{}, "", fmt.Errorf("the plan has no disk %s", name)
}

// sectors is the size of a block device in bytes; sysfs counts in 512 whatever the device's sectors are.
func (m *Machine) sectors(dev string) int64 {
	n, err := strconv.ParseInt(m.attribute("class/block", filepath.Base(dev), "size"), 10, 64)
	if err != nil {
		return -1
	}
	return n * 512
}

// mapped is the path of the device-mapper device of this name whose UUID begins with prefix.
func (m *Machine) mapped(name, prefix string) (string, error) {
	entries, err := filepath.Glob(m.sysfs("class/block/dm-*"))
	if err != nil {
		return "", err
	}
	for _, dir := range entries {
		base := filepath.Base(dir)
		if m.attribute("class/block", base, "dm/name") != name {
			continue
		}
		if uuid := m.attribute("class/block", base, "dm/uuid"); !strings.HasPrefix(uuid, prefix) {
			return "", fmt.Errorf("%w: /dev/mapper/%s is something else (%s)", ErrNotMade, name, uuid)
		}
		return present("/dev/mapper/" + name)
	}
	return "", ErrNotMade
}

// kernelName is what sysfs calls a device, whose node may have any name.
func (m *Machine) kernelName(dev string) (string, error) {
	number, err := m.sys().number(dev)
	if err != nil {
		return "", fmt.Errorf("find the kernel's name of %s: %w", dev, err)
	}
	link, err := os.Readlink(m.sysfs("dev/block", number))
	if err != nil {
		return "", fmt.Errorf("find the kernel's name of %s: %w", dev, err)
	}
	return filepath.Base(link), nil
}

// mapperName is how LVM names a volume for the device mapper: hyphens within a name are doubled (lvm(8)).
func mapperName(group, volume string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return double(group) + "-" + double(volume)
}

func present(path string) (string, error) {
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotMade, err)
	}
	return path, nil
}

func array(p *layout.Plan, name string) (layout.ArrayPlan, error) {
	for _, a := range p.Arrays {
		if a.Name == name {
			return a, nil
		}
	}
	return layout.ArrayPlan{}, fmt.Errorf("the plan has no array %s", name)
}

func volumeLUKS(p *layout.Plan, name string) (layout.LUKSPlan, error) {
	for _, v := range p.LUKS {
		if v.Name == name {
			return v, nil
		}
	}
	return layout.LUKSPlan{}, fmt.Errorf("the plan has no LUKS volume %s", name)
}

func group(p *layout.Plan, name string) (layout.GroupPlan, error) {
	for _, g := range p.Groups {
		if g.Name == name {
			return g, nil
		}
	}
	return layout.GroupPlan{}, fmt.Errorf("the plan has no volume group %s", name)
}

func filesystem(p *layout.Plan, ref layout.Ref) (layout.FilesystemPlan, error) {
	for _, f := range p.Files {
		if f.Device == ref {
			return f, nil
		}
	}
	return layout.FilesystemPlan{}, fmt.Errorf("the plan has no filesystem on %s", ref)
}

// running is the kernel that this program runs on.
type running struct{}

func (running) mountinfo() ([]byte, error) { return os.ReadFile("/proc/self/mountinfo") }

func (running) swaps() ([]byte, error) {
	data, err := os.ReadFile("/proc/swaps")
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // a kernel without swap
	}
	return data, err
}

func (running) number(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", fmt.Errorf("%s is not a block device", path)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev)), nil
}

func (running) unmount(path string) error { return unix.Unmount(path, unix.UMOUNT_NOFOLLOW) }

func (running) swapoff(path string) error {
	name, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	return swapoff(name)
}
