package layout

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew)\n%s", file, diff)
	}
}

// everything uses each part of a layout once.
const everything = `
format: bloomery.layout/v1
disks:
  - name: fast
    select: {pick: any, transport: nvme, count: 2}
    partitions:
      - {label: efi, type: esp, size: 512MiB, attributes: [required]}
      - {label: boot, size: 1GiB}
      - {label: system, size: 200GiB, alignment: 4MiB}
      - {label: cache, size: 25%}
  - name: bulk
    select: {pick: largest, rotational: true, min_size: 1TB, model: "ST*", count: 4}
  - name: odd
    select: {serial: ODD-1}
    partitions:
      - {number: 7, label: swap (x), size: 2GiB, type: 0657FD6D-A4AB-43C4-84E5-0933C84B4F4F}
      - {label: scratch, size: rest}
raids:
  - {name: efi, level: 1, members: [part/fast/efi]}
  - {name: boot, level: 1, members: [part/fast/boot]}
  - {name: system, level: 1, members: [part/fast/system]}
  - {name: bulk, level: 5, members: [disk/bulk-0, disk/bulk-1, disk/bulk-2], spares: [disk/bulk-3], chunk: 1MiB}
luks:
  - {name: cryptsystem, device: md/system, unlock: [tpm2, passphrase], secret: root-passphrase}
volume_groups:
  - name: vg0
    devices: [luks/cryptsystem]
    volumes:
      - {name: root, size: 40GiB}
      - {name: pool, kind: thin-pool, size: rest}
      - {name: home, kind: thin, size: 400GiB, pool: pool}
  - name: cache
    devices: [part/fast-0/cache, part/fast-1/cache]
    extent_size: 16MiB
    volumes:
      - {name: fast, kind: striped, size: 50%, stripe_size: 128KiB}
filesystems:
  - {device: md/efi, format: vfat, mount_point: /boot/efi}
  - {device: md/boot, format: ext4, mount_point: /boot}
  - {device: lv/vg0/root, format: ext4, label: root, mount_point: /, options: [errors=remount-ro]}
  - {device: lv/vg0/home, format: xfs, mount_point: /home}
  - {device: lv/cache/fast, format: xfs, mount_point: /var/cache, make_options: ["-i", "size=1024"]}
  - {device: part/odd/7, format: swap}
  - device: md/bulk
    format: btrfs
    subvolumes:
      - {name: data, mount_point: /srv/data, options: [noatime]}
      - {name: data/old}
`

func storageServer() []Disk {
	disks := twoNVMe()
	for _, name := range []string{"sda", "sdb", "sdc", "sdd"} {
		disks = append(disks, disk(name, 4000787030016, func(d *Disk) {
			d.Transport, d.Rotational, d.Model, d.PhysicalSector = "sas", true, "ST4000NM0023", 4096
		}))
	}
	return append(disks, disk("sde", 64*gib, func(d *Disk) { d.Transport, d.Serial, d.Removable = "usb", "ODD-1", true }))
}

func TestGoldenPlans(t *testing.T) {
	for name, p := range map[string]*Plan{
		"raid1":      plan(t, raid1, twoNVMe()),
		"everything": plan(t, everything, storageServer()),
	} {
		t.Run(name, func(t *testing.T) {
			golden(t, name+".txt", []byte(p.Text()+"\n"+p.Drawing()))
			golden(t, name+".svg", p.SVG())
			data, err := p.Encode()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := DecodePlan(data); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDrawingsFit(t *testing.T) {
	var text strings.Builder
	text.WriteString("format: bloomery.layout/v1\ndisks:\n  - name: d\n    select: {pick: any}\n    partitions:\n      - {label: efi, type: esp, size: 100MiB}\n      - {label: root, size: 1GiB}\n")
	for range 126 {
		text.WriteString("      - {size: 10MiB}\n")
	}
	text.WriteString("filesystems:\n  - {device: part/d/efi, format: vfat, mount_point: /boot/efi}\n  - {device: part/d/root, format: ext4, mount_point: /}\n")
	for _, p := range []*Plan{plan(t, text.String(), twoNVMe()), plan(t, everything, storageServer())} {
		for _, line := range strings.Split(p.Drawing(), "\n") {
			if n := utf8.RuneCountInString(line); n > drawingWidth {
				t.Errorf("a line of %d columns, at most %d: %s", n, drawingWidth, line)
			}
		}
		decoder := xml.NewDecoder(bytes.NewReader(p.SVG()))
		for {
			if _, err := decoder.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("the SVG is no XML: %v", err)
			}
		}
	}
}
