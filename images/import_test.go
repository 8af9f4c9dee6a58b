package images

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

func compressed(t *testing.T, kind string, disk []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	var w io.WriteCloser
	var err error
	switch kind {
	case "raw":
		return disk
	case "zstd":
		w, err = zstd.NewWriter(&out, zstd.WithEncoderLevel(zstd.SpeedFastest))
	case "gzip":
		w, err = gzip.NewWriterLevel(&out, gzip.BestSpeed)
	case "xz":
		w, err = xz.NewWriter(&out)
	}
	if err == nil {
		_, err = w.Write(disk)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestImportContainers(t *testing.T) {
	disk := testDisk(3)[4*mib : 17*mib] // data, zeros, data, zeros
	var want []byte
	for _, kind := range []string{"raw", "zstd", "gzip", "xz"} {
		t.Run(kind, func(t *testing.T) {
			input := compressed(t, kind, disk)
			out := filepath.Join(t.TempDir(), "image")
			options := ImportOptions{Name: "d", Out: out, Created: time.Unix(0, 0)}
			var in, done int64
			options.Progress = func(i, d int64) { in, done = i, d }
			m, err := Import(t.Context(), bytes.NewReader(input), options)
			if err != nil {
				t.Fatal(err)
			}
			manifest, err := os.ReadFile(filepath.Join(out, ManifestFile))
			if err != nil {
				t.Fatal(err)
			}
			if want == nil {
				want = manifest
			}
			if !bytes.Equal(manifest, want) {
				t.Error("the manifest differs from that of the raw disk")
			}
			if done != int64(len(disk)) || in == 0 || in > int64(len(input)) {
				t.Errorf("progress ended at %d of input, %d of disk", in, done)
			}
			data, err := os.ReadFile(filepath.Join(out, DataFile))
			if err != nil {
				t.Fatal(err)
			}
			device := newFakeDevice(len(disk))
			if _, err := Write(t.Context(), WriteOptions{Manifest: m, Source: &memorySource{data: data}, Device: device}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(device.disk, disk) {
				t.Error("the disk differs")
			}
		})
	}
}

func TestImportRefusals(t *testing.T) {
	disk := testDisk(4)[4*mib : 10*mib]
	type refusal struct {
		input []byte
		limit int64
		want  string
	}
	cases := map[string]refusal{
		"odd size":  {disk[:1000], 0, "not a multiple of 512"},
		"empty":     {nil, 0, "empty"},
		"qcow2":     {[]byte("QFI\xfb 123"), 0, "qcow2"},
		"bomb":      {compressed(t, "zstd", make([]byte, 40*mib)), 10 * mib, "byte 10485760"},
		"gzip bomb": {compressed(t, "gzip", make([]byte, 40*mib)), 10 * mib, "byte 10485760"},
	}
	for _, kind := range []string{"zstd", "gzip", "xz"} {
		whole := compressed(t, kind, disk)
		cases["truncated "+kind] = refusal{whole[:len(whole)*2/3], 0, "unexpected EOF"}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			parent := t.TempDir()
			_, err := Import(t.Context(), bytes.NewReader(tc.input), ImportOptions{Name: "d", Out: filepath.Join(parent, "i"), MaxSize: tc.limit})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q in it", err, tc.want)
			}
			left, err := os.ReadDir(parent)
			if err != nil || len(left) != 0 {
				t.Errorf("%d things were left, %v", len(left), err)
			}
		})
	}
}

func TestImportCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	parent := t.TempDir()
	_, err := Import(ctx, bytes.NewReader(testDisk(1)), ImportOptions{Name: "d", Out: filepath.Join(parent, "i")})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error = %v, want canceled", err)
	}
}

func TestXZDictionaryLimit(t *testing.T) {
	input := compressed(t, "xz", make([]byte, 4096))
	// The stream header has 12 bytes, the block header's size and flags 2, the filter's id and size 2.
	if input[14] != 0x21 {
		t.Fatalf("unexpected block header % x", input[12:20])
	}
	input[16] = 40
	_, err := Import(t.Context(), bytes.NewReader(input), ImportOptions{Name: "d", Out: filepath.Join(t.TempDir(), "i")})
	if err == nil || !strings.Contains(err.Error(), "dictionary") {
		t.Errorf("error = %v, want one about the dictionary", err)
	}
}
