package images

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// holeGrain is the smallest stretch of zeros of a sparse file that becomes a hole, in bytes: a block of the usual filesystems.
const holeGrain = 4 << 10

// tree is a root file system in the making. Every name is looked up from the root's descriptor and through no symbolic link.
type tree struct {
	root   int
	path   string
	parent int // the folder of the last entry, kept open: archives go folder by folder
	name   string
	// folders get their times at the end, since making an entry in one changes them.
	folders []folderTimes
	entries int
	bytes   int64
	buffer  []byte
}

type folderTimes struct {
	name string
	time time.Time
}

func openTree(root string) (*tree, error) {
	fd, err := unix.Open(root, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	return &tree{root: fd, path: root, parent: -1, buffer: make([]byte, 1<<20)}, nil
}

func (t *tree) close() {
	// Both are read from only; Sync has reported what could not be written.
	if t.parent >= 0 {
		_ = unix.Close(t.parent)
	}
	_ = unix.Close(t.root)
}

// checkEmpty allows folders: mount points, and the lost+found of an empty ext4.
func (t *tree) checkEmpty() error {
	return fs.WalkDir(os.DirFS(t.path), ".", func(name string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			err = fmt.Errorf("%s holds %s: %w", t.path, name, ErrNotEmpty)
		}
		return err
	})
}

func (t *tree) extract(ctx context.Context, r io.Reader) error {
	reader, known := tar.NewReader(r), newTarTree()
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("reading entry %d of the archive: %w", t.entries, err)
		}
		// Checked again, though Import made it: whoever signed it may have used another tool.
		entry, missing, err := known.add(header)
		if err != nil {
			return fmt.Errorf("entry %d of the archive, %.256q: %w", t.entries, header.Name, err)
		}
		if entry == nil || len(missing) > 0 {
			return fmt.Errorf("entry %d of the archive, %.256q: its folder is not there", t.entries, header.Name)
		}
		if err := t.make(entry, reader); err != nil {
			return fmt.Errorf("making %s: %w", entry.Name, err)
		}
		t.entries++
	}
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, t.buffer); err != nil {
		return fmt.Errorf("reading the end of the archive: %w", err)
	}
	for _, folder := range slices.Backward(t.folders) {
		if err := ctx.Err(); err != nil {
			return err
		}
		parent, base, err := t.open(folder.name)
		if err == nil {
			err = setTime(parent, base, folder.time)
		}
		if err != nil {
			return fmt.Errorf("setting the time of %s: %w", folder.name, err)
		}
	}
	if err := unix.Syncfs(t.root); err != nil {
		return fmt.Errorf("syncing the root file system: %w", err)
	}
	return nil
}

