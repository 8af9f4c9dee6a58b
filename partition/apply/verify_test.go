package apply

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bloomery/internal/run"
	"bloomery/partition"
	"bloomery/partition/layout"
)

// What the tools of Debian 12 print, as recorded in the agent's kernel.
const (
	recordedTable = `
No problems found. 163773 free sectors (80.0 MiB) available in 2
segments, the largest of which is 161759 (79.0 MiB) in size.
Disk /dev/vda: 1048576 sectors, 512.0 MiB
Sector size (logical/physical): 512/512 bytes
Disk identifier (GUID): B100E000-0000-4000-8000-000000001000
Partition table holds up to 128 entries
Main partition table begins at sector 2 and ends at sector 33
First usable sector is 34, last usable sector is 1048542
Partitions will be aligned on 2048-sector boundaries
Total free space is 163773 sectors (80.0 MiB)

Number  Start (sector)    End (sector)  Size       Code  Name
   1            2048           67583   32.0 MiB    EF00  ESP
`
	recordedEntry = `Partition GUID code: C12A7328-F81F-11D2-BA4B-00A0C93EC93B (EFI system partition)
Partition unique GUID: B100E000-0000-4000-8000-000000001001
First sector: 2048 (at 1024.0 KiB)
Last sector: 67583 (at 33.0 MiB)
Partition size: 65536 sectors (32.0 MiB)
Attribute flags: 0000000000000000
Partition name: 'ESP'
`
	recordedArray = `MD_LEVEL=raid1
MD_DEVICES=2
MD_METADATA=1.2
MD_UUID=b100e000:00004000:80000000:00000011
MD_DEVNAME=data
MD_NAME=any:data
MD_DEVICE_dev_vdb2_ROLE=1
MD_DEVICE_dev_vdb2_DEV=/dev/vdb2
MD_DEVICE_dev_vda2_ROLE=0
MD_DEVICE_dev_vda2_DEV=/dev/vda2
MD_DEVICE_dev_vdc2_ROLE=spare
MD_DEVICE_dev_vdc2_DEV=/dev/vdc2
`
	recordedVolumes = `  {
      "report": [
          {
              "lv": [
                  {"lv_name":"pool", "vg_name":"vg-0", "segtype":"thin-pool", "lv_size":"67108864", "stripes":"1", "stripe_size":"0", "pool_lv":"", "lv_active":"active", "lv_health_status":""},
                  {"lv_name":"thin-1", "vg_name":"vg-0", "segtype":"thin", "lv_size":"134217728", "stripes":"0", "stripe_size":"0", "pool_lv":"pool", "lv_active":"active", "lv_health_status":""},
                  {"lv_name":"s", "vg_name":"vg-0", "segtype":"striped", "lv_size":"67108864", "stripes":"2", "stripe_size":"65536", "pool_lv":"", "lv_active":"", "lv_health_status":""}
              ]
          }
      ]
  }
`
	recordedGroup = `  {
      "report": [
          {
              "pv": [
                  {"pv_uuid":"nlj2Qh-fdUU-fNlo-ERDW-m6a5-R3z0-lgoq90", "vg_name":"vg-0", "vg_extent_size":"4194304", "vg_missing_pv_count":"0", "vg_size":"415236096"},
                  {"pv_uuid":"aaaaaa-fdUU-fNlo-ERDW-m6a5-R3z0-lgoq90", "vg_name":"other", "vg_extent_size":"4194304", "vg_missing_pv_count":"0", "vg_size":"1"}
              ]
          }
      ]
  }
`
	recordedLUKS = `{"keyslots":{"0":{"type":"luks2","key_size":64,"kdf":{"type":"argon2id","time":4,"memory":65536,"cpus":1,"salt":"YQ=="}}},"tokens":{},
"segments":{"0":{"type":"crypt","offset":"16777216","size":"dynamic","iv_tweak":"0","encryption":"aes-xts-plain64","sector_size":4096}},"digests":{},"config":{}}`
)

// fields are the names of what differs.
func fields(d []Difference) string {
	var names []string
	for _, one := range d {
		names = append(names, one.Field)
	}
	return strings.Join(names, ", ")
}

