package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestExamine(t *testing.T) {
	d := &memoryDisk{data: make([]byte, 64*mebibyte)}
	const linux = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	table := Table{GUID: "11111111-2222-4333-8444-555555555555"}
	for i, e := range []struct {
		kind string
		size int64
	}{{typeESP, 4}, {linux, 8}, {linux, 16}, {typeRootAMD64, 8}, {linux, 1}} {
		table.Entries = append(table.Entries, Entry{Number: i + 1, Type: e.kind, Start: int64(1+i*10) * mebibyte, Size: e.size * mebibyte,
			GUID: "aaaaaaaa-2222-4333-8444-55555555555" + string(rune('0'+i))})
	}
	// The third one is larger than ten MiB: it stands last.
	table.Entries[2].Start = 45 * mebibyte
	if err := writeTable(d, table); err != nil {
		t.Fatal(err)
	}
	put := func(n int, offset int64, what []byte) {
		t.Helper()
		if _, err := d.WriteAt(what, table.Entries[n-1].Start+offset); err != nil {
			t.Fatal(err)
		}
	}
	put(2, 1024+56, binary.LittleEndian.AppendUint16(nil, 0xef53))
	put(3, 0x10040, []byte("_BHRfS_M"))
	put(4, 0, []byte("XFSB"))
	found, err := Examine(d, d.Size(), 512)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range found {
		text := f.Filesystem
		if f.ESP() {
			text += "esp"
		}
		if f.Root() {
			text += " root"
		}
		got = append(got, text)
	}
	if diff := cmp.Diff([]string{"esp", "ext4", "btrfs", "xfs root", ""}, got); diff != "" {
		t.Error(diff)
	}
	if _, err := Examine(bytes.NewReader(make([]byte, mebibyte)), mebibyte, 512); !errors.Is(err, ErrTable) {
		t.Errorf("a disk of zeros: %v", err)
	}
}
