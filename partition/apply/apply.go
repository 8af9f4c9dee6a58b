package apply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"bloomery/partition"
	"bloomery/partition/layout"
)

// Apply makes the machine's disks what the plan says, action by action. What is there already under the plan's identifiers and is sound stays;
// what an interruption left half-made is made anew. It may be called as often as it takes.
func (m *Machine) Apply(ctx context.Context, p *layout.Plan) error {
	if err := m.prepare(ctx, p); err != nil {
		return err
	}
	// A plan that cannot be finished must not be begun: every disk is looked up and every secret is there before anything is destroyed.
	for _, d := range p.Disks {
		if _, _, err := m.disk(ctx, p, d.Name); err != nil {
			return err
		}
	}
	for _, v := range p.LUKS {
		if _, err := m.keys(v); err != nil {
			return err
		}
	}
	actions := p.Actions()
	for i, a := range actions {
		if err := ctx.Err(); err != nil {
			return err
		}
		m.progress(a, i, len(actions))
		if err := m.do(ctx, p, a); err != nil {
			return fmt.Errorf("%s (%s): %w", a.Text, a.ID, err)
		}
	}
	if n := len(actions); n > 0 {
		m.progress(actions[n-1], n, n)
	}
	return nil
}

func (m *Machine) progress(a layout.Action, done, total int) {
	if m.Progress != nil {
		m.Progress(a, done, total)
	}
}

// prepare loads the device mapper where the plan needs it: its tools do not find it without udev's static nodes.
func (m *Machine) prepare(ctx context.Context, p *layout.Plan) error {
	if len(p.LUKS)+len(p.Groups) == 0 {
		return nil
	}
	if _, err := os.Stat(m.sysfs("class/misc/device-mapper")); err == nil {
		return nil
	}
	if _, err := m.tool(ctx, []string{"modprobe", "dm_mod"}); err != nil {
		return fmt.Errorf("load the device mapper: %w", err)
	}
	return nil
}

func (m *Machine) do(ctx context.Context, p *layout.Plan, a layout.Action) error {
	kind, name, _ := strings.Cut(string(a.Target), "/")
	switch a.Kind {
	case layout.ActionStop, layout.ActionErase, layout.ActionTable:
		if kind != "disk" {
			break
		}
		return m.doDisk(ctx, p, a.Kind, name)
	case layout.ActionArray:
		planned, err := array(p, name)
		if err != nil {
			return err
		}
		return m.ensureArray(ctx, p, planned, true)
	case layout.ActionEncrypt:
		planned, err := volumeLUKS(p, name)
		if err != nil {
			return err
		}
		return m.ensureLUKS(ctx, p, planned, true)
	case layout.ActionGroup:
		planned, err := group(p, name)
		if err != nil {
			return err
		}
		return m.ensureGroup(ctx, p, planned, true)
	case layout.ActionVolume:
		groupName, volume, _ := strings.Cut(name, "/")
		planned, err := group(p, groupName)
		if err != nil {
			return err
		}
		return m.ensureVolume(ctx, p, planned, volume, true)
	case layout.ActionFilesystem:
		planned, err := filesystem(p, a.Target)
		if err != nil {
			return err
		}
		return m.ensureFilesystem(ctx, p, planned)
	}
	return fmt.Errorf("there is no action %q on %s", a.Kind, a.Target)
}

// doDisk stops, erases or partitions a disk, unless it carries the plan's own objects already. The table is written after everything that was on
// the disk is gone, so that under the plan's table there is nothing that the plan did not make.
func (m *Machine) doDisk(ctx context.Context, p *layout.Plan, action, name string) error {
	d, dev, err := m.disk(ctx, p, name)
	if err != nil {
		return err
	}
	ours, err := m.ours(ctx, p, d, dev)
	if err != nil || ours {
		return err
	}
	switch action {
	case layout.ActionStop:
		return m.Stop(ctx, dev)
	case layout.ActionErase:
		return m.erase(ctx, d, dev)
	}
	return m.Disks.WriteTable(ctx, dev, plannedTable(d))
}

func plannedTable(d layout.DiskPlan) partition.Table {
	t := partition.Table{GUID: d.GUID}
	for _, part := range d.Partitions {
		t.Entries = append(t.Entries, partition.Entry{
			Number: part.Number, Label: part.Label, Type: part.Type, GUID: part.GUID, Start: part.StartBytes, Size: part.SizeBytes, Attributes: part.Attributes,
		})
	}
	slices.SortFunc(t.Entries, func(a, b partition.Entry) int { return a.Number - b.Number })
	return t
}

// ours says whether a disk was prepared by this plan: it has its table, or, without one, what comes right onto the disk.
func (m *Machine) ours(ctx context.Context, p *layout.Plan, d layout.DiskPlan, dev string) (bool, error) {
	if d.Table {
		found, err := partition.ReadTable(dev)
		if errors.Is(err, partition.ErrTable) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		planned := plannedTable(d)
		return found.GUID == planned.GUID && slices.Equal(found.Entries, planned.Entries), nil
	}
	want, err := identifier(p, layout.Ref("disk/"+d.Name))
	if err != nil {
		return false, err
	}
	seen, err := m.probe(ctx, dev)
	if err != nil {
		return false, err
	}
	return sameUUID(seen.uuid, want), nil
}

// identifier is the UUID that blkid finds on what the plan makes right on a device.
func identifier(p *layout.Plan, on layout.Ref) (string, error) {
	for _, a := range p.Arrays {
		if slices.Contains(a.Members, on) || slices.Contains(a.Spares, on) {
			return a.UUID, nil
		}
	}
	for _, v := range p.LUKS {
		if v.Device == on {
			return v.UUID, nil
		}
	}
	for _, g := range p.Groups {
		if i := slices.Index(g.Devices, on); i >= 0 {
			uuids, err := physicalUUIDs(p, g)
			if err != nil {
				return "", err
			}
			return uuids[i], nil
		}
	}
	for _, f := range p.Files {
		if f.Device == on {
			return f.UUID, nil
		}
	}
	return "", nil
}

// erase removes the signatures of what was on a disk: on its old partitions, on itself, and where the plan's partitions will begin and end.
func (m *Machine) erase(ctx context.Context, d layout.DiskPlan, dev string) error {
	// Something may have come up since the disk was stopped.
	if err := m.release(ctx, dev); err != nil {
		return err
	}
	old, err := m.above(node{name: filepath.Base(dev)})
	if err != nil {
		return err
	}
	for _, part := range old {
		if _, err := m.tool(ctx, []string{"wipefs", "--all", "--force", "/dev/" + part}); err != nil {
			return fmt.Errorf("remove signatures from /dev/%s: %w", part, err)
		}
	}
	if _, err := m.tool(ctx, []string{"wipefs", "--all", "--force", dev}); err != nil {
		return fmt.Errorf("remove signatures from %s: %w", dev, err)
	}
	spans := []partition.Span{{Start: 0, Size: edges}, {Start: -edges, Size: edges}}
	for _, part := range d.Partitions {
		end := part.StartBytes + part.SizeBytes
		size := min(edges, part.SizeBytes)
		spans = append(spans, partition.Span{Start: part.StartBytes, Size: size}, partition.Span{Start: end - size, Size: size})
	}
	return m.Disks.Zero(ctx, dev, spans...)
}
