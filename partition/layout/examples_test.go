package layout

import (
	"os"
	"path/filepath"
	"testing"
)

// rackDisks are those of a machine that each example of docs/layouts can be planned for.
func rackDisks(example string) []Disk {
	switch example {
	case "raid1-lvm.yaml":
		return twoNVMe()
	case "4kn.yaml":
		return []Disk{disk("nvme0n1", 8*gib, func(d *Disk) { d.LogicalSector, d.PhysicalSector = 4096, 4096 })}
	}
	return []Disk{disk("vda", 8*gib), disk("vdb", 8*gib), disk("vdc", 8*gib), disk("vdd", 8*gib)}
}

func TestExamplesArePlanned(t *testing.T) {
	files, err := filepath.Glob("../../docs/layouts/*.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("%d examples (%v), want 6 at least", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p := plan(t, string(data), rackDisks(filepath.Base(file)))
			if len(p.Warnings) > 0 {
				t.Errorf("an example that is warned of: %q", p.Warnings)
			}
		})
	}
}
