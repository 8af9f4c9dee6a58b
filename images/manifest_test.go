package images

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func validManifest() *Manifest {
	return &Manifest{
		Format: Format, Name: "debian-12", Kind: KindDisk, Size: 3*FrameSize + SectorSize, SectorSize: SectorSize, FrameSize: FrameSize,
		Created: time.Unix(1700000000, 0).UTC(),
		OS:      OS{ID: "debian", Version: "12.1"},
		Boot:    Boot{RootPartition: 2, ESPPartition: 1, Kexec: true, Kernel: "/boot/vmlinuz"},
		Frames: []Frame{
			{Length: FrameSize, DataLength: 100, SHA256: Digest{1}, RawSHA256: Digest{2}},
			{Offset: FrameSize, Length: 2 * FrameSize, Zero: true},
			{Offset: 3 * FrameSize, Length: SectorSize, DataOffset: 100, DataLength: 50, SHA256: Digest{3}, RawSHA256: Digest{4}},
		},
	}
}

func TestManifestRoundTrip(t *testing.T) {
	m := validManifest()
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeManifest(data)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, got, cmp.AllowUnexported(Manifest{})); diff != "" {
		t.Error(diff)
	}
	if got.DataLength() != 150 {
		t.Errorf("DataLength = %d, want 150", got.DataLength())
	}
}

func TestManifestRules(t *testing.T) {
	for field, change := range map[string]func(*Manifest){
		"format":                   func(m *Manifest) { m.Format = "v2" },
		"name":                     func(m *Manifest) { m.Name = "../x" },
		"kind":                     func(m *Manifest) { m.Kind = "tar" },
		"size":                     func(m *Manifest) { m.Size = MaxDiskSize + 512 },
		"sector_size":              func(m *Manifest) { m.SectorSize = 4096 },
		"frame_size":               func(m *Manifest) { m.FrameSize = 3 << 20 },
		"boot.root_partition":      func(m *Manifest) { m.Boot.RootPartition = -1 },
		"boot.root_partition_guid": func(m *Manifest) { m.Boot.RootPartitionGUID = "x" },
		"boot.kernel":              func(m *Manifest) { m.Boot.Kernel = "boot/../x" },
		"boot.cmdline":             func(m *Manifest) { m.Boot.Cmdline = "a\nb" },
		"frames":                   func(m *Manifest) { m.Frames = m.Frames[:2] },
		"frames[1].offset":         func(m *Manifest) { m.Frames[1].Offset++ },
		"frames[1].length":         func(m *Manifest) { m.Frames[1].Length-- },
		"frames[1].zero":           func(m *Manifest) { m.Frames[1].DataLength = 1 },
		"frames[2].length":         func(m *Manifest) { m.Frames[2].Length = 1 << 62 },
		"frames[2].data_offset":    func(m *Manifest) { m.Frames[2].DataOffset = 99 },
		"frames[2].data_length":    func(m *Manifest) { m.Frames[2].DataLength = 1 << 40 },
		"frames[0].sha256":         func(m *Manifest) { m.Frames[0].SHA256 = Digest{} },
		"frames[0].raw_sha256":     func(m *Manifest) { m.Frames[0].RawSHA256 = Digest{} },
	} {
		m := validManifest()
		change(m)
		err := m.Validate()
		var got *FieldError
		if !errors.As(err, &got) || got.Field != field {
			t.Errorf("%s: error = %v", field, err)
		}
	}
}

func FuzzDecodeManifest(f *testing.F) {
	data, err := validManifest().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"format":"bloomery.image/v1","size":-1}`))
	f.Add(append(data, '{'))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeManifest(data)
		if err != nil {
			return
		}
		var end, dataEnd int64
		for _, frame := range m.Frames {
			end += frame.Length
			dataEnd += frame.DataLength
		}
		if end != m.Size || dataEnd != m.DataLength() || filepath.Base(m.Name) != m.Name {
			t.Errorf("accepted frames that end at %d and %d of %d", end, dataEnd, m.Size)
		}
		again, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := DecodeManifest(again); err != nil {
			t.Fatal(err)
		}
	})
}

func TestKeysAndSignature(t *testing.T) {
	dir := t.TempDir()
	private, public := filepath.Join(dir, "image.key"), filepath.Join(dir, "image.pub")
	if _, err := GenerateKeyFiles(private, public); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(private)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("private key has mode %v, %v; want 0600", info.Mode(), err)
	}
	if _, err := GenerateKeyFiles(private, public); !errors.Is(err, os.ErrExist) {
		t.Errorf("second GenerateKeyFiles: %v, want that the file exists", err)
	}
	key, err := LoadPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	pub, err := LoadPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := validManifest().Encode()
	if err != nil {
		t.Fatal(err)
	}
	signature, err := Sign(manifest, key)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(signature), "bloomery image debian-12") {
		t.Error("trusted comment does not name the image")
	}
	if _, err := VerifyManifest(manifest, signature, pub); err != nil {
		t.Error(err)
	}
	for name, bad := range map[string][]byte{"none": nil, "garbage": []byte("x"), "huge": make([]byte, MaxSignatureSize+1)} {
		if _, err := VerifyManifest(manifest, bad, pub); !errors.Is(err, ErrSignature) {
			t.Errorf("%s signature: %v, want ErrSignature", name, err)
		}
	}
	if _, err := VerifyManifest(manifest, signature); !errors.Is(err, ErrSignature) {
		t.Errorf("no key: %v, want ErrSignature", err)
	}
}

func TestDecodeMeta(t *testing.T) {
	meta, err := DecodeMeta([]byte(`{"os":{"id":"debian","version":"12.1"},"boot":{"root_partition":2,"kexec":true,"kernel":"/boot/vmlinuz"}}`))
	if err != nil {
		t.Fatal(err)
	}
	want := Meta{OS: OS{ID: "debian", Version: "12.1"}, Boot: Boot{RootPartition: 2, Kexec: true, Kernel: "/boot/vmlinuz"}}
	if diff := cmp.Diff(want, meta); diff != "" {
		t.Error(diff)
	}
	if meta, err := DecodeMeta([]byte(`{"kind":"rootfs","boot":{"root_stacks":["md"]}}`)); err != nil || meta.Kind != KindRootfs {
		t.Errorf("a rootfs's: %+v, %v", meta, err)
	}
	for _, bad := range []string{``, `{"os":1}`, `{"kind":"floppy"}`, `{"disk":{}}`, `{} {}`, `{"boot":{"root_partition":999}}`} {
		if _, err := DecodeMeta([]byte(bad)); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
