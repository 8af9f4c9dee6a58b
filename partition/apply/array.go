package apply

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"bloomery/partition"
	"bloomery/partition/layout"
)

// ensureArray makes an array active: one whose superblocks are on all of its members is assembled, any other is made, if create says so.
func (m *Machine) ensureArray(ctx context.Context, p *layout.Plan, a layout.ArrayPlan, create bool) error {
	members, err := m.members(ctx, p, a)
	if err != nil {
		return err
	}
	dev, err := m.activeArray(ctx, a.UUID)
	if errors.Is(err, ErrNotMade) {
		if dev, err = m.assemble(ctx, a, members); errors.Is(err, ErrNotMade) && create {
			return m.createArray(ctx, p, a)
		}
	}
	if err != nil {
		return err
	}
	state, err := m.arrayState(ctx, dev)
	if err != nil {
		return err
	}
	if wrong := state.against(a, members); len(wrong) > 0 {
		if !create {
			return fmt.Errorf("%s is not as planned: %v", dev, wrong)
		}
		if err := m.dropArray(ctx, dev, members); err != nil {
			return err
		}
		return m.createArray(ctx, p, a)
	}
	return nil
}

// assemble starts an array if each of its members has a superblock of it; ErrNotMade if one has not.
func (m *Machine) assemble(ctx context.Context, a layout.ArrayPlan, members []string) (string, error) {
	for _, member := range members {
		result, err := m.answer(ctx, []string{"mdadm", "--examine", "--export", member})
		if err != nil {
			return "", fmt.Errorf("read the superblock of %s: %w", member, err)
		}
		if result.ExitCode != 0 || !sameUUID(pairs(result.Stdout)["MD_UUID"], a.UUID) {
			return "", fmt.Errorf("%s is not a member yet: %w", member, ErrNotMade)
		}
	}
	argv := slices.Concat([]string{"mdadm", "--assemble", "/dev/md/" + a.Name, "--config=none", "--run", "--uuid=" + a.UUID}, members)
	if result, err := m.answer(ctx, argv); err != nil {
		return "", fmt.Errorf("assemble %s: %w", a.Name, err)
	} else if result.ExitCode != 0 {
		// Superblocks that do not fit together are those of an array whose making was interrupted.
		return "", fmt.Errorf("%w: mdadm does not assemble it: %s", ErrNotMade, strings.TrimSpace(string(result.Stderr)))
	}
	return m.activeArray(ctx, a.UUID)
}

func (m *Machine) createArray(ctx context.Context, p *layout.Plan, a layout.ArrayPlan) error {
	// Anew, since this destroys what is on them.
	all, err := m.members(ctx, p, a)
	if err != nil {
		return err
	}
	for _, member := range all {
		if err := m.release(ctx, member); err != nil {
			return err
		}
		if err := m.blank(ctx, member); err != nil {
			return err
		}
	}
	if _, err := m.tool(ctx, createArrayArgv(a, all)); err != nil {
		return err
	}
	dev, err := m.activeArray(ctx, a.UUID)
	if err != nil {
		return fmt.Errorf("find array %s after it was made: %w", a.Name, err)
	}
	state, err := m.arrayState(ctx, dev)
	if err != nil {
		return err
	}
	if wrong := state.against(a, all); len(wrong) > 0 {
		return fmt.Errorf("%s is not as planned after it was made: %v", dev, wrong)
	}
	return m.blank(ctx, dev)
}

// members are the kernel's paths of an array's members, the spares last.
func (m *Machine) members(ctx context.Context, p *layout.Plan, a layout.ArrayPlan) ([]string, error) {
	paths, err := m.devices(ctx, p, slices.Concat(a.Members, a.Spares))
	if err != nil {
		return nil, err
	}
	for i, path := range paths {
		name, err := m.kernelName(path)
		if err != nil {
			return nil, err
		}
		paths[i] = "/dev/" + name
	}
	return paths, nil
}

// createArrayArgv is mdadm's command line.
//
// --assume-clean leaves the first resync out for levels 1 and 10 only: their copies do not depend on each other, and a block that nobody has
// written yet may differ between them. With parity that would lose data: what is computed from a stale parity when a disk is gone is garbage.
// --force makes level 5 start with all of its members in place instead of rebuilding the last one as if it had failed.
// The bitmap bounds the resync after a power cut to what was being written; level 0 has nothing to resync.
func createArrayArgv(a layout.ArrayPlan, members []string) []string {
	argv := []string{
		"mdadm", "--create", "/dev/md/" + a.Name, "--config=none", "--run", "--homehost=any", "--name=" + a.Name, "--uuid=" + a.UUID,
		"--metadata=" + a.Metadata, "--level=" + strconv.Itoa(a.Level), "--raid-devices=" + strconv.Itoa(len(a.Members)),
	}
	if len(a.Spares) > 0 {
		argv = append(argv, "--spare-devices="+strconv.Itoa(len(a.Spares)))
	}
	if a.ChunkBytes > 0 {
		argv = append(argv, "--chunk="+strconv.FormatInt(a.ChunkBytes/1024, 10))
	}
	if a.Level != 0 {
		argv = append(argv, "--bitmap=internal")
	}
	switch a.Level {
	case 1, 10:
		argv = append(argv, "--assume-clean")
	case 5:
		argv = append(argv, "--force")
	}
	return append(argv, members...)
}

