package layout

import (
	"fmt"
	"strings"
	"testing"
)

// single is changed by the cases below.
const single = `
format: bloomery.layout/v1
disks:
  - name: d
    select: {pick: any}
    partitions:
      - {label: efi, type: esp, size: 512MiB}
      - {label: root, size: 4GiB}
      - {label: data, size: rest}
filesystems:
  - {device: part/d/efi, format: vfat, mount_point: /boot/efi}
  - {device: part/d/root, format: ext4, mount_point: /}
`

func TestParseRefuses(t *testing.T) {
	for _, test := range []struct{ name, old, new, path, reason, says string }{
		{"format", "bloomery.layout/v1", "bloomery.layout/v2", "format", ReasonInvalid, `want "bloomery.layout/v1"`},
		{"no disks", "disks:", "volumes:", "volumes", ReasonUnknownField, "there are format, disks"},
		{"unknown field", "label: efi,", "label: efi, colour: red,", "disks[0].partitions[0].colour", ReasonUnknownField, "number, label, type"},
		{"field twice", "label: efi,", "label: efi, label: efi,", "disks[0].partitions[0].label", ReasonDuplicate, "twice"},
		{"null", "size: rest", "size: null", "disks[0].partitions[2].size", ReasonInvalid, "has no value"},
		{"no size", ", size: rest", "", "disks[0].partitions[2].size", ReasonMissing, "give a size"},
		{"size", "4GiB", "4GiBs", "disks[0].partitions[1].size", ReasonInvalid, `such as "512MiB"`},
		{"size zero", "4GiB", "0", "disks[0].partitions[1].size", ReasonInvalid, "out of range"},
		{"size huge", "4GiB", "2000TiB", "disks[0].partitions[1].size", ReasonInvalid, "out of range"},
		{"percent", "4GiB", "101%", "disks[0].partitions[1].size", ReasonInvalid, "no size"},
		{"two rests", "4GiB", "rest", "disks[0].partitions[2].size", ReasonConflict, "partitions[1] is already"},
		{"alias", "{pick: any}", "&a {pick: any}", "disks[0].select", ReasonUnsupported, "anchors"},
		{"type", "type: esp", "type: efi", "disks[0].partitions[0].type", ReasonInvalid, "esp, bios-boot"},
		{"attribute", "type: esp", "attributes: [shiny], type: esp", "disks[0].partitions[0].attributes[0]", ReasonInvalid, "required"},
		{"number", "{label: efi,", "{label: efi, number: 129,", "disks[0].partitions[0].number", ReasonInvalid, "1 to 128"},
		{"label", "label: data", "label: 'a;reboot'", "disks[0].partitions[2].label", ReasonInvalid, "use A-Z"},
		{"label like a number", "label: data", "label: '2'", "disks[0].partitions[2].label", ReasonInvalid, "digits only"},
		{"long label", "label: data", "label: " + strings.Repeat("x", 37), "disks[0].partitions[2].label", ReasonInvalid, "at most 36"},
		{"label twice", "label: data", "label: root", "disks[0].partitions[2].label", ReasonDuplicate, "already"},
		{"alignment", "size: rest", "size: rest, alignment: 3MiB", "disks[0].partitions[2].alignment", ReasonInvalid, "power of two"},
		{"no way to choose", "{pick: any}", "{transport: nvme}", "disks[0].select", ReasonInvalid, "exactly one of"},
		{"two ways", "{pick: any}", "{pick: any, serial: X}", "disks[0].select", ReasonInvalid, "2 ways"},
		{"device name", "{pick: any}", "{device: /dev/../mem}", "disks[0].select.device", ReasonInvalid, "/dev/nvme0n1"},
		{"unknown device", "part/d/root", "part/d/rot", "filesystems[1].device", ReasonNotFound, "it has 1 (efi), 2 (root), 3 (data)"},
		{"unknown disk", "part/d/root", "part/e/root", "filesystems[1].device", ReasonNotFound, "there are d"},
		{"no device", "part/d/root", "/dev/sda2", "filesystems[1].device", ReasonNotFound, "write part/DISK/LABEL"},
		{"used twice", "part/d/root", "part/d/efi", "filesystems[1].device", ReasonConflict, "used by filesystems[0].device already"},
		{"whole disk", "part/d/root", "disk/d", "filesystems[1].device", ReasonConflict, "has partitions"},
		{"format of a filesystem", "format: ext4", "format: ntfs", "filesystems[1].format", ReasonInvalid, "ext4, xfs"},
		{"esp is not vfat", "format: vfat", "format: ext4", "filesystems[0].device", ReasonCannotBoot, "can only be vfat"},
		{"no root", "mount_point: /}", "mount_point: /srv}", "filesystems", ReasonMissing, `nothing is mounted at "/"`},
		{"mount twice", "mount_point: /}", "mount_point: /boot/efi}", "filesystems[1].mount_point", ReasonDuplicate, "filesystems[0].mount_point already"},
		{"mount below vfat", "mount_point: /}", "mount_point: /boot/efi/x}", "filesystems[1].mount_point", ReasonConflict, "vfat"},
		{"mount dots", "mount_point: /}", "mount_point: /srv/../etc}", "filesystems[1].mount_point", ReasonInvalid, "without . and .."},
		{"mount kept", "mount_point: /}", "mount_point: /proc/x}", "filesystems[1].mount_point", ReasonInvalid, "/proc"},
		{"mount with a space", "mount_point: /}", `mount_point: "/a b"}`, "filesystems[1].mount_point", ReasonInvalid, "absolute path"},
		{"mount with a newline", "mount_point: /}", `mount_point: "/a\n/dev/sda1 / ext4"}`, "filesystems[1].mount_point", ReasonInvalid, "absolute path"},
		{"option with a comma", "mount_point: /}", `mount_point: /, options: ["ro,exec"]}`, "filesystems[1].options[0]", ReasonInvalid, "one option each"},
		{"option with a newline", "mount_point: /}", `mount_point: /, options: ["ro\n"]}`, "filesystems[1].options[0]", ReasonInvalid, "one option each"},
		{"option of ours", "mount_point: /}", `mount_point: /, options: ["subvol=x"]}`, "filesystems[1].options[0]", ReasonInvalid, "subvolumes"},
		{"noauto root", "mount_point: /}", `mount_point: /, options: [noauto]}`, "filesystems[1].options", ReasonCannotBoot, "noauto"},
		{"label of ext4", "format: ext4", "format: ext4, label: aaaaaaaaaaaaaaaaa", "filesystems[1].label", ReasonInvalid, "at most 16"},
		{"label of xfs", "format: ext4", "format: xfs, label: aaaaaaaaaaaaa", "filesystems[1].label", ReasonInvalid, "at most 12"},
		{"mkfs", "format: ext4", `format: ext4, make_options: ["-d", "/etc"]`, "filesystems[1].make_options[0]", ReasonUnsupported, "allowed are -b"},
		{"mkfs value", "format: ext4", `format: ext4, make_options: ["-m", "5 /dev/sdb"]`, "filesystems[1].make_options[1]", ReasonInvalid, "no value of"},
		{"subvolumes", "format: ext4", `format: ext4, subvolumes: [{name: a}]`, "filesystems[1].subvolumes", ReasonConflict, "only btrfs"},
		{"subvolume's parent", "format: ext4, mount_point: /", `format: btrfs, subvolumes: [{name: a/b, mount_point: /}]`, "filesystems[1].subvolumes[0].name", ReasonNotFound, "no subvolume above"},
		{"one disk twice", "filesystems:", "  - {name: d, select: {serial: X}}\nfilesystems:", "disks[1].name", ReasonDuplicate, "called d"},
		{"an unused disk", "filesystems:", "  - {name: e, select: {serial: X}}\nfilesystems:", "disks[1]", ReasonInvalid, "not erased"},
		{"array's name", "filesystems:", "raids: [{name: md0, level: 0, members: [part/d/data]}]\nfilesystems:", "raids[0].name", ReasonInvalid, "device number"},
		{"array's level", "filesystems:", "raids: [{name: a, level: 4, members: [part/d/data]}]\nfilesystems:", "raids[0].level", ReasonInvalid, "0, 1, 5, 6, 10"},
		{"group's name", "filesystems:", "volume_groups: [{name: nvme0, devices: [part/d/data], volumes: [{name: a, size: rest}]}]\nfilesystems:", "volume_groups[0].name", ReasonInvalid, "/dev/nvme0"},
		{"volume's name", "filesystems:", "volume_groups: [{name: vg, devices: [part/d/data], volumes: [{name: a_tmeta, size: rest}]}]\nfilesystems:", "volume_groups[0].volumes[0].name", ReasonInvalid, "LVM keeps"},
		{"pool used", "filesystems:", "volume_groups: [{name: vg, devices: [part/d/data], volumes: [{name: p, kind: thin-pool, size: rest}]}]\nfilesystems:\n  - {device: lv/vg/p, format: ext4}", "filesystems[0].device", ReasonConflict, "thin pool"},
		{"no pool", "filesystems:", "volume_groups: [{name: vg, devices: [part/d/data], volumes: [{name: t, kind: thin, pool: x, size: 1GiB}]}]\nfilesystems:", "volume_groups[0].volumes[0].pool", ReasonNotFound, "no thin pool"},
		{"secret missing", "filesystems:", "luks: [{name: c, device: part/d/data, unlock: [passphrase]}]\nfilesystems:", "luks[0].secret", ReasonMissing, "name the secret"},
		{"secret too many", "filesystems:", "luks: [{name: c, device: part/d/data, unlock: [tpm2], secret: s}]\nfilesystems:", "luks[0].secret", ReasonConflict, "passphrase"},
		{"one mapper name", "filesystems:", "luks: [{name: vg-a, device: lv/vg/b, unlock: [tpm2]}]\nvolume_groups: [{name: vg, devices: [part/d/data], volumes: [{name: a, size: 1GiB}, {name: b, size: rest}]}]\nfilesystems:",
			"volume_groups[0].volumes[0].name", ReasonDuplicate, "/dev/mapper/vg-a"},
		{"stands on itself", "filesystems:", "luks: [{name: c, device: lv/vg/a, unlock: [tpm2]}]\nvolume_groups: [{name: vg, devices: [luks/c], volumes: [{name: a, size: rest}]}]\nfilesystems:", "luks[0].device", ReasonConflict, "stands on itself"},
	} {
		t.Run(test.name, func(t *testing.T) {
			changed := strings.Replace(single, test.old, test.new, 1)
			if changed == single {
				t.Fatal("the test changes nothing")
			}
			_, err := Parse([]byte(changed))
			wantProblem(t, err, test.path, test.reason, test.says)
		})
	}
}

