package inventory

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// server is the machine of the golden file.
func server(t *testing.T) *Inventory {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", "server.golden.json"))
	if err != nil {
		t.Fatal(err)
	}
	i := &Inventory{}
	if err := json.Unmarshal(data, i); err != nil {
		t.Fatal(err)
	}
	return i
}

func module(slot, serial string) Module {
	return Module{Slot: slot, SizeBytes: 64 << 30, Type: "DDR5", Speed: 4800, Configured: 4400, Vendor: "Samsung", Part: "M321R8GA0BB0", Serial: serial, ECC: true}
}

func ssd(path, serial string) Disk {
	return Disk{Name: "sda", ByPath: path, Model: "MZ7L33T8", Serial: serial, Firmware: "JXTC104Q", SizeBytes: 3840755982336, Transport: "sata"}
}

func TestDiff(t *testing.T) {
	for name, tc := range map[string]struct {
		before, after Inventory
		want          []Change
	}{
		"missing module": {
			Inventory{Memory: Memory{Slots: 16, Modules: []Module{module("A1", "1"), module("A2", "2")}}},
			Inventory{Memory: Memory{Slots: 16, Modules: []Module{module("A1", "1")}}},
			[]Change{{Removed, "memory", "A2", "64 GiB DDR5-4800 ECC Samsung M321R8GA0BB0 serial 2", ""}},
		},
		"replaced module": {
			Inventory{Memory: Memory{Modules: []Module{module("A1", "1"), module("A2", "2")}}},
			Inventory{Memory: Memory{Modules: []Module{module("A1", "1"), module("A2", "9")}}},
			[]Change{{Replaced, "memory", "A2", "64 GiB DDR5-4800 ECC Samsung M321R8GA0BB0 serial 2", "64 GiB DDR5-4800 ECC Samsung M321R8GA0BB0 serial 9"}},
		},
		"modules that changed places": {
			Inventory{Memory: Memory{Modules: []Module{module("A1", "1"), module("A2", "2")}}},
			Inventory{Memory: Memory{Modules: []Module{module("A1", "2"), module("A2", "1")}}},
			[]Change{{Changed, "memory", "A1", "place A2", "place A1"}, {Changed, "memory", "A2", "place A1", "place A2"}},
		},
		"replaced disk": {
			Inventory{Disks: []Disk{ssd("pci-0000:00:17.0-ata-1", "S1"), ssd("pci-0000:00:17.0-ata-2", "S2")}},
			Inventory{Disks: []Disk{ssd("pci-0000:00:17.0-ata-1", "S1"), ssd("pci-0000:00:17.0-ata-2", "S3")}},
			[]Change{{Replaced, "disk", "pci-0000:00:17.0-ata-2", "3840.8 GB sata MZ7L33T8 serial S2", "3840.8 GB sata MZ7L33T8 serial S3"}},
		},
		"a disk without a path": {
			Inventory{Disks: []Disk{ssd("", "S1")}},
			Inventory{Disks: []Disk{ssd("", "S2")}},
			[]Change{{Replaced, "disk", "", "3840.8 GB sata MZ7L33T8 serial S1", "3840.8 GB sata MZ7L33T8 serial S2"}},
		},
		"other kernel names": {
			Inventory{Disks: []Disk{{Name: "sda", Serial: "S1"}, {Name: "sdb", Serial: "S2"}}},
			Inventory{Disks: []Disk{{Name: "sda", Serial: "S2"}, {Name: "sdb", Serial: "S1"}}},
			nil,
		},
		"firmware": {
			Inventory{BIOS: BIOS{Vendor: "Dell", Version: "1.4.4"}, BMC: &BMC{MAC: "a", Firmware: "6.0"}},
			Inventory{BIOS: BIOS{Vendor: "Dell", Version: "1.5.1"}, BMC: &BMC{MAC: "a", Firmware: "7.0"}},
			[]Change{{Changed, "bios", "", "version 1.4.4", "version 1.5.1"}, {Changed, "bmc", "", "firmware 6.0", "firmware 7.0"}},
		},
		"new board": {
			Inventory{Baseboard: Baseboard{Name: "X", Serial: "B1"}},
			Inventory{Baseboard: Baseboard{Name: "X", Serial: "B2"}},
			[]Change{{Replaced, "baseboard", "", "X serial B1", "X serial B2"}},
		},
		"a card came": {
			Inventory{},
			Inventory{GPUs: []PCI{{Address: "0000:17:00.0", Vendor: "10de", Device: "2330"}}, TPM: TPM{Present: true, Version: 2}},
			[]Change{{Added, "gpu", "0000:17:00.0", "", "10de:2330"}, {Added, "tpm", "", "", "TPM 2"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tc.want, Diff(&tc.before, &tc.after)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestDiffOfEveryField changes each field of a real server's inventory: Diff must tell, unless the field is known to be volatile.
func TestDiffOfEveryField(t *testing.T) {
	volatile := map[string]bool{
		"Memory.UsableBytes": true, "Memory.TotalBytes": true, // the kernel's, and the sum of what is compared
		"CPUs.Flags": true, "Volumes": true, "Problems": true,
		"Disks.Name": true, "Disks.Path": true, "Disks.NUMA": true,
		"NICs.Name": true, "NICs.Driver": true, "NICs.SpeedMbps": true, "NICs.Link": true, "NICs.MTU": true, "NICs.NUMA": true, "NICs.LLDP": true,
		"GPUs.Driver": true, "BMC.Device": true,
	}
	full := func() *Inventory {
		i := server(t)
		on := true
		i.BIOS.SecureBoot = &on
		i.BMC = &BMC{Device: "d", Manufacturer: "m", Product: "p", Firmware: "f", IPMIVersion: "2.0", Address: "a", MAC: "aa"}
		i.GPUs = []PCI{{Address: "a", Vendor: "v", Device: "d", Driver: "x"}}
		i.TPM = TPM{Present: true, Version: 2}
		return i
	}
	if changes := Diff(full(), full()); len(changes) > 0 {
		t.Fatalf("a machine differs from itself: %v", changes)
	}
	fields := 0
	var walk func(path string, get func(*Inventory) reflect.Value)
	walk = func(path string, get func(*Inventory) reflect.Value) {
		if volatile[path] {
			return
		}
		switch v := get(full()); v.Kind() {
		case reflect.Struct:
			for n := range v.NumField() {
				name := strings.TrimPrefix(path+"."+v.Type().Field(n).Name, ".")
				walk(name, func(i *Inventory) reflect.Value { return get(i).Field(n) })
			}
		case reflect.Pointer:
			walk(path, func(i *Inventory) reflect.Value { return get(i).Elem() })
		case reflect.Slice:
			if v.Len() == 0 {
				t.Errorf("%s: the test's machine has none", path)
				return
			}
			walk(path, func(i *Inventory) reflect.Value { return get(i).Index(0) })
		default:
			fields++
			changed := full()
			switch f := get(changed); f.Kind() {
			case reflect.String:
				f.SetString(f.String() + "x")
			case reflect.Bool:
				f.SetBool(!f.Bool())
			case reflect.Int:
				f.SetInt(f.Int() + 1)
			case reflect.Uint64:
				f.SetUint(f.Uint() + 1<<30)
			default:
				t.Errorf("%s: kind %v", path, f.Kind())
			}
			if len(Diff(full(), changed)) == 0 {
				t.Errorf("a change of %s is not told", path)
			}
		}
	}
	walk("", func(i *Inventory) reflect.Value { return reflect.ValueOf(i).Elem() })
	if fields < 40 {
		t.Errorf("only %d fields were changed", fields)
	}
}

func FuzzDiff(f *testing.F) {
	for _, name := range []string{"server.golden.json", "q35.golden.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, []byte(`{"memory":{"slots":1,"modules":[{"slot":"A1"},{"slot":"A1"}]},"disks":[{},{}]}`))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		before, after := &Inventory{}, &Inventory{}
		if json.Unmarshal(a, before) != nil || json.Unmarshal(b, after) != nil {
			return
		}
		if changes := Diff(before, before); len(changes) > 0 {
			t.Errorf("a machine differs from itself: %v", changes)
		}
		if (len(Diff(before, after)) == 0) != (len(Diff(after, before)) == 0) {
			t.Error("a difference depends on the direction")
		}
	})
}
