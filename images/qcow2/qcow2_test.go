package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const mib = 1 << 20

// disk makes a raw disk of so many bytes: text that compresses, noise that does not, zeros, and data in its last bytes.
func disk(size int64) []byte {
	random := rand.NewChaCha8([32]byte{1})
	raw := make([]byte, size)
	for at := int64(0); at < size; at += 256 << 10 {
		part := raw[at:min(at+100<<10, size)]
		switch at / (256 << 10) % 4 {
		case 0:
			_, _ = random.Read(part) // never fails
		case 1:
			copy(part, bytes.Repeat([]byte("bloomery makes iron of ore. "), len(part)/28+1))
		}
	}
	copy(raw[size-11:], "the very end")
	return raw
}

func qemuImg(t testing.TB, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), "qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// made converts a raw disk with qemu-img and returns the file's path.
func made(t testing.TB, raw []byte, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	source, out := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	if err := os.WriteFile(source, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), source, out)...)
	return out
}

func readAll(t testing.TB, file []byte) ([]byte, error) {
	t.Helper()
	i, err := Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return nil, err
	}
	defer i.Close()
	if _, err := i.Check(t.Context()); err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(i, 0, i.Size()))
}

// TestLikeQEMU reads every kind of file that qemu-img makes as qemu-img does.
func TestLikeQEMU(t *testing.T) {
	raw := disk(9*mib + 5*512)
	for name, args := range map[string][]string{
		"version 2":                {"-o", "compat=0.10"},
		"version 2, zlib":          {"-c", "-o", "compat=0.10"},
		"version 3":                {"-o", "compat=1.1"},
		"zlib":                     {"-c"},
		"zstd":                     {"-c", "-o", "compression_type=zstd"},
		"lazy refcounts":           {"-o", "lazy_refcounts=on"},
		"refcounts of one bit":     {"-o", "refcount_bits=1"},
		"clusters of 512":          {"-o", "cluster_size=512"},
		"clusters of 512, zlib":    {"-c", "-o", "cluster_size=512"},
		"clusters of 4 KiB, zstd":  {"-c", "-o", "cluster_size=4k,compression_type=zstd"},
		"clusters of 2 MiB":        {"-o", "cluster_size=2M"},
		"clusters of 2 MiB, zlib":  {"-c", "-o", "cluster_size=2M"},
		"clusters of 2 MiB, zstd":  {"-c", "-o", "cluster_size=2M,compression_type=zstd"},
		"metadata preallocated":    {"-o", "preallocation=metadata"},
		"all preallocated":         {"-o", "preallocation=full"},
		"not sparse":               {"-S", "0"},
		"zstd of what is not used": {"-c", "-S", "0", "-o", "compression_type=zstd"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file, err := os.ReadFile(made(t, raw, args...))
			if err != nil {
				t.Fatal(err)
			}
			got, err := readAll(t, file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, raw) {
				t.Error("the disk differs from what qemu-img was given")
			}
		})
	}
}

// TestAfterUse reads a file in which zero clusters were made and a snapshot was taken before it was written to again.
func TestAfterUse(t *testing.T) {
	raw := disk(4 * mib)
	for name, compat := range map[string]string{"version 2": "0.10", "version 3": "1.1"} {
		t.Run(name, func(t *testing.T) {
			path := made(t, raw, "-o", "compat="+compat)
			qemuImg(t, "snapshot", "-c", "before", path)
			write(t, path, "write -P 0x41 0 100k", "write -z 1M 512k", "write -P 0x42 1536k 3k", "discard 3M 64k")
			want := filepath.Join(t.TempDir(), "want")
			qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", path, want)
			wanted, err := os.ReadFile(want)
			if err != nil {
				t.Fatal(err)
			}
			file, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got, err := readAll(t, file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, wanted) || bytes.Equal(got, raw) {
				t.Error("the disk differs from what qemu-img reads")
			}
		})
	}
}