// lookUp opens a folder without following a symbolic link in any part of its name.
func (t *tree) lookUp(name string, flags uint64) (int, error) {
	return unix.Openat2(t.root, name, &unix.OpenHow{
		Flags: flags | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// open gives the folder of an entry, and the entry's name in it; "." for the root.
func (t *tree) open(name string) (parent int, base string, err error) {
	dir, base := path.Split(strings.TrimSuffix(name, "/"))
	dir = strings.TrimSuffix(dir, "/")
	if dir == "" {
		return t.root, base, nil
	}
	if t.parent >= 0 && t.name == dir {
		return t.parent, base, nil
	}
	fd, err := t.lookUp(dir, unix.O_PATH)
	if err != nil {
		return 0, "", err
	}
	if t.parent >= 0 {
		_ = unix.Close(t.parent) // only a place
	}
	t.parent, t.name = fd, dir
	return fd, base, nil
}

func (t *tree) make(h *tar.Header, content io.Reader) error {
	parent, base, err := t.open(h.Name)
	if err != nil {
		return err
	}
	mode := uint32(h.Mode) // linux/stat.h has the same twelve bits as pax
	switch h.Typeflag {
	case tar.TypeDir:
		t.folders = append(t.folders, folderTimes{h.Name, h.ModTime})
		return t.makeFolder(parent, base, h, mode)
	case tar.TypeReg:
		return t.makeFile(parent, base, h, content)
	case tar.TypeLink:
		return t.makeLink(parent, base, h.Linkname)
	case tar.TypeSymlink:
		if err := unix.Symlinkat(h.Linkname, parent, base); err != nil {
			return err
		}
		if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		return setTime(parent, base, h.ModTime)
	}
	kind := map[byte]uint32{tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK, tar.TypeFifo: unix.S_IFIFO}[h.Typeflag]
	if err := unix.Mknodat(parent, base, kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
		return err
	}
	// A path descriptor's own name, because opening a fifo would wait for a writer and opening a device would start it.
	fd, err := unix.Openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd) // only a place
	self := fmt.Sprintf("/proc/self/fd/%d", fd)
	if err := unix.Chown(self, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Chmod(self, mode); err != nil {
		return err
	}
	if err := setXattrs(h, func(name string, value []byte) error { return unix.Setxattr(self, name, value, 0) }); err != nil {
		return err
	}
	return setTime(parent, base, h.ModTime)
}

func (t *tree) makeFolder(parent int, base string, h *tar.Header, mode uint32) error {
	if base == "." {
		base = ""
	}
	if base != "" {
		if err := unix.Mkdirat(parent, base, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	// Also where a folder was there: what is no folder, or a link to one, does not open.
	fd, err := t.lookUp(path.Clean(h.Name), unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd) // nothing is written through it
	var in unix.Statfs_t
	if err := unix.Fstatfs(fd, &in); err != nil {
		return err
	}
	if in.Type == unix.MSDOS_SUPER_MAGIC {
		return nil // an EFI system partition is mounted there: FAT has neither owners nor modes
	}
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, mode); err != nil {
		return err
	}
	return setXattrs(h, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
}

func (t *tree) makeFile(parent int, base string, h *tar.Header, content io.Reader) (err error) {
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), h.Name)
	defer func() { err = errors.Join(err, file.Close()) }()
	if h.PAXRecords[sparseRecord] != "" {
		err = t.copySparse(file, content, h.Size)
	} else {
		_, err = io.CopyBuffer(struct{ io.Writer }{file}, struct{ io.Reader }{content}, t.buffer)
	}
	if err != nil {
		return err
	}
	t.bytes += h.Size
	// The owner first: changing it takes the set-user-id bits and the capabilities away (fs/open.c, chown_common).
	if err := unix.Fchown(fd, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, uint32(h.Mode)); err != nil {
		return err
	}
	if err := setXattrs(h, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) }); err != nil {
		return err
	}
	return setTime(parent, base, h.ModTime)
}

// copySparse makes a hole of each block of zeros.
func (t *tree) copySparse(file *os.File, content io.Reader, size int64) error {
	if err := file.Truncate(size); err != nil {
		return err
	}
	for offset := int64(0); offset < size; {
		n, err := io.ReadFull(content, t.buffer[:min(int64(len(t.buffer)), size-offset)])
		if err != nil {
			return err
		}
		for from := 0; from < n; {
			to, zero := from, true
			for to < n {
				end := min(to+holeGrain, n)
				isZero := allZero(t.buffer[to:end])
				if to > from && isZero != zero {
					break
				}
				zero, to = isZero, end
			}
			if !zero {
				if _, err := file.WriteAt(t.buffer[from:to], offset+int64(from)); err != nil {
					return err
				}
			}
			from = to
		}
		offset += int64(n)
	}
	return nil
}

// makeLink finds the target as it finds a folder: the archive's own files only, and through no symbolic link.
func (t *tree) makeLink(parent int, base, target string) error {
	dir, file := path.Split(target)
	from := t.root
	if dir != "" {
		fd, err := t.lookUp(path.Clean(dir), unix.O_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(fd) // only a place
		from = fd
	}
	return unix.Linkat(from, file, parent, base, 0)
}

func setXattrs(h *tar.Header, set func(name string, value []byte) error) error {
	for _, record := range slices.Sorted(maps.Keys(h.PAXRecords)) {
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok {
			continue
		}
		if err := set(name, []byte(h.PAXRecords[record])); err != nil {
			return fmt.Errorf("setting extended attribute %q: %w", name, err)
		}
	}
	return nil
}

func setTime(parent int, base string, at time.Time) error {
	if base == "" {
		base = "."
	}
	stamp := unix.NsecToTimespec(at.UnixNano())
	return unix.UtimesNanoAt(parent, base, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW)
}
