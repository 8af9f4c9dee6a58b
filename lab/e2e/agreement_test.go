package e2e

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bloomery/partition/layout"
)

// mirrorPlan and mirrorSaid are a mirror with a volume group on it, and what a system says that agrees.
func mirrorPlan() *layout.Plan {
	part := func(n int, guid string, start, size int64) layout.PartitionPlan {
		return layout.PartitionPlan{Number: n, Type: "a19d880f-05fc-4d3b-a006-743f0f84911e", GUID: guid, StartBytes: start, SizeBytes: size}
	}
	return &layout.Plan{
		Disks: []layout.DiskPlan{
			{Name: "a", Serial: "LEFT", SectorSize: 512, Table: true, GUID: "aaaa", Partitions: []layout.PartitionPlan{part(1, "a1", 1<<20, 100<<20)}},
			{Name: "b", Serial: "RIGHT", SectorSize: 512, Table: true, GUID: "bbbb", Partitions: []layout.PartitionPlan{part(1, "b1", 1<<20, 100<<20)}},
		},
		Arrays: []layout.ArrayPlan{{Name: "pv", UUID: "01234567-89ab-cdef-0123-456789abcdef", Level: 1, Metadata: "1.2", Members: []layout.Ref{"part/a/1", "part/b/1"}, SizeBytes: 90 << 20}},
		Groups: []layout.GroupPlan{{Name: "vg-0", Devices: []layout.Ref{"md/pv"}, Volumes: []layout.VolumePlan{
			{Name: "root", Kind: layout.VolumeLinear, SizeBytes: 64 << 20}, {Name: "swap", Kind: layout.VolumeLinear, SizeBytes: 16 << 20},
		}}},
		Files: []layout.FilesystemPlan{
			{Device: "lv/vg-0/root", Format: "ext4", UUID: "f00d", Label: "root", MountPoint: "/", Options: []string{"noatime", "nofail"}},
			{Device: "lv/vg-0/swap", Format: "swap", UUID: "5a5a"},
		},
	}
}

const mirrorSaid = `== findmnt
{"filesystems": [
  {"target":"/", "source":"/dev/mapper/vg--0-root", "fstype":"ext4", "uuid":"f00d", "options":"rw,noatime", "fsroot":"/"},
  {"target":"/proc", "source":"proc", "fstype":"proc", "uuid":null, "options":"rw", "fsroot":"/"}
]}
== lsblk
{"blockdevices": [
  {"name":"nvme0n1", "kname":"nvme0n1", "type":"disk", "size":209715200, "serial":"LEFT", "log-sec":512, "ptuuid":"aaaa", "pttype":"gpt", "start":null, "mountpoints":[null], "children": [
    {"name":"nvme0n1p1", "kname":"nvme0n1p1", "type":"part", "size":104857600, "partuuid":"a1", "parttype":"a19d880f-05fc-4d3b-a006-743f0f84911e", "partlabel":null, "start":2048, "fstype":"linux_raid_member", "mountpoints":[null], "children": [MD]}
  ]},
  {"name":"nvme1n1", "kname":"nvme1n1", "type":"disk", "size":209715200, "serial":"RIGHT", "log-sec":512, "ptuuid":"BBBB", "pttype":"gpt", "start":null, "mountpoints":[null], "children": [
    {"name":"nvme1n1p1", "kname":"nvme1n1p1", "type":"part", "size":104857600, "partuuid":"b1", "parttype":"a19d880f-05fc-4d3b-a006-743f0f84911e", "partlabel":null, "start":2048, "fstype":"linux_raid_member", "mountpoints":[null], "children": [MD]}
  ]}
]}
== mdadm md127
MD_LEVEL=raid1
MD_DEVICES=2
MD_METADATA=1.2
MD_UUID=01234567:89abcdef:01234567:89abcdef
/dev/md127:
             State : clean
    Active Devices : 2
`

const mirrorArray = `{"name":"md127", "kname":"md127", "type":"raid1", "size":103809024, "mountpoints":[null], "children": [
  {"name":"vg--0-root", "kname":"dm-0", "type":"lvm", "size":67108864, "fstype":"ext4", "uuid":"f00d", "label":"root", "mountpoints":["/"]},
  {"name":"vg--0-swap", "kname":"dm-1", "type":"lvm", "size":16777216, "fstype":"swap", "uuid":"5a5a", "mountpoints":["[SWAP]"]}
]}`

