package images

import (
	"archive/tar"
	"bytes"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// tarOf writes an archive; a regular file's content is its Size bytes of 'x'.
func tarOf(t testing.TB, entries ...*tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_700_000_000, 0)
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.Copy(w, strings.NewReader(strings.Repeat("x", int(h.Size)))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func file(name string, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644}
}

func folder(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}
}

func TestNormalise(t *testing.T) {
	input := tarOf(t,
		folder("./"),
		folder("./bin/"),
		&tar.Header{Typeflag: tar.TypeReg, Name: "./bin/ping", Size: 3, Mode: 0o104755, Uid: 7, Uname: "daemon", Format: tar.FormatPAX, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability":      "\x01\x00\x00\x02\x00\x20",
			"SCHILY.xattr.security.selinux":         "policy",
			"SCHILY.xattr.trusted.overlay.opaque":   "y",
			"SCHILY.xattr.user.note":                "hello",
			"SCHILY.acl.access":                     "user::rwx,user:bob:r--:1000,group::r-x,mask::r-x,other::r--",
			"SCHILY.acl.default":                    "user:bob:r--", // of no use without numbers, which stand below
			"SCHILY.xattr.system.posix_acl_default": "\x02\x00\x00\x00",
			"LIBARCHIVE.creationtime":               "1",
			"GNU.unknown":                           "1",
			"SCHILY.xattr.user.":                    "empty",
			"SCHILY.xattr.btrfs.compression":        "zstd",
			"SCHILY.xattr.system.posix_acl_unreal":  "x",
		}},
		&tar.Header{Typeflag: tar.TypeLink, Name: "bin/ping4", Linkname: "./bin/ping"},
		&tar.Header{Typeflag: tar.TypeSymlink, Name: "sbin", Linkname: "/bin"},
		file("usr/share/doc/readme", 600), // its folders are missing
		folder("usr/share/"),
		&tar.Header{Typeflag: tar.TypeChar, Name: "dev/null", Devmajor: 1, Devminor: 3, Mode: 0o666},
		&tar.Header{Typeflag: tar.TypeFifo, Name: "run/pipe"},
	)
	var out bytes.Buffer
	if err := normalise(t.Context(), bytes.NewReader(input), &out, Boot{Kernel: "/bin/ping", Initrd: "/sbin"}); err != nil {
		t.Fatal(err)
	}
	var got []string
	reader := tar.NewReader(bytes.NewReader(out.Bytes()))
	for {
		h, err := reader.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(string(h.Typeflag)+" "+h.Name+" "+h.Linkname))
		if h.Name == "bin/ping" {
			acl, err := posixACL("u::rwx,u:1000:r--,g::r-x,m::r-x,o::r--")
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				"SCHILY.xattr.security.capability":      "\x01\x00\x00\x02\x00\x20",
				"SCHILY.xattr.user.note":                "hello",
				"SCHILY.xattr.system.posix_acl_access":  acl,
				"SCHILY.xattr.system.posix_acl_default": "\x02\x00\x00\x00",
			}
			if diff := cmp.Diff(want, h.PAXRecords); diff != "" {
				t.Errorf("records (-want +got):\n%s", diff)
			}
			if h.Mode != 0o4755 || h.Uid != 7 || h.Uname != "" {
				t.Errorf("mode %o, owner %d, %q", h.Mode, h.Uid, h.Uname)
			}
		}
	}
	want := []string{"5 ./", "5 bin/", "0 bin/ping", "1 bin/ping4 bin/ping", "2 sbin /bin", "5 usr/", "5 usr/share/", "5 usr/share/doc/",
		"0 usr/share/doc/readme", "5 usr/share/", "5 dev/", "3 dev/null", "5 run/", "6 run/pipe"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
}