func write(t testing.TB, path string, commands ...string) {
	t.Helper()
	args := []string{"-f", "qcow2"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if out, err := exec.CommandContext(t.Context(), "qemu-io", append(args, path)...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-io: %v\n%s", err, out)
	}
}

// TestReadAt reads parts across clusters and at the disk's end.
func TestReadAt(t *testing.T) {
	raw := disk(3*mib + 512)
	file, err := os.ReadFile(made(t, raw, "-c", "-o", "cluster_size=4k"))
	if err != nil {
		t.Fatal(err)
	}
	i, err := Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	defer i.Close()
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		at, n := random.Int64N(i.Size()), random.IntN(20000)
		got := make([]byte, n)
		read, err := i.ReadAt(got, at)
		want := raw[at:min(at+int64(n), i.Size())]
		if !bytes.Equal(got[:read], want) || (err == io.EOF) != (len(want) < n) {
			t.Fatalf("ReadAt(%d bytes, %d) = %d, %v, or other bytes", n, at, read, err)
		}
	}
	if _, err := i.ReadAt(make([]byte, 1), i.Size()); err != io.EOF {
		t.Errorf("after the end: %v", err)
	}
	if got := i.Fetched(); got == 0 {
		t.Error("nothing was fetched")
	}
}

func TestRefusals(t *testing.T) {
	base := made(t, disk(mib))
	options := func(args ...string) []byte {
		path := filepath.Join(t.TempDir(), "odd")
		qemuImg(t, append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "1M")...)
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	sound, err := os.ReadFile(base)
	if err != nil {
		t.Fatal(err)
	}
	word := func(at int, value uint64, width int) []byte {
		file := bytes.Clone(sound)
		if width == 4 {
			binary.BigEndian.PutUint32(file[at:], uint32(value))
		} else {
			binary.BigEndian.PutUint64(file[at:], value)
		}
		return file
	}
	l1 := int(binary.BigEndian.Uint64(sound[40:]))
	l2 := int(binary.BigEndian.Uint64(sound[l1:]) & offsetMask)
	data := binary.BigEndian.Uint64(sound[l2:])
	for name, tc := range map[string]struct {
		file []byte
		kind error
		want string
	}{
		"backing file":           {options("-b", base, "-F", "qcow2"), ErrUnsupported, "byte 8 of the file: the image needs a backing file"},
		"external data":          {options("-o", "data_file="+filepath.Join(t.TempDir(), "data")), ErrUnsupported, "another file"},
		"extended L2":            {options("-o", "extended_l2=on"), ErrUnsupported, "extended L2"},
		"encrypted":              {word(32, 2, 4), ErrUnsupported, "byte 32 of the file: the disk is encrypted"},
		"encryption's extension": {word(112, extensionEncryption, 4), ErrUnsupported, "byte 112 of the file: the disk is encrypted"},
		"not one":                {[]byte(strings.Repeat("no qcow2 ", 20)), ErrCorrupt, "byte 0"},
		"cut in the header":      {sound[:60], ErrCorrupt, "byte 60"},
		"cut after 72":           {sound[:80], ErrCorrupt, "byte 80"},
		"cut in the L1 table":    {sound[:l1+4], ErrCorrupt, "L1 table"},
		"cut in an L2 table":     {sound[:l2+100], ErrCorrupt, "L2 table"},
		"cut in the data":        {sound[:len(sound)-100<<10], ErrCorrupt, "after the file's end"},
		"version 4":              {word(4, 4, 4), ErrUnsupported, "byte 4 of the file: version 4"},
		"tiny clusters":          {word(20, 8, 4), ErrCorrupt, "cluster_bits"},
		"huge clusters":          {word(20, 22, 4), ErrCorrupt, "cluster_bits"},
		"no disk":                {word(24, 0, 8), ErrCorrupt, "no bytes"},
		"huge disk":              {word(24, 1<<63, 8), ErrCorrupt, "size"},
		"disk beyond L1":         {word(24, 1<<40, 8), ErrCorrupt, "L1 table has 1 entries"},
		"huge L1":                {word(36, 1<<31, 4), ErrUnsupported, "L1 table"},
		"L1 after the end":       {word(40, 1<<40, 8), ErrCorrupt, "after the file's end"},
		"L1 askew":               {word(40, 8, 8), ErrCorrupt, "L1 table"},
		"unknown feature":        {word(72, 1<<40, 8), ErrUnsupported, "0x10000000000"},
		"marked corrupt":         {word(72, featureCorrupt, 8), ErrCorrupt, "qemu-img check"},
		"zstd without its bit":   {word(104, 1<<56, 8), ErrCorrupt, "do not agree"},
		"compression 9":          {word(104, 9<<56, 8), ErrUnsupported, "compression type 9"},
		"header length":          {word(100, 100, 4), ErrCorrupt, "header_length"},
		"extension too long":     {word(116, 1<<31, 4), ErrCorrupt, "extension"},
		"L2 in the header":       {word(l1, 1<<63, 8), nil, ""}, // no offset: nothing is allocated
		"L2 askew":               {word(l1, uint64(l2+512), 8), ErrCorrupt, "not that of a cluster"},
		"L2 is the L1 table":     {word(l1, uint64(l1), 8), ErrCorrupt, "another use"},
		"L1 reserved":            {word(l1, uint64(l2)|1, 8), ErrCorrupt, "reserved"},
		"L2 reserved":            {word(l2, data|1<<57, 8), ErrCorrupt, "reserved"},
		"data askew":             {word(l2, data+512, 8), ErrCorrupt, "not that of a cluster"},
		"data after the end":     {word(l2, data+1<<40, 8), ErrCorrupt, "not in the file"},
		"data in a table":        {word(l2, uint64(l2), 8), ErrCorrupt, "another use"},
		"data twice":             {word(l2+8, data, 8), ErrCorrupt, "another use"},
		"compressed at 0":        {word(l2, flagCompressed, 8), ErrCorrupt, "compressed"},
		"compressed at the end":  {word(l2, flagCompressed|0xff<<54|uint64(len(sound)-10), 8), ErrCorrupt, "after the file's end"},
		"compressed is no zlib":  {word(l2, flagCompressed|data&offsetMask, 8), ErrCorrupt, "decompressing"},
		"dirty is no hindrance":  {word(72, featureDirty, 8), nil, ""},
		"unknown autoclear bits": {word(88, 1<<40, 8), nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readAll(t, tc.file)
			if tc.kind == nil && err != nil || tc.kind != nil && !errors.Is(err, tc.kind) {
				t.Fatalf("error = %v, want %v", err, tc.kind)
			}
			var where *Error
			if err != nil && (!errors.As(err, &where) || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error = %v, want one of this package with %q in it", err, tc.want)
			}
		})
	}
	version2, err := os.ReadFile(made(t, disk(mib), "-o", "compat=0.10"))
	if err != nil {
		t.Fatal(err)
	}
	binary.BigEndian.PutUint64(version2[l2:], flagZero)
	if _, err := readAll(t, version2); !errors.Is(err, ErrCorrupt) {
		t.Errorf("zero cluster in version 2: %v", err)
	}
}