func TestTableAgainstPlan(t *testing.T) {
	if got := parseTable(recordedTable); got != (sgdiskTable{guid: "b100e000-0000-4000-8000-000000001000", partitions: 1, sound: true}) {
		t.Errorf("got %+v", got)
	}
	for _, bad := range []string{"Identified 1 problems!", "Found protective or hybrid MBR and corrupt GPT.\nNo problems found."} {
		if parseTable(bad).sound {
			t.Errorf("%q is sound", bad)
		}
	}
	planned := layout.PartitionPlan{
		Number: 1, Label: "ESP", Type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", GUID: "b100e000-0000-4000-8000-000000001001", StartBytes: 1 << 20, SizeBytes: 32 << 20,
	}
	found := parseEntry(recordedEntry)
	if d := found.against(planned, 512); len(d) != 0 {
		t.Errorf("as planned: %v", d)
	}
	for want, change := range map[string]func(*layout.PartitionPlan){
		"partition 1 label":                                 func(p *layout.PartitionPlan) { p.Label = "" },
		"partition 1 type":                                  func(p *layout.PartitionPlan) { p.Type = uuid4 },
		"partition 1 guid":                                  func(p *layout.PartitionPlan) { p.GUID = uuid4 },
		"partition 1 attributes":                            func(p *layout.PartitionPlan) { p.Attributes = 1 << 60 },
		"partition 1 last sector":                           func(p *layout.PartitionPlan) { p.SizeBytes += 512 },
		"partition 1 first sector, partition 1 last sector": func(p *layout.PartitionPlan) { p.StartBytes += 512 },
	} {
		other := planned
		change(&other)
		if d := found.against(other, 512); fields(d) != want {
			t.Errorf("got %v, want %s", d, want)
		}
	}
	if d := parseEntry("Partition #1 does not exist.\n").against(planned, 512); fields(d) != "partition 1 presence" {
		t.Errorf("a partition that is not there: %v", d)
	}
}

func TestArrayAgainstPlan(t *testing.T) {
	state := parseArrayState([]byte(recordedArray))
	members := []string{"/dev/vda2", "/dev/vdb2", "/dev/vdc2"}
	planned := layout.ArrayPlan{UUID: "b100e000-0000-4000-8000-000000000011", Level: 1, Metadata: "1.2", Members: []layout.Ref{"part/a/2", "part/b/2"}, Spares: []layout.Ref{"part/c/2"}}
	if d := state.against(planned, members); len(d) != 0 {
		t.Errorf("as planned: %v", d)
	}
	for want, change := range map[string]func(*layout.ArrayPlan){
		"uuid":     func(a *layout.ArrayPlan) { a.UUID = uuid4 },
		"level":    func(a *layout.ArrayPlan) { a.Level = 10 },
		"metadata": func(a *layout.ArrayPlan) { a.Metadata = "1.0" },
		"raid devices, role of /dev/vdc2": func(a *layout.ArrayPlan) {
			a.Members, a.Spares = append(a.Members, a.Spares...), nil
		},
	} {
		other := planned
		change(&other)
		if d := state.against(other, members); fields(d) != want {
			t.Errorf("got %v, want %s", d, want)
		}
	}
	if d := state.against(planned, []string{"/dev/vda2", "/dev/vdd2", "/dev/vdc2"}); fields(d) != "member /dev/vdb2, role of /dev/vdd2" {
		t.Errorf("another member: %v", d)
	}
}

