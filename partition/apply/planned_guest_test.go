//go:build guest

package apply

import (
	"slices"
	"testing"

	"bloomery/lab/guest"
	"bloomery/partition/layout"
)

// TestApplyPlannedLayouts applies what the planner makes of layouts: its sizes must be those that the tools really give, to the last extent.
func TestApplyPlannedLayouts(t *testing.T) {
	for _, c := range []struct {
		name, yaml string
		kind       guest.Kind
		disks      int
	}{
		{"LVM on RAID 1", `
format: bloomery.layout/v1
disks:
  - name: d
    select: {pick: smallest, transport: nvme, count: 2}
    partitions:
      - {label: efi, type: esp, size: 64MiB}
      - {label: system, size: rest}
raids:
  - {name: efi, level: 1, members: [part/d/efi]}
  - {name: system, level: 1, members: [part/d/system]}
volume_groups:
  - name: vg0
    devices: [md/system]
    volumes:
      - {name: root, size: 25%}
      - {name: pool, kind: thin-pool, size: 25%}
      - {name: thin, kind: thin, pool: pool, size: 1GiB}
      - {name: var, size: rest}
filesystems:
  - {device: md/efi, format: vfat, label: EFI, mount_point: /boot/efi}
  - {device: lv/vg0/root, format: ext4, mount_point: /}
  - {device: lv/vg0/thin, format: ext4, mount_point: /srv}
  - {device: lv/vg0/var, format: ext4, mount_point: /var}
`, guest.NVMe, 2},
		{"btrfs on LUKS on RAID 10", `
format: bloomery.layout/v1
disks:
  - name: d
    select: {pick: smallest, count: 4}
    partitions:
      - {label: efi, type: esp, size: 64MiB}
      - {label: boot, size: 64MiB}
      - {label: root, size: rest}
raids:
  - {name: efi, level: 1, members: [part/d/efi]}
  - {name: boot, level: 1, members: [part/d/boot]}
  - {name: root, level: 10, members: [part/d/root], chunk: 256KiB}
luks:
  - {name: data, device: md/root, unlock: [key-file]}
filesystems:
  - {device: md/efi, format: vfat, mount_point: /boot/efi}
  - {device: md/boot, format: ext4, mount_point: /boot}
  - device: luks/data
    format: btrfs
    subvolumes:
      - {name: "@", mount_point: /}
      - {name: "@home", mount_point: /home}
`, guest.Virtio, 4},
		{"4096-byte sectors", `
format: bloomery.layout/v1
disks:
  - name: d
    select: {pick: smallest}
    partitions:
      - {label: efi, type: esp, size: 300MiB}
      - {label: swap, size: 64MiB}
      - {label: root, size: rest}
filesystems:
  - {device: part/d/efi, format: vfat, mount_point: /boot/efi}
  - {device: part/d/swap, format: swap}
  - {device: part/d/root, format: xfs, label: root, mount_point: /}
`, guest.Sector4K, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			disks := guest.Take(t, c.kind, c.disks)
			var inventory []layout.Disk
			for _, d := range disks {
				transport := "virtio"
				if c.kind != guest.Virtio {
					transport = "nvme"
				}
				inventory = append(inventory, layout.Disk{
					Name: d.Name, Serial: d.Serial, WWN: d.WWN, SizeBytes: d.SizeBytes, LogicalSector: d.LogicalSector, PhysicalSector: d.LogicalSector, Transport: transport,
				})
			}
			l, err := layout.Parse([]byte(c.yaml))
			if err != nil {
				t.Fatal(err)
			}
			p, err := layout.MakePlan(l, inventory, layout.Target{UEFI: true, Seed: "job"})
			if err != nil {
				t.Fatal(err)
			}
			data, err := p.Encode()
			if err != nil {
				t.Fatal(err)
			}
			m := newMachine(t, disks...)
			apply(t, m, p)
			// As the agent after a restart: of the plan that was stored.
			for _, d := range disks {
				if err := m.release(t.Context(), d.Path); err != nil {
					t.Fatal(err)
				}
			}
			stored, err := layout.DecodePlan(data)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.WithRoot(t.Context(), stored, func(string) error { return nil }); err != nil {
				t.Fatal(err)
			}
			sound(t, m, stored)
			if mounted := mountings(p); !slices.ContainsFunc(mounted, func(mt mounting) bool { return mt.point == "/" }) {
				t.Errorf("no root among %v", mounted)
			}
		})
	}
}
