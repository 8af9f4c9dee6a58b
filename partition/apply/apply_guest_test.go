//go:build guest

package apply

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bloomery/lab/guest"
	"bloomery/partition/layout"
)

// plainPlan has every filesystem on one disk.
func plainPlan(d guest.Disk) *layout.Plan {
	p := &layout.Plan{
		Format: layout.PlanFormat, UEFI: true,
		Disks: []layout.DiskPlan{planDisk("a", 0x100, d, part{"EFI system", typeESP, 64}, part{"root", typeLinux, 96}, part{"", typeLinux, 320},
			part{"btrfs", typeLinux, 128}, part{"swap", "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f", 32})},
	}
	p.Files = []layout.FilesystemPlan{
		{Device: "part/a/1", Format: layout.FormatVFAT, UUID: "B100-E001", Label: "ESP", MountPoint: "/boot/efi"},
		{Device: "part/a/2", Format: layout.FormatExt4, UUID: uuid(0x201), Label: "my root", MountPoint: "/", Options: []string{"errors=remount-ro"}},
		{Device: "part/a/3", Format: layout.FormatXFS, UUID: uuid(0x202), Label: "srv", MountPoint: "/srv"},
		{Device: "part/a/4", Format: layout.FormatBtrfs, UUID: uuid(0x203), Label: "b", Options: []string{"compress=zstd"}, Subvolumes: []layout.SubvolumePlan{
			{Name: "@home", MountPoint: "/home", Options: []string{"noexec"}}, {Name: "@var/log", MountPoint: "/var/log"}, {Name: "spare"},
		}},
		{Device: "part/a/5", Format: layout.FormatSwap, UUID: uuid(0x204), Label: "swap"},
	}
	return p
}

func TestApplyFilesystems(t *testing.T) {
	for _, kind := range []guest.Kind{guest.NVMe, guest.Sector4K} {
		t.Run(string(kind), func(t *testing.T) {
			disk := guest.Take(t, kind, 1)[0]
			m := newMachine(t, disk)
			p := plainPlan(disk)
			apply(t, m, p)
			if err := m.WithRoot(t.Context(), p, func(root string) error {
				for _, at := range []string{"boot/efi", "srv", "home", "var/log"} {
					if err := os.WriteFile(filepath.Join(root, at, "file"), []byte(at), 0o600); err != nil {
						return err
					}
				}
				mounts, err := os.ReadFile("/proc/mounts")
				for _, want := range []string{root + " ext4 rw,noatime", root + "/boot/efi vfat", root + "/srv xfs", root + "/home btrfs", "compress=zstd", "subvol=/@home", "subvol=/@var/log"} {
					if !strings.Contains(string(mounts), want) {
						t.Errorf("no %q among the mounts:\n%s", want, mounts)
					}
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if mounts, err := os.ReadFile("/proc/mounts"); err != nil || strings.Contains(string(mounts), "bloomery-") {
				t.Errorf("mounts are left (%v):\n%s", err, mounts)
			}
			apply(t, m, p) // nothing may be lost
			if err := m.WithRoot(t.Context(), p, func(root string) error {
				for _, at := range []string{"boot/efi", "srv", "home", "var/log"} {
					if text, err := os.ReadFile(filepath.Join(root, at, "file")); err != nil || string(text) != at {
						t.Errorf("after applying again %s holds %q, %v", at, text, err)
					}
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// raidPlan puts an array with two filesystems' worth of LVM or one filesystem over the virtio disks.
func raidPlan(disks []guest.Disk, level, spares int, metadata string) *layout.Plan {
	p := &layout.Plan{Format: layout.PlanFormat}
	a := layout.ArrayPlan{Name: "data", UUID: uuid(0x300), Level: level, Metadata: metadata, SizeBytes: 60 * mib}
	if level != 1 {
		a.ChunkBytes = 64 << 10
	}
	for i, d := range disks {
		name := string(rune('a' + i))
		p.Disks = append(p.Disks, planDisk(name, 0x1000*(i+1), d, part{"raid", typeRAID, 96}))
		ref := layout.Ref("part/" + name + "/1")
		if i < len(disks)-spares {
			a.Members = append(a.Members, ref)
		} else {
			a.Spares = append(a.Spares, ref)
		}
	}
	p.Arrays = []layout.ArrayPlan{a}
	p.Files = []layout.FilesystemPlan{{Device: "md/data", Format: layout.FormatExt4, UUID: uuid(0x301), Label: "data", MountPoint: "/"}}
	return p
}

func TestApplyArrays(t *testing.T) {
	for _, c := range []struct {
		level, disks, spares int
		metadata             string
	}{{0, 2, 0, "1.2"}, {1, 3, 1, "1.2"}, {1, 2, 0, "1.0"}, {5, 4, 1, "1.2"}, {6, 4, 0, "1.2"}, {10, 4, 0, "1.2"}} {
		t.Run(fmt.Sprintf("level %d of %d, %s", c.level, c.disks, c.metadata), func(t *testing.T) {
			disks := guest.Take(t, guest.Virtio, c.disks)
			m := newMachine(t, disks...)
			p := raidPlan(disks, c.level, c.spares, c.metadata)
			apply(t, m, p)
			dev, err := m.Device(t.Context(), p, "md/data")
			if err != nil {
				t.Fatal(err)
			}
			detail := command(t, "mdadm", "--detail", dev)
			if !strings.Contains(detail, fmt.Sprintf("Raid Level : raid%d", c.level)) || !strings.Contains(detail, fmt.Sprintf("Total Devices : %d", c.disks)) {
				t.Errorf("mdadm sees\n%s", detail)
			}
			command(t, "mdadm", "--stop", dev)
			if err := m.Activate(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			apply(t, m, p)
		})
	}
}
