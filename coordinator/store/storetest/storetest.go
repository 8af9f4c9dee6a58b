// Package storetest unpacks databases that earlier programs left, for tests that open them.
package storetest

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// Unpack puts the files of a .tar.zst into dir.
func Unpack(t testing.TB, archive, dir string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("unpack %s: %v", archive, err)
		}
	}
	f, err := os.Open(archive)
	check(err)
	defer func() { _ = f.Close() }()
	z, err := zstd.NewReader(f)
	check(err)
	defer z.Close()
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		check(err)
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.FileInfo().IsDir() {
			check(os.MkdirAll(path, 0o700))
			continue
		}
		check(os.MkdirAll(filepath.Dir(path), 0o700))
		out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, h.FileInfo().Mode().Perm())
		check(err)
		_, err = io.Copy(out, r)
		check(errors.Join(err, out.Close()))
	}
}