func TestImportRootfsRefusals(t *testing.T) {
	good := tarOf(t, folder("etc/"), file("etc/hosts", 700))
	cases := map[string]struct {
		input []byte
		boot  Boot
		want  string
	}{
		"absolute":           {input: tarOf(t, file("/etc/passwd", 1)), want: `"/etc/passwd" at byte 0: the name is not relative`},
		"dot-dot":            {input: tarOf(t, file("etc/../../passwd", 1)), want: `has the part ".."`},
		"double slash":       {input: tarOf(t, file("etc//passwd", 1)), want: `has the part ""`},
		"long part":          {input: tarOf(t, file(strings.Repeat("a", 256), 1)), want: "has 256 bytes"},
		"twice":              {input: tarOf(t, file("a", 1), file("./a", 1)), want: "was there before"},
		"file then folder":   {input: tarOf(t, file("a", 1), folder("a/")), want: "was there before"},
		"behind a link":      {input: tarOf(t, &tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/tmp"}, file("a/b", 1)), want: "which is no folder"},
		"behind a file":      {input: tarOf(t, file("a", 1), file("a/b/c", 1)), want: "which is no folder"},
		"link to later":      {input: tarOf(t, &tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}, file("a", 1)), want: "no file that stands before"},
		"link to link":       {input: tarOf(t, &tar.Header{Typeflag: tar.TypeSymlink, Name: "a", Linkname: "/etc/shadow"}, &tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}), want: "no file that stands before"},
		"link outside":       {input: tarOf(t, &tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "../../etc/shadow"}), want: `has the part ".."`},
		"device elsewhere":   {input: tarOf(t, &tar.Header{Typeflag: tar.TypeBlock, Name: "srv/sda", Devmajor: 8}), want: "outside dev/"},
		"device number":      {input: tarOf(t, &tar.Header{Typeflag: tar.TypeBlock, Name: "dev/sda", Devmajor: 1 << 13}), want: "device number"},
		"contiguous":         {input: tarOf(t, &tar.Header{Typeflag: tar.TypeCont, Name: "a"}), want: "are not supported"},
		"owner":              {input: tarOf(t, &tar.Header{Typeflag: tar.TypeReg, Name: "a", Uid: 1<<32 - 1}), want: "owner 4294967295"},
		"time":               {input: tarOf(t, &tar.Header{Typeflag: tar.TypeReg, Name: "a", ModTime: time.Unix(1<<35, 0)}), want: "out of range"},
		"acl by name":        {input: tarOf(t, &tar.Header{Typeflag: tar.TypeReg, Name: "a", PAXRecords: map[string]string{"SCHILY.acl.access": "user::rw-,user:bob:r--,group::r--,other::r--"}}), want: "--xattrs-include"},
		"acl of no kind":     {input: tarOf(t, &tar.Header{Typeflag: tar.TypeReg, Name: "a", PAXRecords: map[string]string{"SCHILY.acl.default": "x"}}), want: "SCHILY.acl.default: \"x\" is no entry"},
		"large xattr":        {input: tarOf(t, &tar.Header{Typeflag: tar.TypeReg, Name: "a", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("a", 70_000)}}), want: "more than 65536 bytes"},
		"no kernel":          {input: good, boot: Boot{Kernel: "/boot/vmlinuz"}, want: `boot.kernel: "/boot/vmlinuz" is no file`},
		"partitions":         {input: good, boot: Boot{RootPartition: 2}, want: "a rootfs image has no partitions"},
		"unknown stack":      {input: good, boot: Boot{RootStacks: []string{"zfs"}}, want: `"zfs" is not known`},
		"empty":              {input: nil, want: "end mark is missing"},
		"no archive":         {input: testDisk(1)[:1<<20], want: "invalid tar header"},
		"cut in a file":      {input: good[:1500], want: "unexpected EOF"},
		"cut between files":  {input: good[:512], want: "cut off at byte 512"},
		"one closing block":  {input: good[:len(good)-512], want: "cut off"},
		"more after the end": {input: append(bytes.Clone(good), 'x'), want: "more than zeros follow"},
		"cut zstd":           {input: cutEnd(compressed(t, "zstd", good)), want: "unexpected EOF"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			_, err := ImportRootfs(t.Context(), bytes.NewReader(tc.input), ImportOptions{Name: "d", Out: filepath.Join(t.TempDir(), "i"), Boot: tc.boot})
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q in it", err, tc.want)
			}
		})
	}
}

func cutEnd(b []byte) []byte { return b[:len(b)-2] }

func TestImportRootfsLimit(t *testing.T) {
	bomb := compressed(t, "gzip", tarOf(t, file("zeros", 40*mib)))
	_, err := ImportRootfs(t.Context(), bytes.NewReader(bomb), ImportOptions{Name: "d", Out: filepath.Join(t.TempDir(), "i"), MaxSize: 10 * mib})
	if err == nil || !strings.Contains(err.Error(), "byte 10485760") {
		t.Errorf("error = %v, want the limit", err)
	}
}

func TestPosixACL(t *testing.T) {
	got, err := posixACL("other::r-x\nuser::rwx\ngroup::r-x\nmask::rwx\nuser:7:-w-")
	if err != nil {
		t.Fatal(err)
	}
	want := "\x02\x00\x00\x00" +
		"\x01\x00\x07\x00\xff\xff\xff\xff" + "\x02\x00\x02\x00\x07\x00\x00\x00" + "\x04\x00\x05\x00\xff\xff\xff\xff" +
		"\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x05\x00\xff\xff\xff\xff"
	if got != want {
		t.Errorf("got  % x\nwant % x", got, want)
	}
	for _, bad := range []string{"", "user", "user:::::", "user::rwxr", "user::wrx", "mask:1:rwx", "user:4294967295:rwx", "nobody::rwx", "user:bob:r--:-1"} {
		if _, err := posixACL(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// FuzzNormalise: whatever comes in, what comes out is in the normal form, which normalising again leaves as it is.
func FuzzNormalise(f *testing.F) {
	f.Add(tarOf(f, folder("./"), file("a", 600), &tar.Header{Typeflag: tar.TypeLink, Name: "b", Linkname: "a"}))
	f.Add(tarOf(f, &tar.Header{Typeflag: tar.TypeSymlink, Name: "l", Linkname: "/"}, file("l/x", 1)))
	f.Add(tarOf(f, &tar.Header{Typeflag: tar.TypeReg, Name: "a", PAXRecords: map[string]string{"SCHILY.acl.default": "u::rwx,g::r-x,o::r-x"}}))
	f.Add([]byte("x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var once, twice bytes.Buffer
		// A sparse file can be of any size: what is too long ends the reading.
		if err := normalise(t.Context(), bytes.NewReader(data), &shortWriter{&once, 4 << 20}, Boot{}); err != nil {
			return
		}
		if err := normalise(t.Context(), bytes.NewReader(once.Bytes()), &twice, Boot{}); err != nil {
			t.Fatalf("its own output: %v", err)
		}
		if !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Error("normalising again changes the archive")
		}
	})
}

// shortWriter takes so many bytes.
type shortWriter struct {
	w    io.Writer
	left int
}

func (s *shortWriter) Write(p []byte) (int, error) {
	if s.left -= len(p); s.left < 0 {
		return 0, io.ErrShortWrite
	}
	return s.w.Write(p)
}
