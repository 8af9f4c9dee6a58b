//go:build guest

package apply

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bloomery/lab/guest"
	"bloomery/partition"
	"bloomery/partition/layout"
)

// TestVerifyFindsDifferences changes the plan behind the disks' back, which is the same as disks that were changed behind the plan's.
func TestVerifyFindsDifferences(t *testing.T) {
	disks := guest.Take(t, guest.Virtio, 2)
	m := newMachine(t, disks...)
	p := deepPlan(disks)
	btrfs := layout.FilesystemPlan{Device: "lv/vg-0/root", Format: layout.FormatBtrfs, UUID: uuid(0x13), Label: "root", Subvolumes: []layout.SubvolumePlan{{Name: "@", MountPoint: "/"}}}
	p.Groups[0].Volumes[0].SizeBytes = 128 * mib
	p.Files[1] = btrfs
	apply(t, m, p)
	sound(t, m, p)
	// A plan that says something else of everything.
	other := deepPlan(disks)
	a := &other.Disks[0]
	a.GUID = uuid(0x9000)
	a.Partitions[0].Label, a.Partitions[0].Type, a.Partitions[0].Attributes = "other", typeLinux, 4
	a.Partitions[1].GUID, a.Partitions[1].StartBytes = uuid(0x9001), a.Partitions[1].StartBytes+mib
	other.Disks[1].Partitions = append(other.Disks[1].Partitions, layout.PartitionPlan{Number: 7, Type: typeLinux, GUID: uuid(0x9002), StartBytes: 500 * mib, SizeBytes: mib})
	other.Arrays[0].UUID = uuid(0x9003)
	other.Arrays[1].Level, other.Arrays[1].Metadata, other.Arrays[1].SizeBytes = 10, "1.0", 500*mib
	other.Arrays[1].Members[0], other.Arrays[1].Members[1] = other.Arrays[1].Members[1], other.Arrays[1].Members[0]
	other.LUKS[0].Label, other.LUKS[0].SectorSize, other.LUKS[0].SizeBytes = "other", 512, 64*mib
	g := &other.Groups[0]
	g.ExtentBytes = 8 * mib
	g.Volumes[0].Kind, g.Volumes[0].Stripes, g.Volumes[0].StripeBytes = layout.VolumeStriped, 2, 64<<10
	g.Volumes[3].Pool, g.Volumes[3].SizeBytes = "other", 64*mib
	g.Volumes = append(g.Volumes, layout.VolumePlan{Name: "more", Kind: layout.VolumeLinear, SizeBytes: 4 * mib})
	btrfs.Subvolumes = []layout.SubvolumePlan{{Name: "@"}, {Name: "@home"}}
	other.Files = []layout.FilesystemPlan{btrfs, {Device: "luks/data", Format: layout.FormatXFS, UUID: uuid(0x9004), Label: "other"}}
	r, err := m.Verify(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, o := range r.Objects {
		for _, d := range o.Differences {
			found[string(o.Ref)+" "+d.Field] = true
		}
	}
	for _, want := range []string{
		"disk/a guid", "disk/a partition 1 label", "disk/a partition 1 type", "disk/a partition 1 attributes", "disk/a partition 2 guid", "disk/a partition 2 first sector",
		"disk/a partition 2 last sector", "disk/b partitions", "disk/b partition 7 presence", "md/esp presence", "md/data level", "md/data metadata", "md/data size",
		"luks/data label", "luks/data sector size", "luks/data size", "vg/vg-0 extent size", "lv/vg-0/root kind", "lv/vg-0/root size", "lv/vg-0/root stripes", "lv/vg-0/root stripe size",
		"lv/vg-0/thin-1 pool", "lv/vg-0/thin-1 size", "lv/vg-0/more presence", "lv/vg-0/root subvolume @home", "luks/data format", "luks/data uuid",
	} {
		if !found[want] {
			t.Errorf("%q was not found", want)
		}
		delete(found, want)
	}
	for left := range found {
		if !strings.HasPrefix(left, "md/data role of ") && left != "vg/vg-0 physical volumes" {
			t.Errorf("%q was found too", left)
		}
	}

	// A table with a damaged backup.
	f, err := os.OpenFile(disks[1].Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(make([]byte, 512), disks[1].SizeBytes-512); err != nil {
		t.Fatal(err)
	}
	if err := m.Disks.Flush(disks[1].Path); err != nil {
		t.Fatal(err)
	}
	if d, err := m.verifyTable(t.Context(), p, p.Disks[1]); err != nil || len(d) != 1 || d[0].Field != "soundness" {
		t.Errorf("a damaged backup table: %v, %v", d, err)
	}
}

// TestStopRefusesBootMedium gives the agent's kernel the variable that a start from a disk would have left.
func TestStopRefusesBootMedium(t *testing.T) {
	disk := guest.Take(t, guest.NVMe, 1)[0]
	m := newMachine(t, disk)
	if err := m.Disks.WriteTable(t.Context(), disk.Path, plannedTable(planDisk("a", 0x1000, disk, part{"stick", typeESP, 64}))); err != nil {
		t.Fatal(err)
	}
	sysfs := t.TempDir()
	for _, name := range []string{"class", "dev", "fs"} {
		if err := os.Symlink(filepath.Join("/sys", name), filepath.Join(sysfs, name)); err != nil {
			t.Fatal(err)
		}
	}
	variable := filepath.Join(sysfs, "firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f")
	if err := os.MkdirAll(filepath.Dir(variable), 0o755); err != nil {
		t.Fatal(err)
	}
	refused := func(guid string) bool {
		data := []byte{6, 0, 0, 0}
		for _, c := range []byte(strings.ToUpper(guid) + "\x00") {
			data = append(data, c, 0)
		}
		if err := os.WriteFile(variable, data, 0o600); err != nil {
			t.Fatal(err)
		}
		started := *m
		started.Disks.Sysfs = sysfs
		err := started.Stop(t.Context(), disk.Path)
		if err != nil && !strings.Contains(err.Error(), partition.ErrBootMedium.Error()) {
			t.Error(err)
		}
		return err != nil
	}
	if !refused(uuid(0x1001)) {
		t.Error("the disk that this system was started from was stopped")
	}
	if refused(uuid(0x2001)) {
		t.Error("another disk was refused")
	}
}
