package wipe

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"bloomery/internal/run"
	"bloomery/partition"
)

// memoryDisk is a disk in memory whose vices can be chosen.
type memoryDisk struct {
	data           []byte
	sector         int
	noDiscard      bool
	discardIgnored bool
	// discardKeeps is where a discard leaves things as they are.
	discardKeeps place
	writesLost   bool
	zeroIgnored  bool
	fails        error
}

func (m *memoryDisk) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.data).ReadAt(p, off)
}

func (m *memoryDisk) WriteAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0 || off+int64(len(p)) > int64(len(m.data)):
		return 0, io.ErrShortWrite
	case m.fails != nil:
		return 0, m.fails
	case m.writesLost:
		return len(p), nil
	}
	return copy(m.data[off:], p), nil
}

func (m *memoryDisk) Size() int64     { return int64(len(m.data)) }
func (m *memoryDisk) SectorSize() int { return max(m.sector, 512) }
func (m *memoryDisk) Drop() error     { return nil }

func (m *memoryDisk) Discard(off, n int64) error {
	if m.noDiscard {
		return errors.ErrUnsupported
	}
	if m.discardIgnored {
		return nil
	}
	kept := bytes.Clone(m.data[m.discardKeeps.off : m.discardKeeps.off+m.discardKeeps.n])
	clear(m.data[off : off+n])
	copy(m.data[m.discardKeeps.off:], kept)
	return nil
}

func (m *memoryDisk) ZeroOut(off, n int64) error {
	if m.fails != nil {
		return m.fails
	}
	if !m.zeroIgnored {
		clear(m.data[off : off+n])
	}
	return nil
}

// secret is a customer's data, all over a disk.
const secret = "customer's data "

func fullDisk(mib int) *memoryDisk {
	return &memoryDisk{data: bytes.Repeat([]byte(secret), mib*mebibyte/len(secret))}
}

// gone fails when any two dozen bytes of it are left: they hold the secret's beginning.
func gone(t *testing.T, data []byte) {
	t.Helper()
	if at := bytes.Index(data, []byte(secret[:8])); at >= 0 {
		t.Fatalf("%q is still there at %d", data[at:at+8], at)
	}
}

func seeded(n byte) (seed [32]byte) { seed[0] = n; return seed }

func works(method Method, clean func()) eraser {
	return eraser{method: method, sanitization: Purge, command: string(method), erase: func(_ context.Context, tick func(float64)) error {
		tick(0.5)
		clean()
		return nil
	}}
}

