package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// rootfsOf imports an archive and gives what Unpack needs.
func rootfsOf(t *testing.T, archive []byte) (*Manifest, *memorySource) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "image")
	m, err := ImportRootfs(t.Context(), bytes.NewReader(archive), ImportOptions{Name: "d", Out: out})
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(out, DataFile))
	if err != nil {
		t.Fatal(err)
	}
	return m, &memorySource{data: data}
}

func mustRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to make files of other owners; make test runs as root")
	}
}

// describe lists a tree with everything that unpacking is to keep.
func describe(t *testing.T, root string) []string {
	t.Helper()
	var lines []string
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(name string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		relative := strings.TrimPrefix(name, root)
		line := fmt.Sprintf("%s %o %d:%d %d.%09d rdev %d", relative, st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, st.Rdev)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			target, err := os.Readlink(name)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFREG:
			content, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d bytes, sum %x", st.Size, sha256.Sum256(content))
			if st.Nlink > 1 {
				if first, ok := inodes[st.Ino]; ok {
					line += " same as " + first
				}
				inodes[st.Ino] = relative
			}
			if st.Blocks*512 < st.Size/2 {
				line += " sparse"
			}
			fallthrough
		case unix.S_IFDIR:
			for _, attribute := range []string{"security.capability", "system.posix_acl_access", "system.posix_acl_default", "user.note"} {
				value := make([]byte, 256)
				if n, err := unix.Lgetxattr(name, attribute, value); err == nil {
					line += fmt.Sprintf(" %s=%x", attribute, value[:n])
				}
			}
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// makeTree makes a tree of seeded files with every feature that a root file system uses.
func makeTree(t *testing.T, root string, seed uint64) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, 2))
	try := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	acl, err := posixACL("user::rwx,user:1234:r-x,group::r-x,mask::r-x,other::---")
	try(err)
	var files []string
	folders := []string{root}
	for i := range 60 {
		name := filepath.Join(folders[random.IntN(len(folders))], fmt.Sprintf("%c%d\n é", 'a'+i%26, i))
		switch random.IntN(6) {
		case 0:
			try(os.Mkdir(name, 0o700))
			try(unix.Setxattr(name, "system.posix_acl_default", []byte(acl), 0))
			folders = append(folders, name)
		case 1:
			try(os.Symlink(strings.Repeat("../", random.IntN(3))+"nowhere/"+strings.Repeat("x", random.IntN(200)), name))
		case 2:
			if len(files) > 0 {
				try(os.Link(files[random.IntN(len(files))], name))
				continue // the owner is its target's
			}
			fallthrough
		default:
			content := make([]byte, random.IntN(3)*random.IntN(200_000))
			for i := range content {
				content[i] = byte(random.Uint32())
			}
			try(os.WriteFile(name, content, 0o600))
			files = append(files, name)
		}
		uid, gid := random.IntN(70_000), random.IntN(70_000)
		try(os.Lchown(name, uid, gid))
		if info, err := os.Lstat(name); err == nil && info.Mode()&os.ModeSymlink == 0 {
			try(unix.Chmod(name, uint32(random.IntN(0o10000))))
			if info.Mode().IsRegular() && i%3 == 0 {
				try(unix.Setxattr(name, "security.capability", []byte("\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
				try(unix.Setxattr(name, "user.note", []byte("zero \x00 byte"), 0))
				try(unix.Setxattr(name, "system.posix_acl_access", []byte(acl), 0))
			}
		}
	}
	// A file with holes: data in the middle and at the end of 6 MiB.
	sparse, err := os.Create(filepath.Join(root, "sparse"))
	try(err)
	for _, at := range []int64{2<<20 + 4096, 6<<20 - 10} {
		_, err = sparse.WriteAt([]byte("0123456789"), at)
		try(err)
	}
	try(sparse.Close())
	try(os.Mkdir(filepath.Join(root, "dev"), 0o755))
	try(unix.Mknod(filepath.Join(root, "dev/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	try(unix.Mkfifo(filepath.Join(root, "pipe"), 0o640))
	try(os.WriteFile(filepath.Join(root, strings.Repeat("n", 255)), nil, 0o4755))
}

// TestUnpackKeepsEverything archives seeded trees with GNU tar and compares what comes out on the other side.
func TestUnpackKeepsEverything(t *testing.T) {
	mustRoot(t)
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			from, to := t.TempDir(), t.TempDir()
			makeTree(t, from, seed)
			archive, err := exec.CommandContext(t.Context(), "tar", "--create", "--directory", from, "--format=posix", "--numeric-owner", "--xattrs", "--xattrs-include=*",
				"--sparse", "--sort=name", ".").Output()
			if err != nil {
				t.Fatal(err)
			}
			m, source := rootfsOf(t, archive)
			// Folders that are mount points, or that mkfs made, are there before.
			if err := os.MkdirAll(filepath.Join(to, "dev"), 0o700); err != nil {
				t.Fatal(err)
			}
			var last Progress
			result, err := Unpack(t.Context(), UnpackOptions{Manifest: m, Source: source, Root: to, Progress: func(p Progress) { last = p }})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(describe(t, from), describe(t, to)); diff != "" {
				t.Errorf("the tree differs (-archived +unpacked):\n%s", diff)
			}
			if !strings.Contains(strings.Join(describe(t, to), "\n"), "sparse") {
				t.Error("no file has holes: the test shows nothing of them")
			}
			if last.DiskDone != m.Size || last.DataDone != m.DataLength() || result.DataBytes != m.DataLength() || result.Entries == 0 {
				t.Errorf("progress ended at %+v, result %+v", last, result)
			}
		})
	}
}

func TestUnpackStaysInside(t *testing.T) {
	mustRoot(t)
	m, source := rootfsOf(t, tarOf(t, folder("etc/"), file("etc/passwd", 10), &tar.Header{Typeflag: tar.TypeLink, Name: "copy", Linkname: "etc/passwd"}))
	outside := t.TempDir()
	t.Run("folder is a link", func(t *testing.T) {
		root := t.TempDir()
		if err := os.Symlink(outside, filepath.Join(root, "etc")); err != nil {
			t.Fatal(err)
		}
		if _, err := Unpack(t.Context(), UnpackOptions{Manifest: m, Source: source, Root: root}); !errors.Is(err, ErrNotEmpty) {
			t.Errorf("error = %v, want ErrNotEmpty", err)
		}
		// And should somebody put it there after that check:
		tree, err := openTree(root)
		if err != nil {
			t.Fatal(err)
		}
		defer tree.close()
		if err := tree.extract(t.Context(), bytes.NewReader(tarOf(t, folder("etc/"), file("etc/passwd", 10)))); !errors.Is(err, unix.ELOOP) {
			t.Errorf("error = %v, want ELOOP", err)
		}
	})
	t.Run("archive that nobody normalised", func(t *testing.T) {
		for _, archive := range [][]byte{
			tarOf(t, file("../passwd", 1)),
			tarOf(t, &tar.Header{Typeflag: tar.TypeSymlink, Name: "etc", Linkname: outside}, file("etc/passwd", 1)),
			tarOf(t, file("etc/passwd", 1)),
		} {
			tree, err := openTree(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			if err := tree.extract(t.Context(), bytes.NewReader(archive)); err == nil {
				t.Error("it was extracted")
			}
			tree.close()
		}
	})
	if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
		t.Errorf("outside lies %v, %v", left, err)
	}
}

// bigArchive has frames that do not compress, more than there are buffers.
func bigArchive(t *testing.T, size int) []byte {
	t.Helper()
	content := make([]byte, size)
	random := rand.New(rand.NewPCG(5, 6))
	for i := 0; i < len(content); i += 8 {
		binary.LittleEndian.PutUint64(content[i:], random.Uint64())
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for i := range 4 {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprint(i), Size: int64(size), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestUnpackFaults(t *testing.T) {
	mustRoot(t)
	m, good := rootfsOf(t, bigArchive(t, 7<<20))
	gone := errors.New("server is gone")
	var flips int
	cases := map[string]struct {
		source *memorySource
		want   error
	}{
		"flipped once": {&memorySource{data: good.data, spoil: func(p []byte, offset int64) {
			if flips++; flips == 3 {
				p[len(p)/2] ^= 1
			}
		}}, nil},
		"flipped always": {&memorySource{data: good.data, spoil: func(p []byte, offset int64) {
			if offset > 8<<20 {
				p[0] ^= 1
			}
		}}, ErrCorrupt},
		"server goes away": {&memorySource{data: good.data, before: func(_ []byte, offset int64) error {
			if offset > 12<<20 {
				return gone
			}
			return nil
		}}, gone},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			if _, err := Unpack(t.Context(), UnpackOptions{Manifest: m, Source: tc.source, Root: root}); !errors.Is(err, tc.want) {
				t.Fatalf("error = %v, want %v", err, tc.want)
			}
			left, err := os.ReadDir(root)
			if err != nil {
				t.Fatal(err)
			}
			if tc.want == nil || len(left) == 0 { // what failed early may have unpacked nothing
				return
			}
			if _, err := Unpack(t.Context(), UnpackOptions{Manifest: m, Source: good, Root: root}); !errors.Is(err, ErrNotEmpty) {
				t.Errorf("a second try onto what is left: %v, want ErrNotEmpty", err)
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		source := &memorySource{data: good.data, before: func(_ []byte, offset int64) error {
			if offset > 12<<20 {
				cancel()
			}
			return nil
		}}
		if _, err := Unpack(ctx, UnpackOptions{Manifest: m, Source: source, Root: t.TempDir()}); !errors.Is(err, context.Canceled) {
			t.Errorf("error = %v, want canceled", err)
		}
	})
}

// TestUnpackMemory: 64 MiB are the limit whatever the image.
func TestUnpackMemory(t *testing.T) {
	mustRoot(t)
	archive := bigArchive(t, 12<<20)
	m, source := rootfsOf(t, archive)
	archive = nil
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	var most uint64
	source.before = func([]byte, int64) error {
		runtime.GC()
		runtime.ReadMemStats(&now)
		most = max(most, now.HeapAlloc-min(before.HeapAlloc, now.HeapAlloc))
		return nil
	}
	if _, err := Unpack(t.Context(), UnpackOptions{Manifest: m, Source: source, Root: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	if most > 64<<20 {
		t.Errorf("%d bytes are in use, at most 64 MiB are meant", most)
	}
}

func TestKindsAreNotMixed(t *testing.T) {
	m, source := rootfsOf(t, tarOf(t, file("a", 1)))
	if _, err := Write(t.Context(), WriteOptions{Manifest: m, Source: source, Device: newFakeDevice(int(m.Size))}); err == nil || !strings.Contains(err.Error(), "unpacked, not written") {
		t.Errorf("Write of a rootfs: %v", err)
	}
	f := newFixture(t)
	if _, err := Unpack(t.Context(), UnpackOptions{Manifest: f.m, Source: source, Root: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "written, not unpacked") {
		t.Errorf("Unpack of a disk: %v", err)
	}
}
