package images

import (
	"archive/tar"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

const (
	// maxTarEntries bounds what an importer remembers of names; Debian's desktop has 300,000.
	maxTarEntries = 2 << 20
	// maxTarFolders bounds what Unpack remembers: a folder's times are set when everything in it is there.
	maxTarFolders = 100_000
	// Limits of Linux: PATH_MAX and NAME_MAX (limits.h), the names and values of an xattr (linux/limits.h).
	maxPathLength = 4095
	maxNameBytes  = 255
	maxXattrBytes = 64 << 10

	// xattrRecord is how pax archives of star, GNU tar and libarchive name an extended attribute.
	xattrRecord = "SCHILY.xattr."
	// sparseRecord marks a file that had holes.
	sparseRecord = "BLOOMERY.sparse"
)

// tarTree is what an archive has held so far.
type tarTree struct {
	// kinds are the entries' types by clean name; the root is "".
	kinds   map[string]byte
	folders int
}

func newTarTree() *tarTree { return &tarTree{kinds: map[string]byte{"": tar.TypeDir}} }

// add checks an entry against those before and gives it in the normal form, nil for what is no part of the tree, and the folders that
// must be made before.
func (t *tarTree) add(h *tar.Header) (entry *tar.Header, missing []*tar.Header, err error) {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil, nil, nil
	}
	name, err := cleanTarName(h.Name)
	if err != nil {
		return nil, nil, err
	}
	entry = &tar.Header{
		Format: tar.FormatPAX, Typeflag: h.Typeflag, Name: name,
		Mode: h.Mode & 0o7777, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime,
	}
	if err := t.setKind(entry, h); err != nil {
		return nil, nil, err
	}
	if entry.PAXRecords, err = keptXattrs(h.PAXRecords, entry.Typeflag); err != nil {
		return nil, nil, err
	}
	if entry.Typeflag == tar.TypeReg && isSparse(h) {
		if entry.PAXRecords == nil {
			entry.PAXRecords = map[string]string{}
		}
		entry.PAXRecords[sparseRecord] = "1"
	}
	if err := checkEntry(entry); err != nil {
		return nil, nil, err
	}
	if missing, err = t.folder(path.Dir(name), h); err != nil {
		return nil, nil, err
	}
	if err := t.remember(name, entry.Typeflag); err != nil {
		return nil, nil, err
	}
	if entry.Typeflag == tar.TypeDir {
		entry.Name += "/"
	}
	if name == "" {
		entry.Name = "./"
	}
	return entry, missing, nil
}

func (t *tarTree) setKind(entry, h *tar.Header) error {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		entry.Typeflag, entry.Size = tar.TypeReg, h.Size
	case tar.TypeDir, tar.TypeFifo:
	case tar.TypeSymlink:
		entry.Linkname = h.Linkname
		if h.Linkname == "" || len(h.Linkname) > maxPathLength {
			return fmt.Errorf("a symbolic link's target has %d bytes, want 1 to %d", len(h.Linkname), maxPathLength)
		}
	case tar.TypeLink:
		target, err := cleanTarName(h.Linkname)
		if err != nil {
			return fmt.Errorf("a hard link's target %.256q: %w", h.Linkname, err)
		}
		if t.kinds[target] != tar.TypeReg {
			return fmt.Errorf("a hard link to %.256q, which is no file that stands before it", target)
		}
		entry.Linkname = target
	case tar.TypeChar, tar.TypeBlock:
		if !strings.HasPrefix(entry.Name, "dev/") {
			return errors.New("a device node outside dev/")
		}
		// dev_t is 12 bits of major and 20 of minor number (include/linux/kdev_t.h).
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return fmt.Errorf("device number %d:%d is none of Linux", h.Devmajor, h.Devminor)
		}
		entry.Devmajor, entry.Devminor = h.Devmajor, h.Devminor
	default:
		return fmt.Errorf("entries of type %q are not supported", h.Typeflag)
	}
	return nil
}

// folder makes sure that all folders of name are there.
func (t *tarTree) folder(name string, h *tar.Header) (missing []*tar.Header, err error) {
	if name == "." || name == "" {
		return nil, nil
	}
	if kind, ok := t.kinds[name]; ok {
		if kind != tar.TypeDir {
			return nil, fmt.Errorf("it lies in %.256q, which is no folder", name)
		}
		return nil, nil
	}
	if missing, err = t.folder(path.Dir(name), h); err != nil {
		return nil, err
	}
	if err := t.remember(name, tar.TypeDir); err != nil {
		return nil, err
	}
	return append(missing, &tar.Header{Format: tar.FormatPAX, Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: h.ModTime}), nil
}