func TestWipe(t *testing.T) {
	for _, c := range []struct {
		name    string
		level   Level
		change  func(*memoryDisk)
		erasers func(*memoryDisk) []eraser
		virtual bool
		method  Method
		worth   Sanitization
		// passedOver holds a part of each reason.
		passedOver []string
		err        error
	}{
		{name: "quick: discards", level: Quick, method: MethodDiscard, worth: None},
		{name: "quick: cannot discard", level: Quick, change: func(m *memoryDisk) { m.noDiscard = true }, method: MethodZero, worth: Clear, passedOver: []string{"cannot discard"}},
		{name: "quick: a discard that lies", level: Quick, change: func(m *memoryDisk) { m.discardIgnored = true }, method: MethodZero, worth: Clear, passedOver: []string{"kept"}},
		{name: "quick: a discard that lies on an empty disk", level: Quick, change: func(m *memoryDisk) { m.discardIgnored = true; clear(m.data) }, method: MethodZero, worth: Clear, passedOver: []string{"kept"}},
		{name: "quick: a discard that spares a corner", level: Quick, change: func(m *memoryDisk) { m.discardKeeps = place{17 * mebibyte, 2 * mebibyte} }, method: MethodZero, worth: Clear, passedOver: []string{"kept"}},
		{name: "erase: nothing but overwriting", level: Erase, change: func(m *memoryDisk) { m.noDiscard = true }, method: MethodOverwrite, worth: Clear, passedOver: []string{"cannot discard"}},
		{name: "erase: a discard that lies", level: Erase, change: func(m *memoryDisk) { m.discardIgnored = true }, method: MethodOverwrite, worth: Clear, passedOver: []string{"kept"}},
		{name: "erase: a hypervisor's disk", level: Erase, virtual: true, method: MethodZero, worth: Clear, passedOver: []string{"proves nothing"}},
		{name: "erase: the drive's own", level: Erase, method: MethodSanitizeBlock, worth: Purge,
			erasers: func(m *memoryDisk) []eraser {
				return []eraser{works(MethodSanitizeBlock, func() { copy(m.data, bytes.Repeat([]byte{0xff}, len(m.data))) })}
			}},
		{name: "erase: the key went", level: Erase, method: MethodSanitizeCrypto, worth: Purge,
			erasers: func(m *memoryDisk) []eraser {
				e := works(MethodSanitizeCrypto, func() { read(rand.NewChaCha8(seeded(7)), m.data) })
				e.noise = true
				return []eraser{e}
			}},
		{name: "erase: a drive that lies", level: Erase, method: MethodOverwrite, worth: Clear, passedOver: []string{"kept", "kept", "proves nothing"},
			erasers: func(*memoryDisk) []eraser {
				return []eraser{works(MethodSanitizeBlock, func() {}), works(MethodFormatErase, func() {})}
			}},
		{name: "erase: a drive that gives other data", level: Erase, method: MethodOverwrite, worth: Clear, passedOver: []string{"hold data", "proves nothing"},
			erasers: func(m *memoryDisk) []eraser {
				return []eraser{works(MethodFormatErase, func() { read(rand.NewChaCha8(seeded(7)), m.data) })}
			}},
		{name: "erase: refused, failed, done", level: Erase, method: MethodATAErase, worth: Purge, passedOver: []string{"frozen", "no power"},
			erasers: func(m *memoryDisk) []eraser {
				return []eraser{
					{method: MethodATAEnhanced, refused: "frozen"},
					{method: MethodFormatErase, erase: func(context.Context, func(float64)) error { return errors.New("no power") }},
					works(MethodATAErase, func() { clear(m.data) }),
				}
			}},
		{name: "loses writes", level: Erase, change: func(m *memoryDisk) { m.writesLost = true }, worth: None, err: ErrKeepsData},
		{name: "ignores zeroing", level: Quick, change: func(m *memoryDisk) { m.noDiscard, m.zeroIgnored = true, true }, method: MethodZero, worth: None, passedOver: []string{"cannot discard"}, err: ErrKeepsData},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := fullDisk(36)
			if c.change != nil {
				c.change(m)
			}
			e := &engine{disk: m, virtual: c.virtual, seed: seeded(1)}
			if c.erasers != nil {
				e.means = func(context.Context, func(float64)) ([]eraser, error) { return c.erasers(m), nil }
			}
			result, err := e.run(t.Context(), c.level)
			if !errors.Is(err, c.err) || (err != nil) != (c.err != nil) {
				t.Fatalf("got %v, want %v", err, c.err)
			}
			if result.Method != c.method || result.Sanitization != c.worth {
				t.Errorf("%s by %q, want %s by %q", result.Sanitization, result.Method, c.worth, c.method)
			}
			if len(result.PassedOver) != len(c.passedOver) {
				t.Fatalf("passed over %+v, want %q", result.PassedOver, c.passedOver)
			}
			for i, p := range result.PassedOver {
				if !strings.Contains(p.Reason, c.passedOver[i]) {
					t.Errorf("%s was passed over since %q, want %q", p.Method, p.Reason, c.passedOver[i])
				}
			}
			if c.err != nil {
				return
			}
			gone(t, m.data)
			if v := result.Verification; v.Markers < samples/2 || v.Bytes < 2*edge || v.MetadataPlaces < 2 {
				t.Errorf("verified only %+v", v)
			}
			for _, end := range [][]byte{m.data[:edge], m.data[len(m.data)-edge:]} {
				if len(bytes.Trim(end, "\x00")) > 0 {
					t.Error("an end of the disk is not zero")
				}
			}
		})
	}
}

