package partition

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"bloomery/internal/run"
)

// memoryDisk is a disk in memory.
type memoryDisk struct{ data []byte }

func (m *memoryDisk) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.data).ReadAt(p, off)
}
func (m *memoryDisk) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > int64(len(m.data)) {
		return 0, io.ErrShortWrite
	}
	return copy(m.data[off:], p), nil
}
func (m *memoryDisk) Size() int64     { return int64(len(m.data)) }
func (m *memoryDisk) SectorSize() int { return 512 }
func (m *memoryDisk) Drop() error     { return nil }
func (m *memoryDisk) Sync() error     { return nil }

func fullDisk(mib int) *memoryDisk {
	return &memoryDisk{data: bytes.Repeat([]byte{0xa5}, mib*mebibyte)}
}

func TestPartitionPath(t *testing.T) {
	for dev, want := range map[string]string{"/dev/vda": "/dev/vda2", "/dev/nvme0n1": "/dev/nvme0n1p2", "/dev/loop7": "/dev/loop7p2", "/dev/md126": "/dev/md126p2"} {
		if got := PartitionPath(dev, 2); got != want {
			t.Errorf("PartitionPath(%s, 2) = %s, want %s", dev, got, want)
		}
	}
}

// image makes a disk image with an ESP (1) and a root (2), as sgdisk writes them, then gives it the size of the disk.
func image(t *testing.T, tableMiB, diskMiB int) string {
	t.Helper()
	if _, err := exec.LookPath("sgdisk"); err != nil {
		t.Skip("sgdisk is not installed (Debian package gdisk)")
	}
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(tableMiB)*mebibyte); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sgdisk", "-n", "1:2048:+8M", "-t", "1:ef00", "-n", "2:0:0", "-c", "2:root", "-A", "2:set:2",
		"-u", "2:11111111-2222-3333-4444-555555555555", path).CombinedOutput()
	if err != nil {
		t.Fatalf("sgdisk: %v: %s", err, out)
	}
	if err := os.Truncate(path, int64(diskMiB)*mebibyte); err != nil {
		t.Fatal(err)
	}
	return path
}

func readImage(t *testing.T, path string) *memoryDisk {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return &memoryDisk{data: data}
}

func TestGrowTable(t *testing.T) {
	path := image(t, 40, 80)
	m := readImage(t, path)
	result, info, err := growTable(m, 2)
	if err != nil {
		t.Fatal(err)
	}
	if want := (GrowResult{BytesBefore: 40*mebibyte - 9*mebibyte - 33*512, BytesAfter: 70 * mebibyte}); result != want {
		t.Errorf("got %+v, want %+v", result, want)
	}
	if info.GUID != "11111111-2222-3333-4444-555555555555" || info.Type != "0fc63daf-8483-4772-8e79-3d69d8477de4" {
		t.Errorf("partition is called %s of type %s", info.GUID, info.Type)
	}
	once := bytes.Clone(m.data)
	if _, _, err := growTable(m, 2); err != nil || !bytes.Equal(once, m.data) {
		t.Errorf("growing again: error %v, changed %v", err, !bytes.Equal(once, m.data))
	}
	if err := os.WriteFile(path, m.data, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("sgdisk", "-v", "-i", "2", path).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "No problems found") || !strings.Contains(string(out), "Partition name: 'root'") || !strings.Contains(string(out), "Attribute flags: 0000000000000004") {
		t.Errorf("sgdisk does not like the grown table: %v\n%s", err, out)
	}
	backup := &table{sectorSize: 512, header: m.data[len(m.data)-512:]}
	if string(backup.header[:8]) != "EFI PART" || backup.headerSum() != backup.u32(16) {
		t.Error("no sound backup table at the disk's end")
	}
	if span := binary.LittleEndian.Uint32(m.data[446+12:]); span != 80*2048-1 {
		t.Errorf("the protective MBR spans %d sectors of %d", span, 80*2048-1)
	}
}

