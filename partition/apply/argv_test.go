package apply

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bloomery/internal/run"
	"bloomery/partition"
	"bloomery/partition/layout"
)

var update = flag.Bool("update", false, "write the golden files anew")

// uuid4 is any identifier.
const uuid4 = "b100e000-0000-4000-8000-000000000001"

// TestArgv shows every command line that makes something.
func TestArgv(t *testing.T) {
	var lines []string
	add := func(argv []string) { lines = append(lines, strings.Join(argv, " ")) }
	two, four := []layout.Ref{"part/a/1", "part/b/1"}, []layout.Ref{"part/a/1", "part/b/1", "part/c/1", "part/d/1"}
	for _, a := range []layout.ArrayPlan{
		{Name: "stripe", Level: 0, Metadata: "1.2", Members: two, ChunkBytes: 512 << 10},
		{Name: "esp", Level: 1, Metadata: "1.0", Members: two},
		{Name: "mirror", Level: 1, Metadata: "1.2", Members: two, Spares: []layout.Ref{"part/c/1"}},
		{Name: "five", Level: 5, Metadata: "1.2", Members: four[:3], Spares: four[3:], ChunkBytes: 64 << 10},
		{Name: "six", Level: 6, Metadata: "1.2", Members: four, ChunkBytes: 64 << 10},
		{Name: "ten", Level: 10, Metadata: "1.2", Members: four, ChunkBytes: 64 << 10},
	} {
		a.UUID = uuid4
		add(createArrayArgv(a, []string{"/dev/vda1", "/dev/vdb1", "/dev/vdc1", "/dev/vdd1"}[:len(a.Members)+len(a.Spares)]))
	}
	generated, phrase := key{name: "luks/root"}, key{name: "phrase", passphrase: true}
	add(formatLUKSArgv(layout.LUKSPlan{Name: "root", UUID: uuid4, SectorSize: 4096}, generated, "/dev/md127"))
	add(formatLUKSArgv(layout.LUKSPlan{Name: "root", UUID: uuid4, SectorSize: 512, Label: "crypt"}, phrase, "/dev/md127"))
	add(addKeyArgv("/dev/md127", "/proc/1/fd/7", phrase))
	g := layout.GroupPlan{Name: "vg"}
	for _, v := range []layout.VolumePlan{
		{Name: "root", Kind: layout.VolumeLinear, SizeBytes: 1 << 30},
		{Name: "fast", Kind: layout.VolumeStriped, SizeBytes: 1 << 30, Stripes: 2, StripeBytes: 64 << 10},
		{Name: "pool", Kind: layout.VolumeThinPool, SizeBytes: 1 << 30, MetadataBytes: 4 << 20},
		{Name: "thin", Kind: layout.VolumeThin, SizeBytes: 8 << 30, Pool: "pool"},
	} {
		add(createVolumeArgv(g, v))
	}
	for _, f := range []layout.FilesystemPlan{
		{Format: layout.FormatExt4, UUID: uuid4},
		{Format: layout.FormatExt4, UUID: uuid4, Label: "root", MakeOptions: []string{"-m", "1"}},
		{Format: layout.FormatXFS, UUID: uuid4, Label: "srv"},
		{Format: layout.FormatBtrfs, UUID: uuid4, Label: "data"},
		{Format: layout.FormatVFAT, UUID: "1A2B-3C4D", Label: "ESP"},
		{Format: layout.FormatSwap, UUID: uuid4, Label: "swap"},
	} {
		argv, err := makeArgv(f, "/dev/vda1")
		if err != nil {
			t.Fatal(err)
		}
		add(argv)
	}
	if _, err := makeArgv(layout.FilesystemPlan{Format: "zfs"}, "/dev/vda1"); err == nil {
		t.Error("a filesystem that nobody can make was accepted")
	}
	fake := &run.Fake{}
	m := &Machine{Disks: partition.Disks{Runner: fake}}
	if _, err := m.lvm(t.Context(), []string{"/dev/vda1", "/dev/mapper/c.d"}, "vgcreate", "vg", "/dev/vda1", "/dev/mapper/c.d"); err != nil {
		t.Fatal(err)
	}
	for _, c := range fake.Calls() {
		add(append(c.Argv, c.Env...))
	}
	golden(t, "argv.golden", strings.Join(lines, "\n")+"\n")
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", name, d)
	}
}
