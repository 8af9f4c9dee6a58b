//go:build guest

package layout_test

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"bloomery/internal/run"
	"bloomery/lab/guest"
	"bloomery/partition"
	"bloomery/partition/apply"
	"bloomery/partition/layout"
)

// TestSizesHold makes arrays, encrypted volumes and groups with the real tools and compares what they offer with the plan, whose sizes are
// lower bounds: one that is too high would let a volume not fit after the disks were erased.
func TestSizesHold(t *testing.T) {
	const head = `
format: bloomery.layout/v1
disks:
  - name: d
    select: {pick: any, count: 4}
    partitions:
      - {label: efi, type: esp, size: 40MiB}
      - {label: a, size: 150MiB}
      - {label: b, size: 170MiB}
      - {label: c, size: rest}
`
	for name, text := range map[string]string{
		"parity": head + `
raids:
  - {name: efi, level: 1, members: [part/d/efi]}
  - {name: a, level: 5, members: [part/d/a]}
  - {name: b, level: 10, members: [part/d/b], chunk: 64KiB}
luks:
  - {name: crypt, device: md/b, unlock: [key-file]}
volume_groups:
  - {name: sys, devices: [md/a], volumes: [{name: root, size: rest}]}
  - {name: pooled, devices: [luks/crypt], volumes: [{name: pool, kind: thin-pool, size: rest}, {name: thin, kind: thin, pool: pool, size: 1GiB}]}
  - {name: fast, devices: [part/d/c], extent_size: 1MiB, volumes: [{name: one, size: 20MiB}, {name: two, kind: striped, stripes: 2, size: 50MiB}, {name: rest, kind: striped, size: rest}]}
filesystems:
  - {device: md/efi, format: vfat, mount_point: /boot/efi}
  - {device: lv/sys/root, format: ext4, mount_point: /}
`,
		"mirrors": head + `
raids:
  - {name: efi, level: 1, members: [part/d/efi]}
  - {name: a, level: 6, members: [part/d/a], chunk: 1MiB}
  - {name: b, level: 0, members: [part/d/b]}
  - {name: c, level: 1, members: [part/d-0/c, part/d-1/c, part/d-2/c], spares: [part/d-3/c]}
volume_groups:
  - {name: sys, devices: [md/b], volumes: [{name: root, size: 50%}, {name: pool, kind: thin-pool, size: 60MiB}, {name: more, size: rest}]}
  - {name: fast, devices: [md/a, md/c], volumes: [{name: wide, kind: striped, size: rest}]}
filesystems:
  - {device: md/efi, format: vfat, mount_point: /boot/efi}
  - {device: lv/sys/root, format: ext4, mount_point: /}
`,
	} {
		t.Run(name, func(t *testing.T) {
			disks := guest.Take(t, guest.Virtio, 4)
			var have []layout.Disk
			for _, d := range disks {
				have = append(have, layout.Disk{Name: strings.TrimPrefix(d.Path, "/dev/"), Serial: d.Serial, WWN: d.WWN, Transport: "virtio", SizeBytes: d.SizeBytes, LogicalSector: d.LogicalSector, PhysicalSector: d.LogicalSector})
			}
			l, err := layout.Parse([]byte(text))
			if err != nil {
				t.Fatal(err)
			}
			p, err := layout.MakePlan(l, have, layout.Target{UEFI: true, Seed: name})
			if err != nil {
				t.Fatal(err)
			}
			m := machine(t, disks)
			if err := m.Apply(t.Context(), p); err != nil {
				t.Fatal(err)
			}
			for _, a := range p.Arrays {
				holds(t, m, p, layout.Ref("md/"+a.Name), a.SizeBytes)
			}
			for _, v := range p.LUKS {
				holds(t, m, p, layout.Ref("luks/"+v.Name), v.SizeBytes)
			}
			for _, g := range p.Groups {
				out, err := exec.CommandContext(t.Context(), "lvm", "vgs", "--noheadings", "--nosuffix", "--units", "b", "-o", "vg_size", g.Name).Output()
				size, parseErr := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
				if err != nil || parseErr != nil || size < g.SizeBytes {
					t.Errorf("group %s: %q (%v), the plan counts on %d", g.Name, out, err, g.SizeBytes)
				}
				t.Logf("vg/%s: planned %d, has %d, %d more", g.Name, g.SizeBytes, size, size-g.SizeBytes)
			}
			report, err := m.Verify(t.Context(), p)
			if err != nil {
				t.Fatal(err)
			}
			if err := report.Err(); err != nil {
				t.Error(err)
			}
		})
	}
}

func holds(t *testing.T, m *apply.Machine, p *layout.Plan, ref layout.Ref, planned int64) {
	t.Helper()
	path, err := m.Device(t.Context(), p, ref)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil || size < planned {
		t.Errorf("%s has %d bytes (%v), the plan counts on %d", ref, size, err, planned)
	}
	t.Logf("%s: planned %d, has %d, %d more", ref, planned, size, size-planned)
}

func machine(t *testing.T, disks []guest.Disk) *apply.Machine {
	m := &apply.Machine{
		Disks: partition.Disks{Runner: run.Exec{}},
		Find: func(_ context.Context, serial, _ string) (string, error) {
			d, err := guest.Find(serial)
			return d.Path, err
		},
		Secrets: map[string][]byte{"luks/crypt": []byte(strings.Repeat("k", 64))},
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, d := range disks {
			if err := m.Stop(ctx, d.Path); err != nil {
				t.Errorf("stop %s: %v", d.Serial, err)
			}
		}
	})
	return m
}
