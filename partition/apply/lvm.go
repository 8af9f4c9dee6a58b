package apply

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"bloomery/partition/layout"
)

// lvm is LVM with nothing in sight but the given devices, so that groups on other disks are neither seen nor touched, and without what the agent
// has not: udev, dmeventd, and a place for backups of metadata. Thin pools are a few minutes old, their metadata is not checked at each start.
func (m *Machine) lvm(ctx context.Context, devices []string, argv ...string) ([]byte, error) {
	accept := make([]string, len(devices))
	for i, dev := range devices {
		accept[i] = strconv.Quote("a|^" + regexp.QuoteMeta(dev) + "$|")
	}
	config := `devices/global_filter=[` + strings.Join(append(accept, `"r|.*|"`), ",") + `]` +
		` devices/obtain_device_list_from_udev=0 devices/external_device_info_source="none" devices/use_devicesfile=0` +
		` activation/udev_sync=0 activation/udev_rules=0 activation/monitoring=0 backup/backup=0 backup/archive=0 global/thin_check_executable=""`
	return m.tool(ctx, append([]string{"lvm", argv[0], "--config", config}, argv[1:]...))
}

// groupState is a volume group as LVM reports it, the physical volumes by their UUIDs.
type groupState struct {
	found        bool
	extent       int64
	missing      int
	physical     []string
	physicalSize int64
}

// ensureGroup makes a group that has other physical volumes than planned, or lacks some, anew.
func (m *Machine) ensureGroup(ctx context.Context, p *layout.Plan, g layout.GroupPlan, create bool) error {
	devices, err := m.devices(ctx, p, g.Devices)
	if err != nil {
		return err
	}
	state, err := m.groupState(ctx, devices, g.Name)
	if err != nil {
		return err
	}
	planned, err := physicalUUIDs(p, g)
	if err != nil {
		return err
	}
	wrong := state.against(g, planned)
	if len(wrong) == 0 {
		return nil
	}
	if !create {
		return fmt.Errorf("volume group %s is not as planned: %v", g.Name, wrong)
	}
	for i, dev := range devices {
		if err := m.release(ctx, dev); err != nil {
			return err
		}
		if err := m.blank(ctx, dev); err != nil {
			return err
		}
		if _, err := m.lvm(ctx, devices, "pvcreate", "--yes", "--force", "--force", "--zero", "y", "--norestorefile", "--uuid", planned[i], dev); err != nil {
			return err
		}
	}
	argv := []string{"vgcreate", "--yes", "--physicalextentsize", strconv.FormatInt(g.ExtentBytes, 10) + "b", g.Name}
	_, err = m.lvm(ctx, devices, append(argv, devices...)...)
	return err
}

// physicalUUIDs are those of the group's physical volumes. They follow from the whole plan, whose identifiers are a job's own: a group whose
// volumes have them was made of this plan and no other.
func physicalUUIDs(p *layout.Plan, g layout.GroupPlan) ([]string, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("derive the identifiers of group %s: %w", g.Name, err)
	}
	var uuids []string
	for _, ref := range g.Devices {
		uuids = append(uuids, physicalUUID(sha256.Sum256(fmt.Appendf(slices.Clone(data), "\x00pv/%s/%s", g.Name, ref))))
	}
	return uuids, nil
}

// physicalUUID is 32 characters of LVM's own alphabet in groups of 6-4-4-4-4-4-6 (lib/uuid/uuid.c).
func physicalUUID(digest [sha256.Size]byte) string {
	const alphabet = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	var s strings.Builder
	for i, b := range digest {
		if i == 6 || i > 6 && i < 27 && (i-6)%4 == 0 {
			s.WriteByte('-')
		}
		s.WriteByte(alphabet[int(b)%len(alphabet)])
	}
	return s.String()
}

