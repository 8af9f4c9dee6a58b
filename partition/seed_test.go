package partition

import (
	"bytes"
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// opaqueDisk is what an image of a system that nobody may look into leaves on a larger disk: Microsoft's partitions, noise, and data in the
// image's last block.
func opaqueDisk(t *testing.T, image, size int64) *memoryDisk {
	t.Helper()
	d := &memoryDisk{data: make([]byte, image)}
	random := rand.NewChaCha8([32]byte{7})
	_, _ = random.Read(d.data)
	if err := writeTable(d, Table{GUID: "b100e000-0000-4000-8000-000000000001", Entries: []Entry{
		{Number: 1, Label: "EFI system partition", Type: typeESP, GUID: "b100e000-0000-4000-8000-000000000002", Start: mebibyte, Size: 4 * mebibyte},
		{Number: 2, Label: "Microsoft reserved partition", Type: "e3c9e316-0b5c-4db8-817d-f92df00215ae", GUID: "b100e000-0000-4000-8000-000000000003", Start: 5 * mebibyte, Size: mebibyte},
		{Number: 3, Label: "Basic data partition", Type: typeBasicData, GUID: "b100e000-0000-4000-8000-000000000004", Start: 6 * mebibyte, Size: image - 8*mebibyte},
	}}); err != nil {
		t.Fatal(err)
	}
	copy(d.data[:446], []byte("boot code"))
	copy(d.data[image-512:], bytes.Repeat([]byte("last"), 128))
	d.data = append(d.data, make([]byte, size-image)...)
	return d
}

func TestAddSeed(t *testing.T) {
	const image, size = 16 * mebibyte, 64 * mebibyte
	d := opaqueDisk(t, image, size)
	before := bytes.Clone(d.data)
	seed := Seed{Label: "config-2", GUID: "b100e000-0000-4000-8000-000000000009", Behind: image, Files: map[string][]byte{
		"openstack/latest/meta_data.json": []byte(`{"uuid":"u"}`), "openstack/latest/user_data": []byte("#cloud-config\n")}}
	info, err := addSeed(d, seed)
	if err != nil {
		t.Fatal(err)
	}
	if info.Number != 4 || info.FirstLBA != image/512 || info.Type != typeBasicData {
		t.Errorf("the partition is %+v", info)
	}
	// Of the image only the table and the size in the protective MBR have changed.
	if !bytes.Equal(d.data[:446], before[:446]) || !bytes.Equal(d.data[34*512:image], before[34*512:image]) {
		t.Error("the image was changed")
	}
	found, err := Examine(d, d.Size(), 512)
	if err != nil || len(found) != 4 {
		t.Fatalf("the table has %d partitions, %v", len(found), err)
	}
	once := bytes.Clone(d.data)
	seed.Files["openstack/latest/user_data"] = []byte("#!/bin/sh\n")
	if _, err := addSeed(d, seed); err != nil {
		t.Fatalf("again: %v", err)
	}
	if !bytes.Equal(d.data[:image], once[:image]) || !bytes.Equal(d.data[size-33*512:], once[size-33*512:]) {
		t.Error("the second time changes the table")
	}

	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, d.data, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("sgdisk", "-v", path).CombinedOutput(); err != nil || !strings.Contains(string(out), "No problems found") {
		t.Errorf("sgdisk: %v\n%s", err, out)
	}
	offset := path + "@@16M"
	for name, want := range seed.Files {
		out, err := exec.Command("mtype", "-i", offset, "::/"+name).CombinedOutput()
		if err != nil || string(out) != string(want) {
			t.Errorf("mtype %s: %v: %q", name, err, out)
		}
	}
	if out, err := exec.Command("mlabel", "-s", "-i", offset, "::").CombinedOutput(); err != nil || !strings.Contains(string(out), "config-2") {
		t.Errorf("mlabel: %v: %s", err, out)
	}
}

func TestAddSeedRefuses(t *testing.T) {
	const image = 16 * mebibyte
	seed := Seed{Label: "CIDATA", GUID: "b100e000-0000-4000-8000-000000000009", Behind: image, Files: map[string][]byte{"meta-data": []byte("x")}}
	full := opaqueDisk(t, image, image)
	// An image with data in its last block has no backup table there; the primary one is sound.
	before := bytes.Clone(full.data)
	if _, err := addSeed(full, seed); !errors.Is(err, ErrNoRoom) || !strings.Contains(err.Error(), "more are needed") {
		t.Errorf("a disk as large as the image: %v", err)
	}
	if !bytes.Equal(full.data, before) {
		t.Error("a refused disk was written to")
	}
	empty := &memoryDisk{data: make([]byte, 64*mebibyte)}
	if _, err := addSeed(empty, seed); !errors.Is(err, ErrTable) {
		t.Errorf("a disk without a table: %v", err)
	}
	for name, data := range map[string][]byte{"../up": nil, "/root": nil, "a//b": nil, "large": make([]byte, maxSeedBytes+1)} {
		bad := seed
		bad.Files = maps.Clone(seed.Files)
		bad.Files[name] = data
		if _, err := addSeed(opaqueDisk(t, image, 64*mebibyte), bad); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}