func TestParseRefusesDocuments(t *testing.T) {
	for _, test := range []struct{ name, text, says string }{
		{"empty", "", "empty"},
		{"no mapping", "- a", "not a list"},
		{"two documents", single + "\n---\n" + single, "more than one document"},
		{"no YAML", "a: [", "not YAML or JSON"},
		{"too long", "# " + strings.Repeat("x", MaxLayoutSize), "at most 65536"},
		{"bomb", "a: &a [x,x]\nb: &b [*a,*a]\ndisks: [*b,*b]", "anchors and aliases"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse([]byte(test.text))
			if err == nil || !strings.Contains(err.Error(), test.says) {
				t.Errorf("error %v, want it to say %q", err, test.says)
			}
		})
	}
}

func TestProblemsCarryTheirLine(t *testing.T) {
	_, err := Parse([]byte(strings.Replace(single, "part/d/root", "part/d/nothing", 1)))
	if err == nil || !strings.HasSuffix(err.Error(), "(line 12)") {
		t.Errorf("error %v, want line 12", err)
	}
}

func TestMakePlanRefuses(t *testing.T) {
	four := []Disk{disk("vda", 20*gib), disk("vdb", 20*gib), disk("vdc", 20*gib), disk("vdd", 20*gib)}
	fourK := []Disk{newFourK(20 * gib)}
	one := func(change func(*Disk)) []Disk { return []Disk{disk("vda", 20*gib, change)} }
	replace := func(pairs ...string) string { return strings.NewReplacer(pairs...).Replace(single) }
	for _, test := range []struct {
		name   string
		layout string
		disks  []Disk
		target Target
		path   string
		reason string
		says   string
	}{
		{"no such serial", replace("{pick: any}", "{serial: nope}"), four, uefi(), "disks[0].select.serial", ReasonDiskNotFound, "it has vda (serial serial-vda) nvme 20 GiB; vdb"},
		{"one serial on two disks", replace("{pick: any}", "{serial: S}"), []Disk{disk("a", gib, func(d *Disk) { d.Serial = "S" }), disk("b", gib, func(d *Disk) { d.Serial = "S" })}, uefi(), "disks[0].select.serial", ReasonDiskNotFound, "two disks"},
		{"chosen twice", strings.Replace(single, "filesystems:", "  - {name: e, select: {wwn: W}, partitions: [{size: rest}]}\nfilesystems:", 1), one(func(d *Disk) { d.WWN = "W" }), uefi(), "disks[0].select", ReasonDiskNotFound, "1 disk(s) wanted, 0 match"},
		{"removable by rule", single, one(func(d *Disk) { d.Removable = true }), uefi(), "disks[0].select", ReasonDiskNotFound, "it is removable"},
		{"usb by rule", single, one(func(d *Disk) { d.Transport = "usb" }), uefi(), "disks[0].select", ReasonDiskNotFound, "0 match"},
		{"usb by path", replace("{pick: any}", "{by_path: path-vda}"), one(func(d *Disk) { d.Transport = "usb" }), uefi(), "disks[0].select", ReasonDiskUnfit, "choose it by serial"},
		{"read-only by serial", replace("{pick: any}", "{serial: serial-vda}"), one(func(d *Disk) { d.ReadOnly = true }), uefi(), "disks[0].select", ReasonDiskUnfit, "read-only"},
		{"no identity", replace("{pick: any}", "{by_path: path-vda}"), one(func(d *Disk) { d.Serial = "" }), uefi(), "disks[0].select", ReasonDiskUnfit, "neither serial number nor WWN"},
		{"odd sectors", replace("{pick: any}", "{serial: serial-vda}"), one(func(d *Disk) { d.LogicalSector = 520 }), uefi(), "disks[0].select", ReasonDiskUnfit, "520 bytes"},
		{"two disks alike", single, []Disk{disk("vda", 20*gib), disk("vda", 20*gib)}, uefi(), "disks[0].select", ReasonDiskUnfit, "same serial number"},
		{"too large", replace("4GiB", "20GiB", "size: rest", "size: 1GiB"), four, uefi(), "disks[0].partitions", ReasonDoesNotFit, "1611678208"},
		{"nothing left", replace("4GiB", "19967MiB"), four, uefi(), "disks[0].partitions[2].size", ReasonDoesNotFit, "bytes are missing"},
		{"sectors", replace("size: 4GiB", "size: 4294967297"), four, uefi(), "disks[0].partitions[1].size", ReasonInvalid, "use 4294967808"},
		{"no ESP", replace("type: esp", "type: linux"), four, uefi(), "disks", ReasonCannotBoot, "type esp"},
		{"ESP not mounted", replace(", mount_point: /boot/efi", ""), four, uefi(), "filesystems", ReasonCannotBoot, "/boot/efi"},
		{"BIOS", single, four, Target{}, "", ReasonCannotBoot, "UEFI only"},
		{"ESPs of two kinds", raid1, []Disk{four[0], newFourK(20 * gib)}, uefi(), "raids[0].members", ReasonCannotBoot, "use disks of one kind"},
		{"plan too long", "format: bloomery.layout/v1\ndisks:\n  - name: d\n    select: {pick: any, count: 20}\n    partitions:\n      - {label: efi, type: esp, size: 100MiB}\n      - {label: root, size: 1GiB}\n" + strings.Repeat("      - {size: 10MiB}\n", 126) +
			"filesystems:\n  - {device: part/d-0/efi, format: vfat, mount_point: /boot/efi}\n  - {device: part/d-0/root, format: ext4, mount_point: /}\n", manyDisks(20), uefi(), "disks", ReasonTooMany, "fewer disks"},
		{"a serial that a terminal would obey", replace("{pick: any}", "{serial: nope}"), one(func(d *Disk) { d.Serial = "\x1b[2J" }), uefi(), "disks[0].select.serial", ReasonDiskNotFound, "(serial \uFFFD[2J)"},
		{"small ESP on 4Kn", replace("512MiB", "200MiB"), fourK, uefi(), "filesystems[0].device", ReasonDoesNotFit, "vfat with sectors of 4096 bytes needs at least"},
		{"ext4 blocks on 4Kn", replace("format: ext4", `format: ext4, make_options: ["-b", "1024"]`), fourK, uefi(), "filesystems[1].make_options", ReasonInvalid, "use 4096"},
		{"xfs sectors on 4Kn", replace("format: ext4", `format: xfs, make_options: ["-s", "size=512"]`), fourK, uefi(), "filesystems[1].make_options", ReasonInvalid, "use 4096"},
		{"small xfs", replace("4GiB", "128MiB", "format: ext4", "format: xfs"), four, uefi(), "filesystems[1].device", ReasonDoesNotFit, "180355072 bytes are missing"},
		{"image does not fit", single, four, Target{UEFI: true, RootBytes: 8 * gib}, "filesystems[1].mount_point", ReasonDoesNotFit, "bytes (4.7 GiB) are missing"},
		{"stack", replace("format: ext4", "format: btrfs"), four, Target{UEFI: true, Stacks: []string{"md"}}, "filesystems[1]", ReasonStackMissing, "needs btrfs, which the image cannot start from; the image can do partitions, ext4, md"},
		{"encrypted boot", replace("filesystems:", "luks: [{name: c, device: part/d/root, unlock: [tpm2]}]\nfilesystems:", "device: part/d/root, format", "device: luks/c, format"), four, uefi(), "filesystems[1].mount_point", ReasonCannotBoot, "luks/c"},
		{"thin boot", replace("filesystems:", "volume_groups: [{name: vg, devices: [part/d/data], volumes: [{name: p, kind: thin-pool, size: rest}, {name: r, kind: thin, pool: p, size: 2GiB}]}]\nfilesystems:", "device: part/d/root", "device: lv/vg/r"), four, uefi(), "filesystems[1].mount_point", ReasonCannotBoot, "thin volume"},
		{"no TPM", replace("filesystems:", "luks: [{name: c, device: part/d/data, unlock: [key-file, tpm2]}]\nfilesystems:"), four, Target{UEFI: true}, "luks[0].unlock[1]", ReasonTPM2Missing, "no TPM 2.0"},
		{"too few members", replace("filesystems:", "raids: [{name: a, level: 5, members: [part/d/data]}]\nfilesystems:"), four, uefi(), "raids[0].members", ReasonInvalid, "at least 3"},
		{"members on one disk", replace("4GiB}", "4GiB}\n      - {label: two, size: 1GiB}", "filesystems:", "raids: [{name: a, level: 1, members: [part/d/data, part/d/two]}]\nfilesystems:"), four, uefi(), "raids[0].members", ReasonConflict, "on one disk"},
		{"small member", replace("4GiB}", "4GiB}\n      - {label: two, size: 1MiB}", "filesystems:", "raids: [{name: a, level: 0, members: [part/d/data, part/d/two]}]\nfilesystems:"), four, uefi(), "raids[0].members", ReasonDoesNotFit, "bytes are missing"},
		{"group overfull", replace("filesystems:", "volume_groups: [{name: vg, devices: [part/d/data], volumes: [{name: a, size: 100GiB}]}]\nfilesystems:"), four, uefi(), "volume_groups[0].volumes", ReasonDoesNotFit, "need at least"},
		{"group full", replace("filesystems:", "volume_groups: [{name: vg, devices: [part/d/data], volumes: [{name: a, size: 100%}, {name: b, size: rest}]}]\nfilesystems:"), four, uefi(), "volume_groups[0].volumes", ReasonDoesNotFit, "need at least"},
		{"stripes", replace("filesystems:", "volume_groups: [{name: vg, devices: [part/d/data], volumes: [{name: a, kind: striped, size: rest}]}]\nfilesystems:"), four, uefi(), "volume_groups[0].volumes[0].stripes", ReasonInvalid, "the group has 1"},
		{"extent and stripe", replace("size: rest}", "size: 4GiB}\n      - {label: more, size: rest}", "filesystems:", "volume_groups: [{name: vg, devices: [part/d/data, part/d/more], volumes: [{name: a, kind: striped, size: 9GiB}]}]\nfilesystems:"), four, uefi(), "volume_groups[0].volumes[0].size", ReasonDoesNotFit, "devices of their own"},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := parse(t, test.layout)
			_, err := MakePlan(l, test.disks, test.target)
			wantProblem(t, err, test.path, test.reason, test.says)
		})
	}
}