// dropArray ends an array that is not as planned and makes its members forget it.
func (m *Machine) dropArray(ctx context.Context, dev string, members []string) error {
	if err := m.release(ctx, dev); err != nil {
		return err
	}
	if err := m.stopArray(ctx, filepath.Base(dev)); err != nil {
		return err
	}
	for _, member := range members {
		if err := m.blank(ctx, member); err != nil {
			return err
		}
	}
	return nil
}

// edges are where a device's signatures are: the first and last of its 4 MiB cover those of every kind that blkid knows but the further copies
// of btrfs, which nobody reads unasked.
const edges = 4 << 20

// blank removes every signature from a device that nothing uses, so that nothing is recognised in what comes onto it.
func (m *Machine) blank(ctx context.Context, dev string) error {
	if _, err := m.tool(ctx, []string{"wipefs", "--all", "--force", dev}); err != nil {
		return fmt.Errorf("remove signatures from %s: %w", dev, err)
	}
	return m.Disks.Zero(ctx, dev, partition.Span{Start: 0, Size: edges}, partition.Span{Start: -edges, Size: edges})
}

// arrayState is what mdadm says of an active array.
type arrayState struct {
	uuid, level, metadata string
	devices               int
	roles                 map[string]string // device path to its number in the array, or "spare"
}

func (m *Machine) arrayState(ctx context.Context, dev string) (arrayState, error) {
	out, err := m.tool(ctx, []string{"mdadm", "--detail", "--export", dev})
	if err != nil {
		return arrayState{}, fmt.Errorf("read the state of %s: %w", dev, err)
	}
	return parseArrayState(out), nil
}

func parseArrayState(out []byte) arrayState {
	values := pairs(out)
	s := arrayState{uuid: values["MD_UUID"], level: values["MD_LEVEL"], metadata: values["MD_METADATA"], roles: map[string]string{}}
	s.devices, _ = strconv.Atoi(values["MD_DEVICES"]) // one that cannot be read is none
	for key, value := range values {
		if member, isRole := strings.CutSuffix(key, "_ROLE"); isRole && strings.HasPrefix(member, "MD_DEVICE_") {
			if path := values[member+"_DEV"]; path != "" {
				s.roles[path] = value
			}
		}
	}
	return s
}

// against lists what differs from the plan. members are the planned ones with the spares last.
func (s arrayState) against(a layout.ArrayPlan, members []string) []Difference {
	var d differences
	d.compare("uuid", plainUUID(a.UUID), plainUUID(s.uuid))
	d.compare("level", "raid"+strconv.Itoa(a.Level), s.level)
	d.compare("metadata", a.Metadata, s.metadata)
	d.compare("raid devices", strconv.Itoa(len(a.Members)), strconv.Itoa(s.devices))
	for i, member := range members {
		// A RAID 10 of near copies, and any array whose members were listed in order, gives the numbers in that order.
		role := "spare"
		if i < len(a.Members) {
			role = strconv.Itoa(i)
		}
		d.compare("role of "+member, role, s.roles[member])
	}
	for path := range s.roles {
		if !slices.Contains(members, path) {
			d.compare("member "+path, "", s.roles[path])
		}
	}
	return d.sorted()
}

// activeArray is the device of the running array with this UUID; ErrNotMade if there is none.
func (m *Machine) activeArray(ctx context.Context, uuid string) (string, error) {
	found, err := filepath.Glob(m.sysfs("class/block/md*/md"))
	if err != nil {
		return "", err
	}
	for _, dir := range found {
		dev := "/dev/" + filepath.Base(filepath.Dir(dir))
		if state := m.attribute("class/block", filepath.Base(dev), "md/array_state"); state == "clear" || state == "inactive" {
			continue // a name without an array, or one that lacks members
		}
		result, err := m.answer(ctx, []string{"mdadm", "--detail", "--export", dev})
		if err != nil {
			return "", fmt.Errorf("read the state of %s: %w", dev, err)
		}
		if result.ExitCode == 0 && sameUUID(pairs(result.Stdout)["MD_UUID"], uuid) {
			return dev, nil
		}
	}
	return "", ErrNotMade
}

// devices are the paths of several objects.
func (m *Machine) devices(ctx context.Context, p *layout.Plan, refs []layout.Ref) ([]string, error) {
	var paths []string
	for _, ref := range refs {
		dev, err := m.Device(ctx, p, ref)
		if err != nil {
			return nil, err
		}
		paths = append(paths, dev)
	}
	return paths, nil
}

// pairs reads lines of NAME=value, as several tools print them with --export.
func pairs(out []byte) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if name, value, found := strings.Cut(strings.TrimRight(line, "\r\n"), "="); found {
			values[name] = value
		}
	}
	return values
}

// sameUUID compares UUIDs however they are grouped: mdadm prints four groups of eight digits.
func sameUUID(a, b string) bool { return a != "" && plainUUID(a) == plainUUID(b) }

func plainUUID(s string) string {
	return strings.ToLower(strings.NewReplacer("-", "", ":", "").Replace(s))
}
