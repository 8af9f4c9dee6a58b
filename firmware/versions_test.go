package firmware

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestVersions(t *testing.T) {
	dir := t.TempDir()
	for file, content := range map[string]string{
		"sys/class/dmi/id/bios_vendor":  "EDK II\n",
		"sys/class/dmi/id/bios_version": "2022.11\x1b[31m-6\n",
		"sys/class/dmi/id/bios_date":    "02/02/2022\n",
		"proc/cpuinfo":                  "processor\t: 0\nmicrocode\t: 0x2b000461\n\nprocessor\t: 1\nmicrocode\t: 0x1\n",
	} {
		path := filepath.Join(dir, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := Versions(Root{Sys: filepath.Join(dir, "sys"), Proc: filepath.Join(dir, "proc")})
	if err != nil {
		t.Fatal(err)
	}
	want := []Version{
		{Component: "bios", Vendor: "EDK II", Version: "2022.11[31m-6", Date: "02/02/2022"},
		{Component: "microcode", Version: "0x2b000461"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if none, err := Versions(Root{Sys: t.TempDir(), Proc: t.TempDir()}); err != nil || none != nil {
		t.Errorf("an empty machine: %v, %v", none, err)
	}
}
