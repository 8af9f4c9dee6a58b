package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrRunningSystem is wrapped when what shall be stopped carries the system that runs.
var ErrRunningSystem = errors.New("the running system is on it")

// maxStops bounds how many things are ended for one disk.
const maxStops = 1024

// raidSignatures are the kinds of RAID superblocks that blkid knows. A disk that keeps one would be put together again by the next system, or
// hidden by a controller's option ROM.
const raidSignatures = "linux_raid_member,isw_raid_member,ddf_raid_member,lsi_mega_raid_member,via_raid_member,silicon_medley_raid_member," +
	"nvidia_raid_member,promise_fasttrack_raid_member,highpoint_raid_member,adaptec_raid_member,jmicron_raid_member"

// Stop ends whatever uses a disk and takes it out of every RAID: swap, mounts, loop devices, LVM, LUKS and other device-mapper devices, md arrays,
// from the top down, then RAID superblocks on the disk and its partitions, foreign ones included. What other disks carry keeps its data; an array
// or a group that reaches over several disks is stopped as a whole. It refuses a disk that carries the running system (ErrRunningSystem) or that it
// was started from (partition.ErrBootMedium).
func (m *Machine) Stop(ctx context.Context, dev string) error {
	if err := m.Disks.CheckNotBootMedium(dev); err != nil {
		return fmt.Errorf("stop what uses %s: %w", dev, err)
	}
	name, err := m.kernelName(dev)
	if err != nil {
		return err
	}
	if err := m.release(ctx, dev); err != nil {
		return err
	}
	parts, err := m.above(node{name: name})
	if err != nil {
		return fmt.Errorf("stop what uses %s: %w", dev, err)
	}
	for _, part := range append(parts, name) {
		if _, err := m.tool(ctx, []string{"wipefs", "--all", "--force", "--types", raidSignatures, "/dev/" + part}); err != nil {
			return fmt.Errorf("remove RAID superblocks from /dev/%s: %w", part, err)
		}
	}
	return nil
}

// release ends what uses a device, which itself stays.
func (m *Machine) release(ctx context.Context, dev string) error {
	name, err := m.kernelName(dev)
	if err != nil {
		return err
	}
	if err := m.endUsers(ctx, name); err != nil {
		return fmt.Errorf("stop what uses %s: %w", dev, err)
	}
	return nil
}

// endUsers looks again after each end: one thing takes others with it.
func (m *Machine) endUsers(ctx context.Context, name string) error {
	for range maxStops {
		if err := ctx.Err(); err != nil {
			return err
		}
		stack, err := m.stack(name)
		if err != nil {
			return err
		}
		if err := refuseRunning(stack); err != nil {
			return err
		}
		end, err := m.nextEnd(stack)
		if err != nil {
			return err
		}
		if end == nil {
			return nil
		}
		if err := end(ctx); err != nil {
			return err
		}
	}
	return fmt.Errorf("after ending %d things there is still something", maxStops)
}

// refuseRunning refuses a stack that carries the root of this system. The agent's own is in memory; this is for whoever runs it elsewhere.
func refuseRunning(stack []node) error {
	for _, n := range stack {
		if slices.Contains(n.mounts, "/") {
			return fmt.Errorf("%w: %s is mounted at /", ErrRunningSystem, n.name)
		}
	}
	return nil
}

// nextEnd is what has to be ended first; nil when nothing uses the last of the stack.
func (m *Machine) nextEnd(stack []node) (func(context.Context) error, error) {
	for i, n := range stack {
		if len(n.swaps) > 0 {
			path := n.swaps[0]
			return func(context.Context) error {
				if err := m.sys().swapoff(path); err != nil {
					return fmt.Errorf("stop swapping to %s: %w", path, err)
				}
				return nil
			}, nil
		}
		if len(n.mounts) > 0 {
			point := n.mounts[len(n.mounts)-1]
			return func(ctx context.Context) error {
				if err := m.unmount(ctx, point); err != nil {
					return fmt.Errorf("unmount %s (%s): %w", point, n.name, err)
				}
				return nil
			}, nil
		}
		if i == len(stack)-1 || m.attribute("class/block", n.name, "partition") != "" {
			continue
		}
		switch {
		case n.mapper():
			return func(ctx context.Context) error { return m.removeMapped(ctx, n) }, nil
		case strings.HasPrefix(n.name, "md"):
			return func(ctx context.Context) error { return m.stopArray(ctx, n.name) }, nil
		case strings.HasPrefix(n.name, "loop"):
			return func(ctx context.Context) error { return m.detachLoop(ctx, n.name) }, nil
		}
		return nil, fmt.Errorf("%s holds it, and is of no kind that can be stopped", n.name)
	}
	return nil, nil
}

// unmount waits for a late child to let go of the filesystem.
func (m *Machine) unmount(ctx context.Context, point string) error {
	var err error
	for pause := 10 * time.Millisecond; pause < 2*time.Second; pause *= 2 {
		if err = m.sys().unmount(point); !errors.Is(err, unix.EBUSY) {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
	return err
}

// removeMapped ends a LUKS volume, a logical volume or any other device of the device mapper, by its name: dmsetup then knows which node to remove.
func (m *Machine) removeMapped(ctx context.Context, n node) error {
	if _, err := m.tool(ctx, []string{"dmsetup", "remove", "--retry", "--", n.dmName}); err != nil {
		return fmt.Errorf("remove %s (%s): %w", n.dmName, n.name, err)
	}
	if !strings.HasPrefix(n.dmUUID, "LVM-") {
		return nil
	}
	// LVM would take its link /dev/GROUP/VOLUME away, and refuses a new group while the folder has something in it.
	group, volume := splitMapperName(n.dmName)
	link := filepath.Join("/dev", group, volume)
	if _, err := os.Stat(link); errors.Is(err, os.ErrNotExist) {
		if err := os.Remove(link); err == nil {
			_ = os.Remove(filepath.Dir(link)) // only the last volume's succeeds
		}
	}
	return nil
}

// splitMapperName undoes mapperName: the first single hyphen parts group and volume.
func splitMapperName(name string) (group, volume string) {
	for i := 0; i < len(name); i++ {
		if name[i] != '-' {
			continue
		}
		if i+1 < len(name) && name[i+1] == '-' {
			i++
			continue
		}
		single := func(s string) string { return strings.ReplaceAll(s, "--", "-") }
		return single(name[:i]), single(name[i+1:])
	}
	return name, ""
}

// stopArray ends a resync before the array: it would be in the way for a moment.
func (m *Machine) stopArray(ctx context.Context, name string) error {
	idle := m.sysfs("class/block", name, "md/sync_action")
	if action := m.attribute("class/block", name, "md/sync_action"); action != "" && action != "idle" {
		if err := os.WriteFile(idle, []byte("frozen\n"), 0o644); err != nil {
			return fmt.Errorf("end the resync of %s: %w", name, err)
		}
	}
	if _, err := m.tool(ctx, []string{"mdadm", "--stop", "/dev/" + name}); err != nil {
		return fmt.Errorf("stop array %s: %w", name, err)
	}
	return nil
}

func (m *Machine) detachLoop(ctx context.Context, name string) error {
	if _, err := m.tool(ctx, []string{"losetup", "-d", "/dev/" + name}); err != nil {
		return fmt.Errorf("detach %s: %w", name, err)
	}
	return nil
}

func sleep(ctx context.Context, pause time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(pause):
		return nil
	}
}
