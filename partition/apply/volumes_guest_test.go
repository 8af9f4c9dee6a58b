//go:build guest

package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bloomery/internal/run"
	"bloomery/lab/guest"
	"bloomery/partition"
	"bloomery/partition/layout"
)

// deepPlan is two disks of RAID 1 with LVM on it, a LUKS volume on one of the logical volumes, and an array of EFI system partitions.
func deepPlan(disks []guest.Disk) *layout.Plan {
	p := &layout.Plan{Format: layout.PlanFormat, UEFI: true}
	esp := layout.ArrayPlan{Name: "esp", UUID: uuid(0x10), Level: 1, Metadata: "1.0", SizeBytes: 30 * mib}
	data := layout.ArrayPlan{Name: "data", UUID: uuid(0x11), Level: 1, Metadata: "1.2", SizeBytes: 380 * mib}
	for i, d := range disks {
		name := string(rune('a' + i))
		p.Disks = append(p.Disks, planDisk(name, 0x1000*(i+1), d, part{"ESP", typeESP, 32}, part{"raid", typeRAID, 400}))
		esp.Members = append(esp.Members, layout.Ref("part/"+name+"/1"))
		data.Members = append(data.Members, layout.Ref("part/"+name+"/2"))
	}
	p.Arrays = []layout.ArrayPlan{esp, data}
	p.Groups = []layout.GroupPlan{{Name: "vg-0", Devices: []layout.Ref{"md/data"}, ExtentBytes: 4 * mib, SizeBytes: 300 * mib, Volumes: []layout.VolumePlan{
		{Name: "root", Kind: layout.VolumeLinear, SizeBytes: 64 * mib},
		{Name: "crypt", Kind: layout.VolumeLinear, SizeBytes: 64 * mib},
		{Name: "pool", Kind: layout.VolumeThinPool, SizeBytes: 64 * mib, MetadataBytes: 4 * mib},
		{Name: "thin-1", Kind: layout.VolumeThin, SizeBytes: 128 * mib, Pool: "pool"},
	}}}
	p.LUKS = []layout.LUKSPlan{{
		Name: "data", UUID: uuid(0x12), Device: "lv/vg-0/crypt", Label: "crypt", Unlock: []string{layout.UnlockKeyFile}, SectorSize: 4096, SizeBytes: 48 * mib,
	}}
	p.Files = []layout.FilesystemPlan{
		{Device: "md/esp", Format: layout.FormatVFAT, UUID: "B100-E002", Label: "ESP", MountPoint: "/boot/efi"},
		{Device: "lv/vg-0/root", Format: layout.FormatExt4, UUID: uuid(0x13), Label: "root", MountPoint: "/"},
		{Device: "luks/data", Format: layout.FormatExt4, UUID: uuid(0x14), Label: "data", MountPoint: "/data"},
		{Device: "lv/vg-0/thin-1", Format: layout.FormatExt4, UUID: uuid(0x15), MountPoint: "/thin"},
	}
	return p
}

