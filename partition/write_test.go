package partition

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func newTable() Table {
	return Table{GUID: "b100e000-0000-4000-8000-000000000001", Entries: []Entry{
		{Number: 1, Label: "EFI system", Type: "c12a7328-f81f-11d2-ba4b-00a0c93ec93b", GUID: "b100e000-0000-4000-8000-000000000002", Start: mebibyte, Size: 8 * mebibyte},
		{Number: 3, Label: "rööt", Type: "4f68bce3-e8cd-4db1-96e7-fbcaf984b709", GUID: "b100e000-0000-4000-8000-000000000003", Start: 9 * mebibyte, Size: 20 * mebibyte, Attributes: 1<<60 | 4},
		{Number: 2, Type: "0fc63daf-8483-4772-8e79-3d69d8477de4", GUID: "b100e000-0000-4000-8000-000000000004", Start: 30 * mebibyte, Size: mebibyte},
	}}
}

func TestWriteTable(t *testing.T) {
	m := fullDisk(40) // of bytes that are nobody's table
	table := newTable()
	table.Entries[1], table.Entries[2] = table.Entries[2], table.Entries[1]
	if err := writeTable(m, table); err != nil {
		t.Fatal(err)
	}
	back, err := wholeTable(m)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(table, back); d != "" {
		t.Error(d)
	}
	if !bytes.Equal(m.data[:440], make([]byte, 440)) {
		t.Error("a boot loader is left in the first sector")
	}
	if m.data[mebibyte] != 0xa5 {
		t.Error("what is in a partition was touched")
	}
	if _, err := exec.LookPath("sgdisk"); err != nil {
		t.Skip("sgdisk is not installed (Debian package gdisk)")
	}
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, m.data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sgdisk", "-v", "-i", "3", path).CombinedOutput()
	for _, want := range []string{"No problems found", "'rööt'", "Attribute flags: 1000000000000004", "First sector: 18432"} {
		if err != nil || !strings.Contains(string(out), want) {
			t.Errorf("sgdisk does not say %q: %v\n%s", want, err, out)
		}
	}
}

func TestWriteTableRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Table)
		want   string
	}{
		"number":    {func(t *Table) { t.Entries[0].Number = 129 }, "no partition number 129"},
		"twice":     {func(t *Table) { t.Entries[0].Number = 3 }, "duplicate"},
		"label":     {func(t *Table) { t.Entries[0].Label = strings.Repeat("𝄞", 19) }, "36 UTF-16 units"},
		"sectors":   {func(t *Table) { t.Entries[0].Start++ }, "whole sectors"},
		"overlap":   {func(t *Table) { t.Entries[0].Size = 8*mebibyte + 512 }, "partitions 1 and 3 overlap"},
		"in front":  {func(t *Table) { t.Entries[0].Start = 33 * 512 }, "outside"},
		"too large": {func(t *Table) { t.Entries[2].Size = 10 * mebibyte }, "outside"},
		"overflow":  {func(t *Table) { t.Entries[2].Size = 1<<63 - 512 }, "outside"},
		"GUID":      {func(t *Table) { t.GUID = "disk" }, "disk"},
	} {
		t.Run(name, func(t *testing.T) {
			m := fullDisk(40)
			before := bytes.Clone(m.data)
			table := newTable()
			c.change(&table)
			if err := writeTable(m, table); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			if name != "GUID" && name != "twice" && !bytes.Equal(before, m.data) {
				t.Error("the disk was written to")
			}
		})
	}
}
