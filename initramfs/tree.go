package initramfs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// entry is one path of the image. A regular file's content is data, or the file at source on the build machine.
type entry struct {
	path   string // as in the image, without a leading slash
	mode   uint32 // type and permission bits of cpio(5)
	source string
	data   []byte
	target string // of a symbolic link
	origin string // Debian package or Go module it came from
}

// tree collects the entries of one cpio segment; a path can be given only once.
type tree struct {
	entries map[string]entry
}

func newTree() *tree { return &tree{entries: map[string]entry{}} }

func (t *tree) put(e entry) error {
	if e.path == "" || e.path != path.Clean(e.path) || strings.HasPrefix(e.path, "/") || strings.HasPrefix(e.path, "..") {
		return fmt.Errorf("add %q to image: want a clean relative path", e.path)
	}
	if have, ok := t.entries[e.path]; ok && (have.source != e.source || have.target != e.target || have.mode != e.mode || string(have.data) != string(e.data)) {
		return fmt.Errorf("add /%s to image: it is already there with other content (from %s and %s)", e.path, have.origin, e.origin)
	}
	t.entries[e.path] = e
	return t.parents(e.path)
}

func (t *tree) parents(name string) error {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		have, ok := t.entries[dir]
		if ok && have.mode&cpio.S_IFMT != cpio.S_IFDIR {
			return fmt.Errorf("add /%s to image: /%s is not a directory", name, dir)
		}
		if !ok {
			t.entries[dir] = entry{path: dir, mode: cpio.S_IFDIR | 0o755}
		}
	}
	return nil
}

func (t *tree) dir(name string, perm uint32) error {
	return t.put(entry{path: name, mode: cpio.S_IFDIR | perm})
}

func (t *tree) file(name string, perm uint32, data []byte) error {
	return t.put(entry{path: name, mode: cpio.S_IFREG | perm, data: data})
}

func (t *tree) copy(name string, perm uint32, source, origin string) error {
	return t.put(entry{path: name, mode: cpio.S_IFREG | perm, source: source, origin: origin})
}

func (t *tree) link(name, target, origin string) error {
	return t.put(entry{path: name, mode: cpio.S_IFLNK | 0o777, target: target, origin: origin})
}

// sorted lists the entries so that a directory comes before what is in it.
func (t *tree) sorted() []entry {
	list := make([]entry, 0, len(t.entries))
	for _, e := range t.entries {
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b entry) int { return strings.Compare(a.path, b.path) })
	return list
}

// files describes the tree's regular files for the manifest and the checksum list.
func (t *tree) files() ([]File, error) {
	var files []File
	for _, e := range t.sorted() {
		if e.mode&cpio.S_IFMT != cpio.S_IFREG {
			continue
		}
		size, sum, err := e.digest()
		if err != nil {
			return nil, err
		}
		files = append(files, File{Path: "/" + e.path, Bytes: size, SHA256: sum, Package: e.origin})
	}
	return files, nil
}

func (e entry) open() (io.ReadCloser, int64, error) {
	if e.source == "" {
		return io.NopCloser(strings.NewReader(string(e.data))), int64(len(e.data)), nil
	}
	f, err := os.Open(e.source)
	if err != nil {
		return nil, 0, fmt.Errorf("read content of /%s: %w", e.path, err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, 0, fmt.Errorf("read content of /%s: %w", e.path, err)
	}
	if !info.Mode().IsRegular() {
		_ = f.Close()
		return nil, 0, fmt.Errorf("read content of /%s: %s is not a regular file", e.path, e.source)
	}
	return f, info.Size(), nil
}

func (e entry) digest() (int64, string, error) {
	r, _, err := e.open()
	if err != nil {
		return 0, "", err
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, r)
	if err != nil {
		return 0, "", fmt.Errorf("checksum /%s: %w", e.path, err)
	}
	return n, hex.EncodeToString(h.Sum(nil)), nil
}