// TestDisagreements shows that the comparison of a system with its plan finds nothing where they agree, and each thing that differs.
func TestDisagreements(t *testing.T) {
	tests := map[string]struct {
		old, new string
		pulled   string
		want     []string // a part of each
	}{
		"agrees":           {},
		"disk gone":        {old: `"serial":"RIGHT"`, new: `"serial":"OTHER"`, want: []string{"no disk RIGHT"}},
		"pulled and there": {pulled: "RIGHT", want: []string{"was pulled and is there", "2 active devices", "stands on"}},
		"sector size":      {old: `"serial":"LEFT", "log-sec":512`, new: `"serial":"LEFT", "log-sec":4096`, want: []string{"sectors of 4096"}},
		"table":            {old: `"ptuuid":"aaaa"`, new: `"ptuuid":"a0a0"`, want: []string{"table a0a0"}},
		"partition moved":  {old: `"partuuid":"a1", "parttype":"a19d880f-05fc-4d3b-a006-743f0f84911e", "partlabel":null, "start":2048`, new: `"partuuid":"a1", "parttype":"a19d880f-05fc-4d3b-a006-743f0f84911e", "partlabel":"x", "start":4096`, want: []string{"begins at 2097152", `label "x"`}},
		"array degraded":   {old: "State : clean", new: "State : clean, degraded", want: []string{"degraded"}},
		"array's level":    {old: "MD_LEVEL=raid1", new: "MD_LEVEL=raid0", want: []string{"is raid0"}},
		"other array":      {old: "MD_UUID=0", new: "MD_UUID=1", want: []string{"no array", "stands on md127", "stands on md127"}},
		"volume's size":    {old: "67108864", new: "67108863", want: []string{"67108863 bytes"}},
		"no volume":        {old: `"name":"vg--0-swap"`, new: `"name":"vg--0-other"`, want: []string{"is not active", `has "" `, "is not swapped to"}},
		"filesystem":       {old: `"fstype":"ext4", "uuid":"f00d", "label":"root"`, new: `"fstype":"xfs", "uuid":"f00d", "label":"root"`, want: []string{`"xfs"`}},
		"mount":            {old: `"target":"/",`, new: `"target":"/mnt",`, want: []string{"nothing is mounted at /"}},
		"mount option":     {old: "rw,noatime", new: "rw,relatime", want: []string{"the plan says noatime"}},
		"swap is off":      {old: "[SWAP]", new: "", want: []string{"not swapped to"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			said := strings.ReplaceAll(mirrorSaid, "MD]", mirrorArray+"]")
			if tt.old != "" && !strings.Contains(said, tt.old) {
				t.Fatalf("the fixture has no %q", tt.old)
			}
			f, err := parseFound(strings.ReplaceAll(said, tt.old, tt.new))
			if tt.old == "" {
				f, err = parseFound(said)
			}
			if err != nil {
				t.Fatal(err)
			}
			var pulled []string
			if tt.pulled != "" {
				pulled = []string{tt.pulled}
			}
			got := disagreements(mirrorPlan(), f, pulled...)
			if len(tt.want) == 0 {
				if diff := cmp.Diff([]string(nil), got); diff != "" {
					t.Errorf("disagreements (-want +got):\n%s", diff)
				}
				return
			}
			for _, want := range tt.want {
				if !strings.Contains(strings.Join(got, "\n"), want) {
					t.Errorf("want %q among %q", want, got)
				}
			}
		})
	}
}

// TestRepairs shows that a member that came back is put into its array again, and that a mirror that is whole is left alone.
func TestRepairs(t *testing.T) {
	whole := strings.ReplaceAll(mirrorSaid, "MD]", mirrorArray+"]")
	for said, want := range map[string][]string{
		whole: nil,
		strings.Replace(mirrorSaid, "MD]", "]", 1): {"sudo mdadm /dev/md127 --re-add /dev/nvme0n1p1 || sudo mdadm /dev/md127 --add /dev/nvme0n1p1"},
	} {
		f, err := parseFound(strings.ReplaceAll(said, "MD]", mirrorArray+"]"))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, repairs(mirrorPlan(), f)); diff != "" {
			t.Errorf("repairs (-want +got):\n%s", diff)
		}
	}
}

func TestSameOption(t *testing.T) {
	for _, tt := range []struct {
		given, shown string
		want         bool
	}{
		{"noatime", "noatime", true}, {"noatime", "relatime", false}, {"compress=zstd", "compress=zstd:3", true}, {"umask=0077", "fmask=0077", true},
		{"umask=0077", "fmask=0022", false}, {"compress=zstd", "compress=zstdx", false},
	} {
		if got := sameOption(tt.given, tt.shown); got != tt.want {
			t.Errorf("sameOption(%q, %q) = %t", tt.given, tt.shown, got)
		}
	}
}