// sound fails the test unless all of a plan is there.
func sound(t *testing.T, m *Machine, p *layout.Plan) {
	t.Helper()
	r, err := m.Verify(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	if len(r.Objects) == 0 {
		t.Error("nothing was verified")
	}
}

func TestApplyDeepStack(t *testing.T) {
	disks := guest.Take(t, guest.Virtio, 2)
	m := newMachine(t, disks...)
	p := deepPlan(disks)
	apply(t, m, p)
	sound(t, m, p)
	if err := m.WithRoot(t.Context(), p, func(root string) error {
		return os.WriteFile(filepath.Join(root, "data/kept"), []byte("kept"), 0o600)
	}); err != nil {
		t.Fatal(err)
	}

	// What a restart of the machine does, by Stop, which leaves RAID superblocks only where nothing is to be stopped.
	for _, d := range disks {
		if err := m.release(t.Context(), d.Path); err != nil {
			t.Fatal(err)
		}
	}
	if found, err := filepath.Glob("/sys/block/dm-*"); err != nil || len(found) != 0 {
		t.Errorf("still there: %v, %v", found, err)
	}
	if r, err := m.Verify(t.Context(), p); err != nil || r.Err() == nil {
		t.Errorf("what is not active was verified: %v", err)
	}
	if err := m.WithRoot(t.Context(), p, func(root string) error {
		text, err := os.ReadFile(filepath.Join(root, "data/kept"))
		if string(text) != "kept" {
			t.Errorf("after a restart the file holds %q", text)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	sound(t, m, p)

	// Another plan's identifiers, the same names: everything goes, and is made anew.
	other := deepPlan(disks)
	for i := range other.Disks {
		other.Disks[i].GUID = uuid(0x9000 + i)
	}
	other.Arrays[1].UUID, other.LUKS[0].UUID = uuid(0x9010), uuid(0x9011)
	apply(t, m, other)
	sound(t, m, other)
	if err := m.WithRoot(t.Context(), other, func(root string) error {
		if _, err := os.Stat(filepath.Join(root, "data/kept")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("a file of the earlier plan is there: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestApplyStripedOnTwoDisks(t *testing.T) {
	disks := guest.Take(t, guest.NVMe, 2)
	m := newMachine(t, disks...)
	// Without a table: the whole disks are physical volumes.
	p := &layout.Plan{Format: layout.PlanFormat, Disks: []layout.DiskPlan{planDisk("a", 0x1000, disks[0]), planDisk("b", 0x2000, disks[1])}}
	p.Groups = []layout.GroupPlan{{Name: "vg", Devices: []layout.Ref{"disk/a", "disk/b"}, ExtentBytes: mib, SizeBytes: 1024 * mib, Volumes: []layout.VolumePlan{
		{Name: "s", Kind: layout.VolumeStriped, SizeBytes: 64 * mib, Stripes: 2, StripeBytes: 64 << 10},
	}}}
	p.LUKS = []layout.LUKSPlan{{Name: "data", UUID: uuid(0x12), Device: "lv/vg/s", Unlock: []string{layout.UnlockTPM2, layout.UnlockPassphrase}, Secret: "phrase", SectorSize: 512, SizeBytes: 40 * mib}}
	p.Files = []layout.FilesystemPlan{{Device: "luks/data", Format: layout.FormatSwap, UUID: uuid(0x15)}}
	apply(t, m, p)
	sound(t, m, p)
	apply(t, m, p)
	sound(t, m, p)
	for name, secret := range m.Secrets {
		argv := []string{"cryptsetup", "open", "--test-passphrase", "--key-file", "-", "/dev/vg/s"}
		if _, err := m.tool(t.Context(), argv, run.Stdin(bytes.NewReader(secret))); err != nil {
			t.Errorf("%s does not open the volume: %v", name, err)
		}
	}
	m.Secrets = map[string][]byte{"luks/data": m.Secrets["luks/data"]}
	if err := m.Apply(t.Context(), p); err == nil || !strings.Contains(err.Error(), `"phrase"`) {
		t.Errorf("without a passphrase: %v", err)
	}
}

// cut is a runner that fails once after so many programs, as if the power had gone.
type cut struct {
	run.Runner
	after int
}

var errCut = errors.New("power cut")

func (c *cut) Run(ctx context.Context, argv []string, opts ...run.Option) (run.Result, error) {
	if c.after == 0 {
		return run.Result{ExitCode: -1}, errCut
	}
	c.after--
	return c.Runner.Run(ctx, argv, opts...)
}

// TestApplyAfterInterruption stops between any two actions, forgets what is active as a restart does, and goes on.
func TestApplyAfterInterruption(t *testing.T) {
	disks := guest.Take(t, guest.Virtio, 2)
	m := newMachine(t, disks...)
	p := deepPlan(disks)
	p.Arrays, p.Groups[0].Volumes, p.Files = p.Arrays[1:], p.Groups[0].Volumes[1:2], p.Files[2:3]
	actions := p.Actions()
	for i := 1; i < len(actions); i++ {
		ctx, stop := context.WithCancel(t.Context())
		m.Progress = func(_ layout.Action, done, _ int) {
			if done == i {
				stop()
			}
		}
		if err := m.Apply(ctx, p); !errors.Is(err, context.Canceled) {
			t.Fatalf("before %s: %v", actions[i].ID, err)
		}
		for _, d := range disks {
			if err := m.release(t.Context(), d.Path); err != nil {
				t.Fatalf("before %s: %v", actions[i].ID, err)
			}
		}
	}
	m.Progress = nil
	apply(t, m, p)
	sound(t, m, p)
}

// TestApplyAfterFailedTool lets every program of a run fail in turn, which includes those in the middle of an action, and goes on.
func TestApplyAfterFailedTool(t *testing.T) {
	disk := guest.Take(t, guest.NVMe, 1)[0]
	m := newMachine(t, disk)
	p := &layout.Plan{Format: layout.PlanFormat, Disks: []layout.DiskPlan{planDisk("a", 0x1000, disk, part{"lvm", typeLVM, 96})}}
	p.Groups = []layout.GroupPlan{{Name: "vg", Devices: []layout.Ref{"part/a/1"}, ExtentBytes: 4 * mib, SizeBytes: 64 * mib, Volumes: []layout.VolumePlan{
		{Name: "pool", Kind: layout.VolumeThinPool, SizeBytes: 32 * mib, MetadataBytes: 4 * mib}, {Name: "thin", Kind: layout.VolumeThin, SizeBytes: 64 * mib, Pool: "pool"},
	}}}
	p.Files = []layout.FilesystemPlan{{Device: "lv/vg/thin", Format: layout.FormatExt4, UUID: uuid(0x15), MountPoint: "/"}}
	real := m.Disks.Runner
	for n := 0; ; n++ {
		m.Disks.Runner = &cut{Runner: real, after: n}
		err := m.Apply(t.Context(), p)
		m.Disks.Runner = real
		if err == nil {
			if n < 6 {
				t.Errorf("after %d programs everything was done", n)
			}
			break
		}
		if !errors.Is(err, errCut) {
			t.Fatalf("after %d programs: %v", n, err)
		}
	}
	sound(t, m, p)
}

// TestStopForeign takes disks out of an Intel RAID, and an old array whose superblock is at the end of a partition.
func TestStopForeign(t *testing.T) {
	disks := guest.Take(t, guest.Virtio, 3)
	m := newMachine(t, disks...)
	env := os.Environ()
	imsm := func(argv ...string) {
		cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
		cmd.Env = append(env, "IMSM_NO_PLATFORM=1", "IMSM_DEVNAME_AS_SERIAL=1", "MDADM_NO_UDEV=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", argv, err, out)
		}
	}
	imsm("mdadm", "--create", "/dev/md/imsm", "--config=none", "--run", "--metadata=imsm", "--raid-devices=2", disks[0].Path, disks[1].Path)
	imsm("mdadm", "--create", "/dev/md/volume", "--config=none", "--run", "--level=1", "--size=64M", "--raid-devices=2", disks[0].Path, disks[1].Path)
	if err := m.Disks.WriteTable(t.Context(), disks[2].Path, plannedTable(planDisk("c", 0x3000, disks[2], part{"old", typeRAID, 64}))); err != nil {
		t.Fatal(err)
	}
	command(t, "mdadm", "--create", "/dev/md/old", "--config=none", "--run", "--metadata=0.90", "--level=1", "--force", "--raid-devices=1", partition.PartitionPath(disks[2].Path, 1))
	command(t, "mkfs.ext4", "-q", "/dev/md/old")
	command(t, "mount", "/dev/md/old", "/mnt")
	for i, d := range disks {
		if err := m.Stop(t.Context(), d.Path); err != nil {
			t.Fatal(err)
		}
		on := d.Path
		if i == 2 {
			on = partition.PartitionPath(on, 1)
		}
		if seen, err := m.probe(t.Context(), on); err != nil || strings.Contains(seen.kind, "raid") {
			t.Errorf("%s still is %+v, %v", on, seen, err)
		}
	}
	if found, err := filepath.Glob("/sys/block/md*"); err != nil || len(found) != 0 {
		t.Errorf("arrays are left: %v, %v", found, err)
	}
}

// TestApplyBindsToTheDisk shows that a plan never falls onto another disk, of the same model or not.
func TestApplyBindsToTheDisk(t *testing.T) {
	disks := guest.Take(t, guest.NVMe, 2)
	m := newMachine(t, disks...)
	p := &layout.Plan{Format: layout.PlanFormat, Disks: []layout.DiskPlan{planDisk("a", 0x1000, disks[1], part{"root", typeLinux, 64})}}
	p.Files = []layout.FilesystemPlan{{Device: "part/a/1", Format: layout.FormatExt4, UUID: uuid(0x15), MountPoint: "/"}}
	apply(t, m, p)
	sound(t, m, p)
	if _, err := partition.ReadTable(disks[0].Path); !errors.Is(err, partition.ErrTable) {
		t.Errorf("the other disk of the same model got a table: %v", err)
	}
	gone := *p
	gone.Disks = []layout.DiskPlan{p.Disks[0], planDisk("b", 0x2000, disks[0], part{"more", typeLinux, 64})}
	gone.Disks[0].GUID, gone.Disks[1].Serial = uuid(0x9000), "GONE"
	if err := m.Apply(t.Context(), &gone); err == nil || !strings.Contains(err.Error(), "GONE") {
		t.Errorf("a disk that is gone: %v", err)
	}
	smaller := *p
	smaller.Disks = []layout.DiskPlan{p.Disks[0]}
	smaller.Disks[0].SizeBytes += 512
	if err := m.Apply(t.Context(), &smaller); err == nil || !strings.Contains(err.Error(), fmt.Sprint(disks[1].SizeBytes)) {
		t.Errorf("a disk of another size: %v", err)
	}
	sound(t, m, p) // nothing was touched
}