func TestVolumesAgainstPlan(t *testing.T) {
	states, err := parseVolumeStates([]byte(recordedVolumes))
	if err != nil {
		t.Fatal(err)
	}
	striped := layout.VolumePlan{Name: "s", Kind: layout.VolumeStriped, SizeBytes: 64 << 20, Stripes: 2, StripeBytes: 64 << 10}
	thin := layout.VolumePlan{Name: "thin-1", Kind: layout.VolumeThin, SizeBytes: 128 << 20, Pool: "pool"}
	for _, v := range []layout.VolumePlan{striped, thin, {Name: "pool", Kind: layout.VolumeThinPool, SizeBytes: 64 << 20, MetadataBytes: 4 << 20}} {
		if d := states[v.Name].against(v); len(d) != 0 {
			t.Errorf("%s as planned: %v", v.Name, d)
		}
	}
	if states["s"].active || !states["pool"].active {
		t.Error("what is active is not told from what is not")
	}
	striped.Stripes, striped.StripeBytes = 4, 4<<10
	if d := states["s"].against(striped); fields(d) != "stripe size, stripes" {
		t.Error(d)
	}
	thin.SizeBytes, thin.Pool, thin.Kind = 1<<20, "other", layout.VolumeLinear
	if d := states["thin-1"].against(thin); fields(d) != "kind, pool, size" {
		t.Error(d)
	}
	if d := (volumeState{kind: "linear", size: 1, sound: false}).against(layout.VolumePlan{Kind: "linear", SizeBytes: 1}); fields(d) != "health" {
		t.Error(d)
	}
	if _, err := parseVolumeStates([]byte(`{"report":[{"lv":[{"lv_name":"a","lv_size":"1g"}]}]}`)); err == nil {
		t.Error("a size that is no number was read")
	}
}

func TestGroupAgainstPlan(t *testing.T) {
	answer := recordedGroup
	m := &Machine{Disks: partition.Disks{Runner: &run.Fake{Answer: func(run.Call) (run.Result, error) { return run.Result{Stdout: []byte(answer)}, nil }}}}
	state, err := m.groupState(t.Context(), []string{"/dev/md127"}, "vg-0")
	if err != nil {
		t.Fatal(err)
	}
	planned, uuids := layout.GroupPlan{Name: "vg-0", ExtentBytes: 4 << 20, SizeBytes: 400 << 20}, []string{"nlj2Qh-fdUU-fNlo-ERDW-m6a5-R3z0-lgoq90"}
	if d := state.against(planned, uuids); fields(d) != "size" {
		t.Error(d)
	}
	planned.SizeBytes = 396 << 20
	if d := state.against(planned, uuids); len(d) != 0 {
		t.Errorf("as planned: %v", d)
	}
	planned.ExtentBytes = 1 << 20
	state.missing = 1
	if d := state.against(planned, []string{uuid4}); fields(d) != "extent size, missing physical volumes, physical volumes" {
		t.Error(d)
	}
	answer = `{"report":[{"pv":[]}]}`
	if state, err = m.groupState(t.Context(), nil, "vg-0"); err != nil || fields(state.against(planned, uuids)) != "group" {
		t.Errorf("a group that is not there: %+v, %v", state, err)
	}
	answer = `{"report":`
	if _, err := m.groupState(t.Context(), nil, "vg-0"); err == nil {
		t.Error("half an answer was read")
	}
}

func TestLUKSAgainstPlan(t *testing.T) {
	metadata, err := parseLUKS([]byte(recordedLUKS))
	if err != nil {
		t.Fatal(err)
	}
	planned := layout.LUKSPlan{SectorSize: 4096}
	if d := metadata.against(planned); len(d) != 0 {
		t.Errorf("as planned: %v", d)
	}
	greedy, err := parseLUKS([]byte(strings.NewReplacer("65536", "1048576", "aes-xts", "aes-cbc").Replace(recordedLUKS)))
	if err != nil {
		t.Fatal(err)
	}
	planned.SectorSize = 512
	if d := greedy.against(planned); fields(d) != "memory for key slot 0, encryption, sector size" {
		t.Error(d)
	}
	if d := (luksMetadata{}).against(planned); fields(d) != "key slots, segments" {
		t.Error(d)
	}
}