// TestBombs are small files that claim to be large disks.
func TestBombs(t *testing.T) {
	raw := disk(8 * mib)
	plain, err := os.ReadFile(made(t, raw, "-o", "cluster_size=4k"))
	if err != nil {
		t.Fatal(err)
	}
	l1 := int(binary.BigEndian.Uint64(plain[40:]))
	table := binary.BigEndian.Uint64(plain[l1:])
	for n := range 4 {
		binary.BigEndian.PutUint64(plain[l1+8*n:], table)
	}
	if _, err := readAll(t, plain); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "another use") {
		t.Errorf("one L2 table many times: %v", err)
	}

	packed, err := os.ReadFile(made(t, raw, "-c", "-o", "cluster_size=4k"))
	if err != nil {
		t.Fatal(err)
	}
	l1 = int(binary.BigEndian.Uint64(packed[40:]))
	table = binary.BigEndian.Uint64(packed[l1:]) & offsetMask
	const text = 256 << 10 >> 12 // the first cluster of text
	one := binary.BigEndian.Uint64(packed[table+8*text:])
	if one&flagCompressed == 0 {
		t.Fatalf("the cluster of text is not compressed: %#x", one)
	}
	for n := range 4 {
		table := binary.BigEndian.Uint64(packed[l1+8*n:]) & offsetMask
		for slot := range uint64(512) {
			binary.BigEndian.PutUint64(packed[table+8*slot:], one|7<<58) // 8 sectors each
		}
	}
	if _, err := readAll(t, packed); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "used twice") {
		t.Errorf("one compressed cluster many times: %v", err)
	}
}

