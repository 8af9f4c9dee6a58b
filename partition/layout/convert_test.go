package layout

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func readFile(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestConvertedLayouts(t *testing.T) {
	for _, name := range []string{"scaleway-default", "equinix-raid1"} {
		t.Run(name, func(t *testing.T) {
			l := parse(t, string(readFile(t, name+".json")))
			text, err := l.YAML()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".yaml", text)
			again := parse(t, string(text))
			again.Origin = l.Origin
			if diff := cmp.Diff(l, again); diff != "" {
				t.Errorf("the printed layout is another one (-converted +printed)\n%s", diff)
			}
			p, err := MakePlan(l, twoNVMe(), uefi())
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".txt", []byte(p.Text()+"\n"+p.Drawing()))
		})
	}
}

func TestScalewayWithoutWrapperAndWithNulls(t *testing.T) {
	text := string(readFile(t, "scaleway-default.json"))
	text = strings.TrimSuffix(strings.TrimSpace(strings.Replace(text, `{"partitioning_schema": `, "", 1)), "}")
	text = strings.Replace(text, `{"pools": []}`, "null", 1)
	text = strings.Replace(text, `"size": 1915003863040, "use_all_available_space": false`, `"size": 0, "use_all_available_space": true`, 1)
	l := parse(t, text)
	if l.Origin != OriginScaleway || !l.Disks[0].Partitions[3].Size.Rest {
		t.Errorf("layout %+v", l.Disks[0])
	}
}

// TestDeviceNamesAreTakenByOrder shows how a name is bound: by its place among the machine's disks of that kind, whatever they are called at the
// moment, and the plan then names serial numbers.
func TestDeviceNamesAreTakenByOrder(t *testing.T) {
	l := parse(t, string(readFile(t, "scaleway-default.json")))
	disks := twoNVMe()
	disks[0].Name, disks[1].Name = "nvme10n1", "nvme2n1"
	disks = append(disks, disk("nvme0n1", 8*gib, func(d *Disk) { d.Removable = true }), disk("sda", 4*tib))
	p, err := MakePlan(l, disks, uefi())
	if err != nil {
		t.Fatal(err)
	}
	if p.Disks[0].KernelName != "nvme2n1" || p.Disks[0].Serial != "S64GNS0T000002" || p.Disks[1].Serial != "S64GNS0T000001" {
		t.Errorf("disks %+v", p.Disks)
	}
	_, err = MakePlan(l, disks[:1], uefi())
	wantProblem(t, err, "disks[1].device", ReasonDiskNotFound, `"/dev/nvme1n1" is disk 2 of its kind, by order, and the machine has 1`)
}

func TestForeignLayoutsAreRefused(t *testing.T) {
	scaleway, equinix := string(readFile(t, "scaleway-default.json")), string(readFile(t, "equinix-raid1.json"))
	for _, test := range []struct{ name, document, old, new, path, reason, says string }{
		{"zfs pool", scaleway, `"pools": []`, `"pools": [{"name": "tank", "type": "mirror", "devices": ["/dev/nvme0n1p4"], "options": [], "filesystem_options": []}]`,
			"partitioning_schema.zfs.pools[0]", ReasonUnsupported, "ZFS is not supported"},
		{"zfs filesystem", scaleway, `"format": "ext4", "mountpoint": "/"`, `"format": "zfs", "mountpoint": "/"`, "partitioning_schema.filesystems[2].format", ReasonUnsupported, "ZFS"},
		{"zfs label", scaleway, `"label": "root", "number": 4`, `"label": "zfs", "number": 4`, "partitioning_schema.disks[0].partitions[3].label", ReasonUnsupported, "ZFS"},
		{"lvm", scaleway, `"lvm": null`, `"lvm": {"volume_groups": []}`, "partitioning_schema.lvm", ReasonInvalid, "not supported"},
		{"level", scaleway, "raid_level_1", "raid_level_4", "partitioning_schema.raids[0].level", ReasonInvalid, "raid_level_10"},
		{"size and all", scaleway, `"use_all_available_space": false`, `"use_all_available_space": true`, "partitioning_schema.disks[0].partitions[0].size", ReasonConflict, "use 0"},
		{"unknown member", scaleway, `"/dev/nvme1n1p2"`, `"/dev/nvme1n1p9"`, "partitioning_schema.raids[0].devices[1]", ReasonNotFound, "no partition with number or label"},
		{"mount twice", scaleway, `"mountpoint": "/boot"`, `"mountpoint": "/"`, "partitioning_schema.filesystems[2].mountpoint", ReasonDuplicate, "already"},
		{"unknown field", scaleway, `"number": 1,`, `"number": 1, "colour": "red",`, "partitioning_schema.disks[0].partitions[0].colour", ReasonUnknownField, "there are label"},
		{"kept table", equinix, `"wipeTable": true`, `"wipeTable": false`, "storage.disks[0].wipeTable", ReasonUnsupported, "erases"},
		{"volume groups", equinix, `"raid":`, `"volume_groups": [], "raid":`, "storage.volume_groups", ReasonInvalid, "not supported"},
		{"size", equinix, `"512M"`, `"512MB"`, "storage.disks[0].partitions[0].size", ReasonInvalid, "512-byte sectors"},
		{"argument", equinix, `"-m", "1"`, `"-d", "/etc"`, "storage.filesystems[0].mount.create.options[0]", ReasonUnsupported, "not allowed for ext4"},
		{"label", equinix, `"-L", "ROOT"`, `"-L", "$(reboot)"`, "storage.filesystems[0].mount.label", ReasonInvalid, "use A-Z"},
		{"format", equinix, `"format": "ext4"`, `"format": "ntfs"`, "storage.filesystems[0].mount.format", ReasonInvalid, "ext4"},
	} {
		t.Run(test.name, func(t *testing.T) {
			changed := strings.Replace(test.document, test.old, test.new, 1)
			if changed == test.document {
				t.Fatal("the test changes nothing")
			}
			_, err := Parse([]byte(changed))
			wantProblem(t, err, test.path, test.reason, test.says)
		})
	}
}
