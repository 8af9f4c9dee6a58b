package images

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"bloomery/images/qcow2"
)

func compressed(t testing.TB, kind string, disk []byte) []byte {
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
	case "bzip2":
		bzip2 := exec.CommandContext(t.Context(), "bzip2", "-1")
		bzip2.Stdin, bzip2.Stdout = bytes.NewReader(disk), &out
		if err := bzip2.Run(); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	case "qcow2":
		return qcow2File(t, disk)
	case "qcow2.gz":
		return compressed(t, "gzip", qcow2File(t, disk))
	}
	if err == nil {
		_, err = w.Write(disk)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func qcow2File(t testing.TB, disk []byte) []byte {
	t.Helper()
	dir := t.TempDir()
	raw, out := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if err := os.WriteFile(raw, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, out).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img: %v\n%s", err, text)
	}
	file, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestImportContainers(t *testing.T) {
	disk := testDisk(3)[4*mib : 17*mib] // data, zeros, data, zeros
	var want []byte
	for _, kind := range []string{"raw", "zstd", "gzip", "xz", "bzip2", "qcow2", "qcow2.gz"} {
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
			if done != int64(len(disk)) || in == 0 || in > int64(len(input)) && kind != "qcow2.gz" {
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
		"bad qcow2": {[]byte("QFI\xfb 123"), 0, "qcow2 at byte 8"},
		"bomb":      {compressed(t, "zstd", make([]byte, 40*mib)), 10 * mib, "byte 10485760"},
		"gzip bomb": {compressed(t, "gzip", make([]byte, 40*mib)), 10 * mib, "byte 10485760"},
	}
	whole := qcow2File(t, disk)
	cases["large qcow2"] = refusal{whole, 5 * mib, "more than the limit of 5242880"}
	cases["long qcow2"] = refusal{append(whole[:len(whole):len(whole)], make([]byte, 9*mib)...), 6 * mib, "goes on at byte 8126464"}
	cases["truncated qcow2"] = refusal{whole[:len(whole)*2/3], 0, "after the file's end"}
	at := func(offset int, magic string) []byte {
		return append(append(make([]byte, offset), magic...), make([]byte, 2048-offset-len(magic))...)
	}
	cases["VMDK"] = refusal{at(0, "KDMV"), 0, "VMDK file, which is not read; make a raw or qcow2 one"}
	cases["VHDX"] = refusal{at(0, "vhdxfile"), 0, "VHDX"}
	cases["dynamic VHD"] = refusal{at(0, "conectix"), 0, "VHD"}
	cases["fixed VHD"] = refusal{at(1536, "conectix"), 0, "VHD"}
	cases["VDI"] = refusal{at(64, "\x7f\x10\xda\xbe"), 0, "VDI"}
	cases["tar"] = refusal{at(257, "ustar"), 0, `"kind": "rootfs"`}
	cases["zip"] = refusal{at(0, "PK\x03\x04"), 0, "unpack it first"}
	cases["gzip twice"] = refusal{compressed(t, "gzip", compressed(t, "gzip", disk)), 0, "unpack it first"}
	for _, kind := range []string{"zstd", "gzip", "xz", "bzip2"} {
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

// TestImportFile reads a qcow2 where it lies, and says where it is wrong.
func TestImportFile(t *testing.T) {
	disk := testDisk(3)[4*mib : 17*mib]
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	if err := os.WriteFile(path, qcow2File(t, disk), 0o600); err != nil {
		t.Fatal(err)
	}
	importIt := func() (*Manifest, error) {
		file, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		return Import(t.Context(), file, ImportOptions{Name: "d", Out: filepath.Join(t.TempDir(), "i")})
	}
	m, err := importIt()
	if err != nil || m.Size != int64(len(disk)) {
		t.Fatalf("%+v, %v", m, err)
	}
	if err := os.Truncate(path, 100<<10); err != nil {
		t.Fatal(err)
	}
	var where *qcow2.Error
	if _, err := importIt(); !errors.As(err, &where) || where.Offset == 0 {
		t.Errorf("error = %v, want one with an offset", err)
	}
}

// TestBomb stops 100 GiB of zeros in 100 MB of gzip, early.
func TestBomb(t *testing.T) {
	var member bytes.Buffer
	w, err := gzip.NewWriterLevel(&member, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	_, writeErr := w.Write(make([]byte, 64*mib))
	if err := errors.Join(writeErr, w.Close()); err != nil {
		t.Fatal(err)
	}
	bomb := &endless{member.Bytes(), 0, 1600 * member.Len()}
	d, err := decompress(&countingReader{ctx: t.Context(), r: bomb})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	d.grace = 200 * mib
	n, err := io.Copy(io.Discard, d)
	if err == nil || !strings.Contains(err.Error(), "bomb") || n > 256*mib {
		t.Errorf("read %d bytes, %v; want it stopped early", n, err)
	}
	if d.ended() {
		t.Error("it counts as read to its end")
	}
}

// endless repeats bytes up to a length.
type endless struct {
	bytes  []byte
	at     int
	length int
}

func (e *endless) Read(p []byte) (int, error) {
	if e.at == e.length {
		return 0, io.EOF
	}
	n := copy(p, e.bytes[e.at%len(e.bytes):])
	e.at += n
	return n, nil
}

// FuzzImport gives Import any bytes.
func FuzzImport(f *testing.F) {
	disk := testDisk(4)[4*mib : 4*mib+64<<10]
	for _, kind := range []string{"raw", "gzip", "xz", "zstd"} {
		f.Add(compressed(f, kind, disk))
	}
	f.Add([]byte("BZh91AY&SY"))
	f.Add([]byte("QFI\xfb\x00\x00\x00\x03"))
	f.Fuzz(func(t *testing.T, input []byte) {
		out := filepath.Join(t.TempDir(), "i")
		m, err := Import(t.Context(), bytes.NewReader(input), ImportOptions{Name: "d", Out: out, MaxSize: 8 * mib, Workers: 1})
		if err == nil && (m.Size == 0 || m.Size > 8*mib || m.Size%SectorSize != 0) {
			t.Fatalf("an image of %d bytes", m.Size)
		}
		if _, statErr := os.Stat(out); (err == nil) != (statErr == nil) {
			t.Fatalf("error %v, and the folder: %v", err, statErr)
		}
	})
}