// What the growth does not mean to change stays byte for byte: every entry but one field, all of the header but what a larger disk changes.
func TestGrowTableKeepsTheRest(t *testing.T) {
	path := image(t, 40, 80)
	m := readImage(t, path)
	binary.LittleEndian.PutUint64(m.data[1024+128+48:], 1<<63|1<<60|5) // attributes of the type's own
	copy(m.data[1024+128+56:], []byte{0x3c, 0xd8, 0x31, 0xdf})         // a name outside the first plane
	sealLoosely(m.data)
	want := bytes.Clone(m.data[:34*512])
	if _, _, err := growTable(m, 2); err != nil {
		t.Fatal(err)
	}
	got := bytes.Clone(m.data[:34*512])
	if !bytes.Equal(got[1024:], m.data[len(m.data)-33*512:len(m.data)-512]) {
		t.Error("the backup's entries are not the primary's")
	}
	for _, field := range [][2]int{{446 + 12, 4}, {512 + 16, 4}, {512 + 32, 8}, {512 + 48, 8}, {512 + 88, 4}, {1024 + 128 + 40, 8}} {
		clear(want[field[0] : field[0]+field[1]])
		clear(got[field[0] : field[0]+field[1]])
	}
	for i := range want {
		if want[i] != got[i] {
			t.Fatalf("byte %d was %02x and is %02x", i, want[i], got[i])
		}
	}
}

// A growth that was interrupted between the table and the protective MBR is completed.
func TestGrowTableRepairsMBR(t *testing.T) {
	m := readImage(t, image(t, 40, 40))
	binary.LittleEndian.PutUint32(m.data[446+12:], 99)
	if _, _, err := growTable(m, 2); err != nil {
		t.Fatal(err)
	}
	if _, _, err := growTable(m, 2); err != nil {
		t.Fatal(err)
	}
	if span := binary.LittleEndian.Uint32(m.data[446+12:]); span != 40*2048-1 {
		t.Errorf("the protective MBR spans %d sectors", span)
	}
}

func TestGrowTableRefuses(t *testing.T) {
	path := image(t, 40, 80)
	for _, c := range []struct {
		name      string
		partition int
		change    func([]byte)
		want      string
	}{
		{"not the last", 1, func([]byte) {}, "not the last one"},
		{"not there", 3, func([]byte) {}, "no partition 3"},
		{"far out", 99999, func([]byte) {}, "no partition 99999"},
		{"flipped header", 2, func(b []byte) { b[512+50] ^= 1 }, "checksum of the header"},
		{"flipped entry", 2, func(b []byte) { b[1024+128+40] ^= 1 }, "checksum of the entries"},
		{"no table", 2, func(b []byte) { clear(b[512:1024]) }, "no signature"},
		{"name with a tail", 2, func(b []byte) { b[1024+128+56+40] = 1; sealLoosely(b) }, "name of partition 2"},
		{"name of half a pair", 2, func(b []byte) { b[1024+128+57] = 0xd8; sealLoosely(b) }, "name of partition 2"},
		{"odd revision", 2, func(b []byte) { b[512+8] = 1; sealLoosely(b) }, "Revision"},
		{"129 entries", 2, func(b []byte) { b[512+80] = 129; b[512+40] = 64; sealLoosely(b) }, "129 entries"},
		{"entries elsewhere", 2, func(b []byte) {
			copy(b[3*512:35*512], bytes.Clone(b[2*512:34*512]))
			b[512+72], b[512+40] = 3, 64
			sealLoosely(b)
		}, "begin in sector 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := readImage(t, path)
			c.change(m.data)
			before := bytes.Clone(m.data)
			_, _, err := growTable(m, c.partition)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if !bytes.Equal(before, m.data) {
				t.Error("the disk was changed")
			}
		})
	}
}