func (t *tarTree) remember(name string, kind byte) error {
	had, ok := t.kinds[name]
	if ok && (kind != tar.TypeDir || had != tar.TypeDir) {
		return errors.New("the name was there before")
	}
	if kind == tar.TypeDir && !ok {
		if t.folders++; t.folders > maxTarFolders {
			return fmt.Errorf("there are more than %d folders", maxTarFolders)
		}
	}
	if len(t.kinds) > maxTarEntries {
		return fmt.Errorf("there are more than %d entries", maxTarEntries)
	}
	t.kinds[name] = kind
	return nil
}

// has checks that what boots is in the archive: a file, or a link to something.
func (t *tarTree) has(boot Boot) error {
	for _, file := range []struct{ field, path string }{{"boot.kernel", boot.Kernel}, {"boot.initrd", boot.Initrd}} {
		if file.path == "" {
			continue
		}
		switch t.kinds[strings.TrimPrefix(file.path, "/")] {
		case tar.TypeReg, tar.TypeLink, tar.TypeSymlink:
		default:
			return fieldErrorf(file.field, "%.256q is no file of the archive", file.path)
		}
	}
	return nil
}

// cleanTarName gives a name without "./" and a closing slash; the root's is empty.
func cleanTarName(name string) (string, error) {
	clean := strings.TrimSuffix(name, "/")
	for strings.HasPrefix(clean, "./") {
		clean = clean[2:]
	}
	if clean == "." || clean == "" && name != "" && name[0] != '/' {
		return "", nil
	}
	switch {
	case clean == "" || clean[0] == '/':
		return "", errors.New("the name is not relative")
	case len(clean) > maxPathLength:
		return "", fmt.Errorf("the name has %d bytes, at most %d are allowed", len(clean), maxPathLength)
	case strings.IndexByte(clean, 0) >= 0:
		return "", errors.New("the name has a zero byte")
	}
	for part := range strings.SplitSeq(clean, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("the name is not clean: it has the part %q", part)
		}
		if len(part) > maxNameBytes {
			return "", fmt.Errorf("a part of the name has %d bytes, at most %d are allowed", len(part), maxNameBytes)
		}
	}
	return clean, nil
}

// checkEntry checks numbers that any entry has.
func checkEntry(h *tar.Header) error {
	// The largest id means "unchanged" to chown(2).
	for _, id := range []int{h.Uid, h.Gid} {
		if id < 0 || int64(id) >= 1<<32-1 {
			return fmt.Errorf("owner %d is none of Linux", id)
		}
	}
	// What ext4 can hold with its extra bits (Documentation/filesystems/ext4/inodes.rst).
	if h.ModTime.Before(time.Unix(-1<<31, 0)) || h.ModTime.Unix() >= 1<<33 {
		return fmt.Errorf("its time of %d s is out of range", h.ModTime.Unix())
	}
	if h.Size < 0 {
		return fmt.Errorf("its size is %d", h.Size)
	}
	return nil
}

// isSparse tells GNU tar's three forms and star's (GNU tar manual, appendix "Sparse Formats").
func isSparse(h *tar.Header) bool {
	if h.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") || key == sparseRecord {
			return true
		}
	}
	return false
}

// keptXattrs gives the records of the extended attributes that a system needs. Those of one machine's policy or filesystem
// (security.selinux, security.ima, trusted.*, NFS's and btrfs's own) are left out, as are a symbolic link's, which Linux keeps none of these for.
func keptXattrs(records map[string]string, kind byte) (map[string]string, error) {
	var kept map[string]string
	total := 0
	for _, key := range slices.Sorted(maps.Keys(records)) {
		name, value := "", records[key]
		switch {
		case strings.HasPrefix(key, xattrRecord):
			name = key[len(xattrRecord):]
		case key == "SCHILY.acl.access" || key == "SCHILY.acl.default":
			if _, ok := records[xattrRecord+"system.posix_acl_"+key[len("SCHILY.acl."):]]; ok {
				continue // the same again, in numbers
			}
			binary, err := posixACL(value)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", key, err)
			}
			name, value = "system.posix_acl_"+key[len("SCHILY.acl."):], binary
		}
		if !keptXattr(name) || kind == tar.TypeSymlink || kind == tar.TypeLink {
			continue
		}
		if len(name) > maxNameBytes || strings.IndexByte(name, 0) >= 0 {
			return nil, fmt.Errorf("the name of extended attribute %.64q is not one of Linux", name)
		}
		if total += len(name) + len(value); total > maxXattrBytes {
			return nil, fmt.Errorf("its extended attributes have more than %d bytes", maxXattrBytes)
		}
		if kept == nil {
			kept = map[string]string{}
		}
		kept[xattrRecord+name] = value
	}
	return kept, nil
}

func keptXattr(name string) bool {
	switch name {
	case "security.capability", "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	return strings.HasPrefix(name, "user.") && name != "user."
}