func TestFilesystemAgainstPlan(t *testing.T) {
	for _, c := range []struct {
		code int
		out  string
		plan layout.FilesystemPlan
		want string
	}{
		{0, "DEVNAME=/dev/vda1\nLABEL=my\\ root\nUUID=" + uuid4 + "\nTYPE=ext4\nUSAGE=filesystem\n", layout.FilesystemPlan{Format: "ext4", UUID: uuid4, Label: "my root"}, ""},
		{0, "LABEL=ESP\nUUID=1A2B-3C4D\nVERSION=FAT32\nTYPE=vfat\n", layout.FilesystemPlan{Format: "vfat", UUID: "1a2b-3c4d", Label: "ESP"}, ""},
		{0, "UUID=" + uuid4 + "\nTYPE=xfs\n", layout.FilesystemPlan{Format: "ext4", UUID: "x", Label: "a"}, "format, label, uuid"},
		{2, "", layout.FilesystemPlan{Format: "swap", UUID: uuid4}, "format, uuid"},
		{8, "", layout.FilesystemPlan{Format: "swap"}, "format"},
	} {
		m := &Machine{Disks: partition.Disks{Runner: &run.Fake{Answer: func(run.Call) (run.Result, error) {
			return run.Result{Stdout: []byte(c.out), ExitCode: c.code}, nil
		}}}}
		seen, err := m.probe(t.Context(), "/dev/vda1")
		if err != nil {
			t.Fatal(err)
		}
		if d := seen.against(c.plan); fields(d) != c.want {
			t.Errorf("%q against %+v: %v, want %q", c.out, c.plan, d, c.want)
		}
	}
	m := &Machine{Disks: partition.Disks{Runner: &run.Fake{Answer: func(run.Call) (run.Result, error) { return run.Result{ExitCode: 4}, nil }}}}
	if _, err := m.probe(t.Context(), "/dev/vda1"); err == nil {
		t.Error("blkid's failure was taken for an answer")
	}
	if there := parseSubvolumes("ID 256 gen 8 top level 5 path @home\nID 257 gen 9 top level 256 path a path b\n"); !there["@home"] || !there["a path b"] {
		t.Errorf("subvolumes %v", there)
	}
}

func TestReportNamesWhatDiffers(t *testing.T) {
	r := Report{Objects: []Object{{Kind: "array", Ref: "md/root"}}}
	if err := r.Err(); err != nil {
		t.Error(err)
	}
	for range 10 {
		r.Objects = append(r.Objects, Object{Kind: "table", Ref: "disk/a", Differences: []Difference{{"guid", "a", "b"}}})
	}
	want := `the disks are not as planned: table disk/a: guid is "b", planned is "a"; `
	if err := r.Err(); !errors.Is(err, ErrNotAsPlanned) || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "and 2 more") {
		t.Error(err)
	}
}

func TestKeys(t *testing.T) {
	m := &Machine{Secrets: map[string][]byte{"luks/root": []byte("random"), "phrase": []byte("words")}}
	names := func(v layout.LUKSPlan) string {
		keys, err := m.keys(v)
		if err != nil {
			return err.Error()
		}
		var all []string
		for _, k := range keys {
			all = append(all, k.name)
		}
		return strings.Join(all, " ")
	}
	got := []string{
		names(layout.LUKSPlan{Name: "root", Unlock: []string{layout.UnlockPassphrase, layout.UnlockTPM2, layout.UnlockKeyFile}, Secret: "phrase"}),
		names(layout.LUKSPlan{Name: "root", Unlock: []string{layout.UnlockPassphrase}, Secret: "none"}),
		names(layout.LUKSPlan{Name: "root"}),
	}
	want := []string{"luks/root phrase", `volume root needs the secret "none", which the job has not`, "volume root has no way to open it"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// No secret may be seen in a command line or its environment.
func TestSecretsStayOutOfArgv(t *testing.T) {
	fake := &run.Fake{}
	m := &Machine{Disks: partition.Disks{Runner: fake}}
	a, b := key{name: "luks/x", data: []byte("first-secret")}, key{name: "p", data: []byte("second-secret"), passphrase: true}
	if err := m.addKey(context.Background(), "/dev/vda1", a, b); err != nil {
		t.Fatal(err)
	}
	for _, c := range fake.Calls() {
		if c.Stdin != "second-secret" || strings.Contains(c.String()+strings.Join(c.Env, " "), "secret") {
			t.Errorf("%s with %q", c, c.Stdin)
		}
	}
}