func (m *Machine) groupState(ctx context.Context, devices []string, name string) (groupState, error) {
	var s groupState
	out, err := m.lvm(ctx, devices, "pvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--options",
		"pv_uuid,vg_name,vg_extent_size,vg_missing_pv_count,vg_size")
	if err != nil {
		return s, fmt.Errorf("read the physical volumes of %s: %w", name, err)
	}
	rows, err := lvmRows(out, "pv")
	if err != nil {
		return s, fmt.Errorf("read the physical volumes of %s: %w", name, err)
	}
	for _, row := range rows {
		if row["vg_name"] != name {
			continue
		}
		s.found = true
		s.physical = append(s.physical, row["pv_uuid"])
		extent, errExtent := strconv.ParseInt(row["vg_extent_size"], 10, 64)
		missing, errMissing := strconv.Atoi(row["vg_missing_pv_count"])
		size, errSize := strconv.ParseInt(row["vg_size"], 10, 64)
		if err := errors.Join(errExtent, errMissing, errSize); err != nil {
			return s, fmt.Errorf("read the physical volumes of %s: %w", name, err)
		}
		s.extent, s.missing, s.physicalSize = extent, missing, size
	}
	slices.Sort(s.physical)
	return s, nil
}

func (s groupState) against(g layout.GroupPlan, planned []string) []Difference {
	var d differences
	if !s.found {
		d.compare("group", g.Name, "")
		return d.sorted()
	}
	sorted := slices.Sorted(slices.Values(planned))
	d.compare("physical volumes", strings.Join(sorted, " "), strings.Join(s.physical, " "))
	d.compare("missing physical volumes", "0", strconv.Itoa(s.missing))
	d.compare("extent size", strconv.FormatInt(g.ExtentBytes, 10), strconv.FormatInt(s.extent, 10))
	if s.physicalSize < g.SizeBytes {
		d.compare("size", strconv.FormatInt(g.SizeBytes, 10), strconv.FormatInt(s.physicalSize, 10))
	}
	return d.sorted()
}

// lvmRows reads a report of LVM in JSON: {"report":[{"pv":[{…}]}]}.
func lvmRows(out []byte, kind string) ([]map[string]string, error) {
	var whole struct {
		Report []map[string][]map[string]string `json:"report"`
	}
	if err := json.Unmarshal(out, &whole); err != nil {
		return nil, fmt.Errorf("read LVM's report: %w", err)
	}
	var rows []map[string]string
	for _, report := range whole.Report {
		rows = append(rows, report[kind]...)
	}
	return rows, nil
}

// volumeState is a logical volume as LVM reports it.
type volumeState struct {
	kind          string
	size          int64
	stripes       int
	stripeSize    int64
	pool          string
	active, sound bool
}

func (m *Machine) volumeStates(ctx context.Context, devices []string, name string) (map[string]volumeState, error) {
	out, err := m.lvm(ctx, devices, "lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--options",
		"lv_name,vg_name,segtype,lv_size,stripes,stripe_size,pool_lv,lv_active,lv_health_status", name)
	if err != nil {
		return nil, fmt.Errorf("read the logical volumes of %s: %w", name, err)
	}
	return parseVolumeStates(out)
}

func parseVolumeStates(out []byte) (map[string]volumeState, error) {
	rows, err := lvmRows(out, "lv")
	if err != nil {
		return nil, err
	}
	states := map[string]volumeState{}
	for _, row := range rows {
		if _, twice := states[row["lv_name"]]; twice {
			// A row for each segment: a volume in pieces was not made by a plan.
			states[row["lv_name"]] = volumeState{kind: "several segments"}
			continue
		}
		s := volumeState{kind: row["segtype"], pool: row["pool_lv"], active: row["lv_active"] == "active", sound: row["lv_health_status"] == ""}
		var errSize, errStripes, errStripe error
		s.size, errSize = strconv.ParseInt(row["lv_size"], 10, 64)
		if row["stripes"] != "" {
			s.stripes, errStripes = strconv.Atoi(row["stripes"])
		}
		if row["stripe_size"] != "" {
			s.stripeSize, errStripe = strconv.ParseInt(row["stripe_size"], 10, 64)
		}
		if err := errors.Join(errSize, errStripes, errStripe); err != nil {
			return nil, fmt.Errorf("read LVM's report on %s: %w", row["lv_name"], err)
		}
		states[row["lv_name"]] = s
	}
	return states, nil
}