func FuzzReadTable(f *testing.F) {
	sector := make([]byte, 512)
	t := &table{sectorSize: 512, header: sector, entries: make([]byte, 128*128)}
	copy(sector, "EFI PART")
	binary.LittleEndian.PutUint32(sector[12:], 92)
	for off, v := range map[int]uint64{24: 1, 32: 2047, 40: 34, 48: 2014, 72: 2} {
		binary.LittleEndian.PutUint64(sector[off:], v)
	}
	binary.LittleEndian.PutUint32(sector[80:], 128)
	binary.LittleEndian.PutUint32(sector[84:], 128)
	t.entries[0] = 1
	binary.LittleEndian.PutUint64(t.entries[32:], 40)
	binary.LittleEndian.PutUint64(t.entries[40:], 50)
	t.seal()
	f.Add(bytes.Clone(sector), bytes.Clone(t.entries), uint32(2048), true)
	f.Add([]byte("EFI PART"), []byte{}, uint32(100), true)
	f.Fuzz(func(t *testing.T, header, entries []byte, diskSectors uint32, fix bool) {
		data := make([]byte, int(diskSectors%8192)*512)
		if len(data) > 1024 {
			copy(data[512:1024], header)
			copy(data[1024:], entries)
			if fix {
				sealLoosely(data)
			}
		}
		m := &memoryDisk{data: data}
		if _, err := readTable(m, m.Size(), 512); err != nil {
			return
		}
		for n := range 4 {
			if _, info, err := growTable(m, n); err == nil && (info.FirstLBA+info.Sectors)*512 > uint64(len(data)) {
				t.Fatalf("partition %d reaches beyond the disk: %+v", n, info)
			}
		}
		for _, span := range Spans(m, m.Size(), 512) {
			if span.Start < 0 || span.Size <= 0 || span.Start+span.Size > m.Size() {
				t.Fatalf("a partition at %+v on a disk of %d bytes", span, m.Size())
			}
		}
	})
}

// sealLoosely makes checksums right so that the fuzzer comes past them.
func sealLoosely(data []byte) {
	t := &table{sectorSize: 512, header: data[512:1024]}
	size := int(t.u32(80)) * int(t.u32(84))
	at := t.u64(72) * 512
	if t.u32(12) < 92 || t.u32(12) > 512 || size <= 0 || at > uint64(len(data)) || size > len(data)-int(at) {
		return
	}
	t.entries = data[at : int(at)+size]
	t.seal()
}

// loop attaches an image to a loop device with partitions, and skips where that cannot be done.
func loop(t *testing.T, path string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	out, err := exec.Command("losetup", "--find", "--show", "--partscan", path).CombinedOutput()
	if err != nil {
		t.Skipf("no loop device can be had: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "-d", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup -d %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

func TestFilesystemOnLoopDevice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 256*mebibyte); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", path, "64M").CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	dev := loop(t, path)
	disks := Disks{Runner: run.Exec{}}
	for range 2 {
		if err := disks.growFilesystem(t.Context(), dev, "ext4"); err != nil {
			t.Fatal(err)
		}
	}
	err := disks.WithMount(t.Context(), dev, func(root string) error {
		var stat unix.Statfs_t
		if err := unix.Statfs(root, &stat); err != nil {
			return err
		}
		if size := int64(stat.Blocks) * stat.Bsize; size < 200*mebibyte {
			t.Errorf("the filesystem has %d bytes after the growth", size)
		}
		if _, err := disks.Open(dev, true); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), root) {
			t.Errorf("a mounted disk opened exclusively: %v, want ErrInUse and the mount point", err)
		}
		return os.WriteFile(filepath.Join(root, "kept"), []byte("yes"), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("e2fsck", "-f", "-n", dev).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

func TestInfoOfLoopDevice(t *testing.T) {
	dev := loop(t, image(t, 64, 256))
	disks := Disks{Runner: run.Exec{}}
	if _, _, err := func() (GrowResult, Info, error) {
		b, err := disks.Open(dev, false)
		if err != nil {
			return GrowResult{}, Info{}, err
		}
		defer b.Close()
		return growTable(b, 2)
	}(); err != nil {
		t.Fatal(err)
	}
	info, err := PartitionInfo(dev, 2)
	if err != nil {
		t.Fatal(err)
	}
	want := Info{Number: 2, FirstLBA: 18432, Sectors: 246 * 2048, SectorSize: 512, GUID: "11111111-2222-3333-4444-555555555555", Type: "0fc63daf-8483-4772-8e79-3d69d8477de4"}
	if diff := cmp.Diff(want, info); diff != "" {
		t.Error(diff)
	}
}

// seal makes a table's checksums right.
func (t *table) seal() {
	binary.LittleEndian.PutUint32(t.header[88:], crc32.ChecksumIEEE(t.entries))
	binary.LittleEndian.PutUint32(t.header[16:], t.headerSum())
}