// TestSpoilt flips bytes and cuts files at random. Nothing panics; what is returned without an error has the disk's size; and a change of the
// tables is either seen or gives a disk of which whole clusters changed.
func TestSpoilt(t *testing.T) {
	raw := disk(2 * mib)
	for name, args := range map[string][]string{"plain": nil, "zlib": {"-c"}, "zstd": {"-c", "-o", "compression_type=zstd"}} {
		t.Run(name, func(t *testing.T) {
			sound, err := os.ReadFile(made(t, raw, args...))
			if err != nil {
				t.Fatal(err)
			}
			random := rand.New(rand.NewPCG(3, 4))
			for round := range 300 {
				file := bytes.Clone(sound)
				if round%2 == 0 {
					// A cut file is always found out: the table's last entries or the last data is missing.
					if cut := random.IntN(len(file) - 4096); cut < len(file) {
						file = file[:cut]
					}
					if _, err := readAll(t, file); err == nil {
						t.Fatalf("round %d: a file cut to %d of %d bytes was read", round, len(file), len(sound))
					}
					continue
				}
				for range 1 + random.IntN(4) {
					at := random.IntN(len(file))
					if random.IntN(2) == 0 {
						at = random.IntN(512)
					}
					file[at] ^= byte(1 + random.IntN(255))
				}
				i, err := Open(bytes.NewReader(file), int64(len(file)))
				if err != nil {
					continue
				}
				if i.Size() > 1<<30 {
					i.Close()
					continue
				}
				i.Close()
				if got, err := readAll(t, file); err == nil && int64(len(got)) != i.Size() {
					t.Fatalf("round %d: %d bytes of %d and no error", round, len(got), i.Size())
				}
			}
		})
	}
}

func FuzzImage(f *testing.F) {
	raw := disk(300 << 10)
	for _, args := range [][]string{{"-o", "cluster_size=512"}, {"-o", "compat=0.10,cluster_size=4k"}, {"-c", "-o", "cluster_size=4k"},
		{"-c", "-o", "cluster_size=4k,compression_type=zstd"}} {
		file, err := os.ReadFile(made(f, raw, args...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(file)
		f.Add(file[:len(file)/2])
	}
	f.Fuzz(func(t *testing.T, file []byte) {
		i, err := Open(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return
		}
		defer i.Close()
		if i.Size() > 16*mib {
			return
		}
		found, err := i.Check(t.Context())
		if err != nil {
			return
		}
		if clusters := (i.Size()-1)>>i.header.clusterBits + 1; found.Plain+found.Packed+found.Zero != clusters {
			t.Fatalf("%+v are not %d clusters", found, clusters)
		}
		// What Check lets through can fail in decompression only.
		n, err := io.Copy(io.Discard, io.NewSectionReader(i, 0, i.Size()))
		if err == nil && n != i.Size() || err != nil && found.Packed == 0 {
			t.Fatalf("read %d of %d bytes: %v", n, i.Size(), err)
		}
	})
}