func TestESPArrays(t *testing.T) {
	for _, test := range []struct{ name, old, new, path, says string }{
		{"metadata at the start", "name: efi, level: 1,", `name: efi, level: 1, metadata: "1.2",`, "raids[0].metadata", `use "1.0"`},
		{"level", "name: efi, level: 1,", "name: efi, level: 10,", "raids[0].level", "only RAID 1"},
		{"format", "format: vfat", "format: ext4", "filesystems[0].device", "can only be vfat"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Parse([]byte(strings.Replace(raid1, test.old, test.new, 1)))
			wantProblem(t, err, test.path, ReasonCannotBoot, test.says)
		})
	}
}

func TestWarnings(t *testing.T) {
	smaller := twoNVMe()
	smaller[1].SizeBytes -= 100 * gib
	encrypted := func(unlock string) string {
		return strings.NewReplacer("filesystems:", "luks: [{name: c, device: part/d/root, "+unlock+"}]\nfilesystems:\n  - {device: part/d/data, format: ext4, mount_point: /boot}", "device: part/d/root, format", "device: luks/c, format").Replace(single)
	}
	for _, test := range []struct {
		name, layout string
		disks        []Disk
		says         string
	}{
		{"lost space", raid1, smaller, "md/root: its members differ in size, so that"},
		{"twin ESPs", strings.NewReplacer("  - {name: efi, level: 1, members: [part/d/efi]}\n", "", "device: md/efi", "device: part/d-0/efi").Replace(raid1), twoNVMe(), "nothing keeps them the same"},
		{"key file", encrypted("unlock: [key-file]"), twoNVMe(), "in the clear"},
		{"passphrase", encrypted("unlock: [passphrase], secret: s"), twoNVMe(), "on the console"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := plan(t, test.layout, test.disks)
			if !strings.Contains(fmt.Sprint(p.Warnings), test.says) {
				t.Errorf("warnings %q, want %q", p.Warnings, test.says)
			}
		})
	}
}

func TestSecretsOfAPlan(t *testing.T) {
	p := plan(t, everything, storageServer())
	if got := fmt.Sprint(p.GeneratedSecrets(), p.AskedSecrets()); got != "[luks/cryptsystem] [root-passphrase]" {
		t.Errorf("secrets %s", got)
	}
}

func newFourK(size int64) Disk {
	return disk("vdk", size, func(d *Disk) { d.LogicalSector, d.PhysicalSector = 4096, 4096 })
}

func manyDisks(n int) []Disk {
	var all []Disk
	for i := range n {
		all = append(all, disk(fmt.Sprintf("nvme%dn1", i), 20*gib))
	}
	return all
}