// A disk that is known to be clean costs only its ends.
func TestSignaturesOnly(t *testing.T) {
	m := fullDisk(64)
	m.noDiscard = true
	result, err := (&engine{disk: m, seed: seeded(1)}).run(t.Context(), Signatures)
	if err != nil {
		t.Fatal(err)
	}
	if result.Method != MethodSignatures || result.Sanitization != None || result.Overwritten >= m.Size() {
		t.Errorf("got %+v", result)
	}
	if len(bytes.Trim(m.data[:edge], "\x00"))+len(bytes.Trim(m.data[len(m.data)-edge:], "\x00")) > 0 {
		t.Error("the ends are not zero")
	}
}

func TestWipeReportsWriteErrorAndCancel(t *testing.T) {
	m := fullDisk(40)
	m.fails = errors.New("input/output error")
	for _, level := range []Level{Signatures, Quick, Erase} {
		result, err := (&engine{disk: m}).run(t.Context(), level)
		if err == nil || !strings.Contains(err.Error(), "input/output error") || result.Sanitization != None {
			t.Errorf("%s: got %v, want the device's error", level, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := (&engine{disk: fullDisk(40)}).run(ctx, Erase); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
}

// Within one piece of work progress never falls, and it ends whole.
func TestWipeProgress(t *testing.T) {
	for _, level := range []Level{Signatures, Quick, Erase} {
		var last, total int64
		message := ""
		e := &engine{disk: fullDisk(40), progress: func(done, of int64, what string) {
			if done > of || (of == total && done < last && what == message) {
				t.Errorf("%s: %q at %d of %d after %d of %d", level, what, done, of, last, total)
			}
			last, total, message = done, of, what
		}}
		if _, err := e.run(t.Context(), level); err != nil {
			t.Fatal(err)
		}
		if last != total || message != "reading back" {
			t.Errorf("%s: ended with %q at %d of %d", level, message, last, total)
		}
	}
}

func TestPatternIsTheSameInPieces(t *testing.T) {
	whole := make([]byte, 3*mebibyte)
	fill(whole, seeded(3), mebibyte)
	for _, p := range []place{{mebibyte, block}, {mebibyte + 5*block, 3 * block}, {2*mebibyte - block, 2 * block}, {4*mebibyte - block, block}} {
		piece := make([]byte, p.n)
		fill(piece, seeded(3), p.off)
		if !bytes.Equal(piece, whole[p.off-mebibyte:p.off-mebibyte+p.n]) {
			t.Errorf("the piece at %d differs", p.off)
		}
	}
}

func FuzzMetadataPlaces(f *testing.F) {
	f.Add([]byte("XFSB\x00\x00\x10\x00"), uint32(70000), false)
	f.Add(slices.Concat(make([]byte, 510), []byte{0x55, 0xaa}), uint32(33), true)
	f.Fuzz(func(t *testing.T, head []byte, sectors uint32, large bool) {
		sector := 512
		if large {
			sector = 4096
		}
		size := int64(sectors%(1<<30)+64) * int64(sector)
		places := metadataPlaces(bytes.NewReader(head), size, sector)
		seen := map[int64]bool{}
		for _, p := range places {
			if p.off < 0 || p.n <= 0 || p.off+p.n > size || p.off%int64(sector) != 0 || p.n%int64(sector) != 0 || seen[p.off] {
				t.Fatalf("place %+v on a disk of %d bytes", p, size)
			}
			seen[p.off] = true
		}
		if len(places) == 0 || places[len(places)-1].off != 0 {
			t.Fatal("the disk's beginning does not come last")
		}
		for _, p := range samplePlaces(size, seeded(1)) {
			if p.off < 0 || p.n <= 0 || p.off+p.n > size || p.off%block != 0 {
				t.Fatalf("sample %+v on a disk of %d bytes", p, size)
			}
		}
	})
}

// Every copy of the superblock that mkfs.ext4 makes lies in a place.
func TestMetadataPlacesCoverExt4(t *testing.T) {
	const size = 1200 * mebibyte
	path := filepath.Join(t.TempDir(), "disk.img")
	truncate(t, path, size)
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	places, copies := metadataPlaces(f, size, 512), 0
	sector := make([]byte, 512)
	for off := int64(0); off < size; off += 512 {
		if off%block == 0 {
			// Most of the file is a hole.
			if off, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA); err != nil {
				break
			}
		}
		if _, err := f.ReadAt(sector, off); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(sector[56:58], []byte{0x53, 0xef}) {
			continue
		}
		copies++
		if !covered(places, off) {
			t.Errorf("the superblock at %d is in no place", off)
		}
	}
	if copies < 1+5 { // groups 1, 3, 5, 7 and 9 of 128 MiB
		t.Errorf("found only %d superblocks", copies)
	}
}

func TestMetadataPlacesCoverCopies(t *testing.T) {
	xfs := make([]byte, block)
	copy(xfs, "XFSB")
	binary.BigEndian.PutUint32(xfs[4:], 4096)
	binary.BigEndian.PutUint32(xfs[84:], 25600) // groups of 100 MiB
	binary.BigEndian.PutUint32(xfs[88:], 40)
	const size = 300 * gibibyte
	for name, c := range map[string]struct {
		head []byte
		at   []int64
	}{
		"md 0.90, at most 128 KiB from the end": {nil, []int64{size - 128*kibibyte, size - 64*kibibyte}},
		"md 1.0, DDF, IMSM":                     {nil, []int64{size - 12*kibibyte, size - 1024, size - 512}},
		"md 1.1 and 1.2, LVM, LUKS":             {nil, []int64{0, 4096, 512, 4 * mebibyte}},
		"GPT and its backup":                    {nil, []int64{512, 1024, size - 33*512, size - 512}},
		"btrfs":                                 {nil, []int64{64 * kibibyte, 64 * mebibyte, 256 * gibibyte}},
		"ZFS":                                   {nil, []int64{0, 256 * kibibyte, size - 512*kibibyte, size - 256*kibibyte}},
		"XFS":                                   {xfs, []int64{0, 100 * mebibyte, 3900 * mebibyte}},
	} {
		places := metadataPlaces(bytes.NewReader(c.head), size, 512)
		for _, off := range c.at {
			if !covered(places, off) {
				t.Errorf("%s: %d is in no place", name, off)
			}
		}
	}
}

func covered(places []place, off int64) bool {
	return slices.ContainsFunc(places, func(p place) bool { return off >= p.off && off < p.off+p.n })
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// loop attaches a file to a loop device, and skips where that cannot be done.
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

// Must hold: a pattern all over a block device, then a wipe, and no byte of it is found in a scan of the whole.
func TestWipeOfLoopDevice(t *testing.T) {
	for _, c := range []struct {
		level     Level
		transport string
		method    Method
	}{{Quick, "", MethodDiscard}, {Erase, "", MethodOverwrite}, {Erase, "virtio", MethodZero}} {
		t.Run(string(c.level)+" "+c.transport, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "disk.img")
			if err := os.WriteFile(path, fullDisk(40).data, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("sgdisk", "-n", "1:2048:+8M", "-n", "2:0:0", path).CombinedOutput(); err != nil {
				t.Fatalf("sgdisk: %v: %s", err, out)
			}
			dev := loop(t, path)
			result, err := Wiper{Runner: run.Exec{}}.Wipe(t.Context(), Target{Path: dev, Transport: c.transport}, c.level, nil)
			if err != nil {
				t.Fatal(err)
			}
			if result.Method != c.method || result.Bytes != 40*mebibyte {
				t.Errorf("got %+v, want %s", result, c.method)
			}
			data, err := os.ReadFile(dev)
			if err != nil {
				t.Fatal(err)
			}
			if len(data) != 40*mebibyte {
				t.Fatalf("read %d bytes", len(data))
			}
			gone(t, data)
			if _, err := partition.PartitionInfo(dev, 1); !errors.Is(err, partition.ErrTable) {
				t.Errorf("the table: %v, want ErrTable", err)
			}
			if found, err := filepath.Glob(dev + "p*"); err != nil || len(found) > 0 {
				t.Errorf("the kernel still shows %v (%v)", found, err)
			}
		})
	}
}

func TestWipeRefusesDiskInUse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	truncate(t, path, 64*mebibyte)
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	dev := loop(t, path)
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	err = partition.Disks{Runner: run.Exec{}}.WithMountReadOnly(t.Context(), dev, func(root string) error {
		_, err := Wiper{}.Wipe(t.Context(), Target{Path: dev}, Erase, nil)
		if !errors.Is(err, partition.ErrInUse) || !strings.Contains(err.Error(), root) {
			t.Errorf("got %v, want ErrInUse and the mount point", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(before, after) {
		t.Error("the disk was changed")
	}
}

// What is not the machine's own is refused before anything is read or written.
func TestWipeRefusesStrangers(t *testing.T) {
	for name, c := range map[string]struct {
		target Target
		want   string
	}{
		"read-only":                   {Target{ReadOnly: true, Named: true}, "read-only"},
		"removable":                   {Target{Removable: true}, "removable"},
		"iSCSI":                       {Target{Transport: "iscsi"}, "network"},
		"NVMe over fabrics":           {Target{Transport: "nvmeof"}, "network"},
		"removable, but named":        {Target{Removable: true, Named: true}, ""},
		"over a network, but named":   {Target{Transport: "fc", Named: true}, ""},
		"an ordinary disk, unnamed":   {Target{Transport: "nvme"}, ""},
		"an ordinary disk of no kind": {Target{}, ""},
	} {
		err := c.target.check()
		if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
	if _, err := (Wiper{}).Wipe(t.Context(), Target{Path: "/nonexistent", Removable: true}, Erase, nil); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v, want ErrRefused", err)
	}
}

// The disk that the system was started from is refused, named or not, before what uses it is stopped.
func TestWipeRefusesBootMedium(t *testing.T) {
	const guid = "11111111-2222-3333-4444-555555555555"
	path := filepath.Join(t.TempDir(), "disk.img")
	truncate(t, path, 40*mebibyte)
	if out, err := exec.Command("sgdisk", "-n", "1:2048:+8M", "-u", "1:"+guid, path).CombinedOutput(); err != nil {
		t.Fatalf("sgdisk: %v: %s", err, out)
	}
	dev := loop(t, path)
	wiper := func(boot string) Wiper {
		dir := t.TempDir()
		variable := []byte{7, 0, 0, 0}
		for _, r := range strings.ToUpper(boot) + "\x00" {
			variable = append(variable, byte(r), 0)
		}
		efivars := filepath.Join(dir, "firmware/efi/efivars")
		if err := os.MkdirAll(efivars, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(efivars, "LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"), variable, 0o600); err != nil {
			t.Fatal(err)
		}
		return Wiper{Sysfs: dir, Stop: func(context.Context, string) error { return errors.New("stopped") }}
	}
	if _, err := wiper(guid).Wipe(t.Context(), Target{Path: dev, Named: true}, Erase, nil); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), guid) {
		t.Errorf("got %v, want ErrRefused and the partition", err)
	}
	if _, err := wiper("22222222-2222-3333-4444-555555555555").Wipe(t.Context(), Target{Path: dev}, Erase, nil); err == nil || !strings.Contains(err.Error(), "stopped") {
		t.Errorf("another disk's partition: got %v, want to come as far as the stopping", err)
	}
}
