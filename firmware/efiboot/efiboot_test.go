package efiboot

import (
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const partGUID = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e8f9"

// debianEntry was put together by hand from section 10.3: HD(1,GPT,…,0x800,0x40000)/\EFI\debian\shimx64.efi.
const debianEntry = "01000000" + "6200" + "640065006200690061006e000000" +
	"04012a00" + "01000000" + "0008000000000000" + "0000040000000000" + "3d2c1b0a5f4e71608293a4b5c6d7e8f9" + "0202" +
	"04043400" + "5c004500460049005c00640065006200690061006e005c007300680069006d007800360034002e006500660069000000" +
	"7fff0400"

func want() Entry {
	return Entry{Description: "debian-12", PartitionNumber: 1, PartStartLBA: 2048, PartSizeLBA: 262144, PartitionGUID: partGUID, Path: `\EFI\debian\shimx64.efi`}
}

func raw(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDecode(t *testing.T) {
	data := raw(t, debianEntry)
	o, err := DecodeLoadOption(data)
	if err != nil {
		t.Fatal(err)
	}
	if o.Description != "debian" || !o.Active() || o.Disk == nil {
		t.Fatalf("got %+v", o)
	}
	d := *o.Disk
	if d.PartitionNumber != 1 || d.StartLBA != 2048 || d.SizeLBA != 262144 || d.PartitionGUID.String() != partGUID || d.Path != `\EFI\debian\shimx64.efi` {
		t.Errorf("got %+v", d)
	}
	o.DevicePath = nil
	if back, err := o.Encode(); err != nil || string(back) != string(data) {
		t.Errorf("encoded as %x, %v", back, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	data := raw(t, debianEntry)
	for n := range len(data) - 4 { // without the end node's bytes every cut is seen
		if _, err := DecodeLoadOption(data[:n]); err == nil {
			t.Errorf("the first %d bytes decode", n)
		}
	}
}

// firmware is a fake efivarfs with the entries of a QEMU machine.
func firmware(t *testing.T) Root {
	t.Helper()
	root := Root(t.TempDir())
	for name, content := range map[string]string{
		"Boot0000":    "09010000" + "0400" + "550069004100700070000000" + "7fff0400",
		"Boot0001":    "01000000" + "0400" + "4e0056000000" + "7fff0400",
		"Boot0005":    debianEntry,
		"Boot000A":    "00",
		"BootOrder":   "000001000500",
		"BootCurrent": "0100",
		"SecureBoot":  "01",
	} {
		if err := os.WriteFile(root.file(name), append([]byte{7, 0, 0, 0}, raw(t, content)...), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []string{"Boot0001-00000000-0000-0000-0000-000000000000", "BootXYZW-" + globalVariable} {
		if err := os.WriteFile(filepath.Join(string(root), other), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestSetDisk(t *testing.T) {
	ctx := context.Background()
	root := firmware(t)
	before, err := Read(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	if len(before.Entries) != 3 || len(before.Unreadable) != 1 || before.SecureBoot == nil || !*before.SecureBoot || *before.Current != 1 || before.Next != nil {
		t.Fatalf("read %+v", before)
	}

	entry, err := SetDisk(ctx, root, want())
	if err != nil {
		t.Fatal(err)
	}
	if entry.Name() != "Boot0002" || entry.Description != "Bloomery: debian-12" {
		t.Errorf("made %+v", entry)
	}
	first, err := Read(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint16{2, 0, 1, 5}, first.Order); diff != "" {
		t.Error(diff)
	}

	if again, err := SetDisk(ctx, root, want()); err != nil || again.Number != 2 {
		t.Errorf("the second time: %+v, %v", again, err)
	}
	second, err := Read(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("the second time changed: %s", diff)
	}

	other := want()
	other.Path, other.Next = `\EFI\ubuntu\shimx64.efi`, true
	entry, err = SetDisk(ctx, root, other)
	if err != nil {
		t.Fatal(err)
	}
	last, err := Read(ctx, root)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]uint16{entry.Number, 0, 1, 5}, last.Order); diff != "" {
		t.Error(diff)
	}
	if last.Next == nil || *last.Next != entry.Number {
		t.Errorf("BootNext is %v", last.Next)
	}
	if slices.ContainsFunc(last.Entries, func(e BootEntry) bool { return e.Number == 2 }) {
		t.Error("the stale entry is still there")
	}
	if !slices.ContainsFunc(last.Entries, func(e BootEntry) bool { return e.Number == 5 && e.Description == "debian" }) {
		t.Error("an entry of others is gone")
	}
}

// A system on two disks has an entry for each, the one that was made last in front.
func TestSetDiskKeepsOthers(t *testing.T) {
	root, stale := firmware(t), want()
	stale.Path = `\EFI\old\shimx64.efi`
	if _, err := SetDisk(t.Context(), root, stale); err != nil {
		t.Fatal(err)
	}
	second, first := want(), want()
	second.PartitionGUID, first.Keep = "0a1b2c3d-4e5f-6071-8293-a4b5c6d7e800", true
	for range 2 { // the steps are done again after a power cut
		for _, e := range []Entry{second, first} {
			if _, err := SetDisk(t.Context(), root, e); err != nil {
				t.Fatal(err)
			}
		}
		state, err := Read(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, n := range state.Order {
			for _, e := range state.Entries {
				if e.Number == n && strings.HasPrefix(e.Description, Prefix) {
					got = append(got, e.Disk.PartitionGUID.String())
				}
			}
		}
		if diff := cmp.Diff([]string{first.PartitionGUID, second.PartitionGUID}, got); diff != "" {
			t.Error(diff)
		}
	}
}

func TestSetDiskRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Entry)
		errHas string
	}{
		{"guid", func(e *Entry) { e.PartitionGUID = "x" }, "partition GUID"},
		{"zero guid", func(e *Entry) { e.PartitionGUID = GUID{}.String() }, "GUID"},
		{"path", func(e *Entry) { e.Path = "/EFI/x.efi" }, "must be like"},
		{"number", func(e *Entry) { e.PartitionNumber = 0 }, "number"},
		{"long", func(e *Entry) { e.Description = strings.Repeat("x", 2000) }, "at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root, e := firmware(t), want()
			tt.change(&e)
			if _, err := SetDisk(context.Background(), root, e); err == nil || !strings.Contains(err.Error(), tt.errHas) {
				t.Fatalf("got %v", err)
			}
			if s, err := Read(context.Background(), root); err != nil || len(s.Entries) != 3 || len(s.Order) != 3 {
				t.Errorf("it changed something: %+v, %v", s, err)
			}
		})
	}
	if _, err := SetDisk(context.Background(), Root(filepath.Join(t.TempDir(), "no")), want()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without UEFI: %v", err)
	}
}

func FuzzDecodeLoadOption(f *testing.F) {
	f.Add(raw(f, debianEntry))
	f.Add(raw(f, "01000000040041000000"+"7fff0400"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		o, err := DecodeLoadOption(data)
		if err != nil {
			return
		}
		if _, err := o.Encode(); err != nil {
			t.Errorf("decoded but does not encode: %v", err)
		}
	})
}