func (s volumeState) against(v layout.VolumePlan) []Difference {
	var d differences
	d.compare("kind", v.Kind, s.kind)
	d.compare("size", strconv.FormatInt(v.SizeBytes, 10), strconv.FormatInt(s.size, 10))
	if v.Kind == layout.VolumeStriped {
		d.compare("stripes", strconv.Itoa(v.Stripes), strconv.Itoa(s.stripes))
		d.compare("stripe size", strconv.FormatInt(v.StripeBytes, 10), strconv.FormatInt(s.stripeSize, 10))
	}
	d.compare("pool", v.Pool, s.pool)
	if !s.sound {
		d.compare("health", "", "not sound")
	}
	return d.sorted()
}

// ensureVolume makes a logical volume active, anew where it is not as planned. What an interrupted lvcreate left, by names that the plan does not
// have, goes first: it would take the room.
func (m *Machine) ensureVolume(ctx context.Context, p *layout.Plan, g layout.GroupPlan, name string, create bool) error {
	i := slices.IndexFunc(g.Volumes, func(v layout.VolumePlan) bool { return v.Name == name })
	if i < 0 {
		return fmt.Errorf("the plan has no volume %s in group %s", name, g.Name)
	}
	v := g.Volumes[i]
	devices, err := m.devices(ctx, p, g.Devices)
	if err != nil {
		return err
	}
	states, err := m.volumeStates(ctx, devices, g.Name)
	if err != nil {
		return err
	}
	state, found := states[v.Name]
	wrong := state.against(v)
	if found && len(wrong) == 0 {
		if state.active {
			return nil
		}
		_, err := m.lvm(ctx, devices, "lvchange", "--yes", "--activate", "y", "--ignoreactivationskip", g.Name+"/"+v.Name)
		return err
	}
	if !create {
		return fmt.Errorf("logical volume %s/%s: %w: %v", g.Name, v.Name, ErrNotMade, wrong)
	}
	for other := range states {
		planned := slices.ContainsFunc(g.Volumes, func(v layout.VolumePlan) bool { return v.Name == other })
		if other != v.Name && planned {
			continue
		}
		if dev, err := m.mapped(mapperName(g.Name, other), "LVM-"); err == nil {
			if err := m.release(ctx, dev); err != nil {
				return err
			}
		}
		if _, err := m.lvm(ctx, devices, "lvremove", "--yes", "--force", g.Name+"/"+other); err != nil {
			return fmt.Errorf("remove the half-made volume %s: %w", other, err)
		}
	}
	if _, err := m.lvm(ctx, devices, createVolumeArgv(g, v)...); err != nil {
		return err
	}
	if v.Kind == layout.VolumeThinPool {
		return nil
	}
	dev, err := m.mapped(mapperName(g.Name, v.Name), "LVM-")
	if err != nil {
		return fmt.Errorf("find volume %s/%s after it was made: %w", g.Name, v.Name, err)
	}
	return m.blank(ctx, dev)
}

func createVolumeArgv(g layout.GroupPlan, v layout.VolumePlan) []string {
	argv := []string{"lvcreate", "--yes", "--activate", "y", "--name", v.Name}
	size := strconv.FormatInt(v.SizeBytes, 10) + "b"
	switch v.Kind {
	case layout.VolumeThinPool:
		return append(argv, "--type", "thin-pool", "--poolmetadatasize", strconv.FormatInt(v.MetadataBytes, 10)+"b", "--size", size, g.Name)
	case layout.VolumeThin:
		return append(argv, "--type", "thin", "--virtualsize", size, "--thinpool", v.Pool, g.Name)
	case layout.VolumeStriped:
		argv = append(argv, "--type", "striped", "--stripes", strconv.Itoa(v.Stripes), "--stripesize", strconv.FormatInt(v.StripeBytes, 10)+"b")
	default:
		argv = append(argv, "--type", "linear")
	}
	return append(argv, "--wipesignatures", "y", "--zero", "y", "--size", size, g.Name)
}
