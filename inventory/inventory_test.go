package inventory

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// plant makes the files ("path = quoted content") and links ("path -> target") of a tree file below a new directory.
func plant(t *testing.T, tree string) Root {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", tree))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		if path, target, ok := strings.Cut(line, " -> "); ok {
			put(t, filepath.Join(dir, path), func(path string) error { return os.Symlink(target, path) })
			continue
		}
		path, quoted, ok := strings.Cut(line, " =")
		content, err := strconv.Unquote(`"` + strings.TrimPrefix(quoted, " ") + `"`)
		if err != nil || !ok {
			t.Fatalf("%s: %q: %v", tree, line, err)
		}
		put(t, filepath.Join(dir, path), func(path string) error { return os.WriteFile(path, []byte(content), 0o644) })
	}
	return Root{Sys: filepath.Join(dir, "sys"), Proc: filepath.Join(dir, "proc"), Dev: filepath.Join(dir, "dev")}
}

func put(t *testing.T, path string, write func(string) error) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := write(path); err != nil {
		t.Fatal(err)
	}
}

// smbios builds a table of one filled and one empty memory slot and the end marker.
func smbios() []byte {
	device := func(size uint16, extended uint32, texts ...string) []byte {
		b := make([]byte, 0x5c)
		b[0], b[1] = smbiosMemoryDevice, 0x5c
		le := binary.LittleEndian
		le.PutUint16(b[0x08:], 80)
		le.PutUint16(b[0x0a:], 64)
		le.PutUint16(b[0x0c:], size)
		le.PutUint32(b[0x1c:], extended)
		b[0x10], b[0x17], b[0x18], b[0x1a], b[0x12], b[0x1b] = 1, 2, 3, 4, 0x22, 2
		le.PutUint16(b[0x15:], 4800)
		le.PutUint16(b[0x20:], 0xffff)
		le.PutUint32(b[0x58:], 4400)
		for _, s := range texts {
			b = append(append(b, s...), 0)
		}
		if len(texts) == 0 {
			b = append(b, 0)
		}
		return append(b, 0)
	}
	table := append(device(0x7fff, 65536, "DIMM A1", "Example\x07 Mem", "0001", "EX-64G"), device(0, 0)...)
	return append(table, smbiosEnd, 4, 0, 0, 0, 0)
}

type fakeDriver struct{}

func (fakeDriver) Ask(name string) (string, string, error) {
	if name == "eth0" {
		return "", "", errors.New("ask the driver of eth0: operation not supported")
	}
	return "3c:fd:fe:00:00:01", "4.20 0x8001778b", nil
}

func TestCollect(t *testing.T) {
	for _, name := range []string{"q35", "server"} {
		t.Run(name, func(t *testing.T) {
			root := plant(t, name+".tree")
			root.LinkInfo = fakeDriver{}
			if name == "server" {
				put(t, filepath.Join(root.Sys, "firmware/dmi/tables/DMI"), func(path string) error { return os.WriteFile(path, smbios(), 0o400) })
			}
			inv, err := Collect(context.Background(), root)
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(inv, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got = bytes.ReplaceAll(append(got, '\n'), []byte(filepath.Dir(root.Sys)), []byte("ROOT"))
			golden := filepath.Join("testdata", name+".golden.json")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCollectOnNothing(t *testing.T) {
	if _, err := Collect(context.Background(), Root{Sys: filepath.Join(t.TempDir(), "no")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	inv, err := Collect(context.Background(), Root{Sys: t.TempDir(), Proc: t.TempDir(), Dev: t.TempDir()})
	if err != nil || len(inv.Problems) == 0 {
		t.Errorf("got %+v, %v", inv, err)
	}
}

func TestFindDisk(t *testing.T) {
	disks := []Disk{{Name: "a", Serial: "S1"}, {Name: "b", Serial: "S2", WWN: "0x1"}, {Name: "c", Serial: "S2", WWN: "0x2"}}
	for _, tt := range []struct {
		want   Selector
		name   string
		errHas string
	}{
		{Selector{Serial: "S1"}, "a", ""},
		{Selector{WWN: "0x2"}, "c", ""},
		{Selector{Serial: "S2", WWN: "0x1"}, "b", ""},
		{Selector{Serial: "S2"}, "", `more than one such disk: b (serial "S2", WWN "0x1"), c`},
		{Selector{Serial: "s1"}, "", `serial "s1": no such disk; this machine has a (serial "S1"), b`},
		{Selector{Serial: "S1", WWN: "0x1"}, "", "no such disk"},
		{Selector{}, "", "must be given"},
	} {
		d, err := FindDisk(disks, tt.want)
		if d.Name != tt.name || (err == nil) != (tt.errHas == "") || err != nil && !strings.Contains(err.Error(), tt.errHas) {
			t.Errorf("%s: got %q, %v", tt.want, d.Name, err)
		}
	}
}

func FuzzSMBIOS(f *testing.F) {
	f.Add(smbios())
	f.Add([]byte{17, 4, 0, 0})
	f.Fuzz(func(t *testing.T, table []byte) {
		structures, _ := parseSMBIOS(table)
		for _, s := range structures {
			if m, ok := s.module(); ok && (m.SizeBytes == 0 || len(m.Serial) > maxText || strings.ContainsAny(m.Vendor, "\x00\x1b\n")) {
				t.Errorf("got %+v", m)
			}
		}
	})
}

func FuzzVPD(f *testing.F) {
	f.Add([]byte("\x00\x83\x00\x0c\x01\x03\x00\x08\x50\x00\xc5\x00\xa1\xb2\xc3\xd4"))
	f.Fuzz(func(t *testing.T, page []byte) {
		if name := unitName(page); len(name) > 40 {
			t.Errorf("got %q", name)
		}
		unitSerial(page)
	})
}

// Disks that are reached over a network are told from the machine's own.
func TestTransport(t *testing.T) {
	for real, want := range map[string]string{
		"/sys/devices/pci0000:00/0000:00:04.0/nvme/nvme0/nvme0n1":                                          "nvme",
		"/sys/devices/virtual/nvme-fabrics/ctl/nvme1/nvme1n1":                                              "nvmeof",
		"/sys/devices/virtual/nvme-subsystem/nvme-subsys1/nvme1n1":                                         "nvmeof",
		"/sys/devices/platform/host2/session1/target2:0:0/2:0:0:1/block/sdb":                               "iscsi",
		"/sys/devices/pci0000:00/0000:00:03.0/host7/rport-7:0-1/target7:0:0/7:0:0:0/block/sdc":             "fc",
		"/sys/devices/pci0000:00/0000:00:1f.2/ata2/host1/target1:0:0/1:0:0:0/block/sda":                    "sata",
		"/sys/devices/pci0000:00/0000:00:02.0/host0/port-0:0/end_device-0:0/target0:0:0/0:0:0:0/block/sdd": "sas",
		"/sys/devices/pci0000:00/0000:00:08.0/virtio4/block/vda":                                           "virtio",
		"/sys/devices/pci0000:00/0000:00:14.0/usb1/1-2/1-2:1.0/host3/target3:0:0/3:0:0:0/block/sde":        "usb",
	} {
		if got := transport(filepath.Base(real), real); got != want {
			t.Errorf("%s: %q, want %q", real, got, want)
		}
	}
}
