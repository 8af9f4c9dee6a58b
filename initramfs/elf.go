package initramfs

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/u-root/u-root/pkg/cpio"
)

// libraryDirs is where Debian's dynamic linker looks, in its order (ld.so(8)).
var libraryDirs = []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib", "usr/lib", "lib64"}

const maxSymlinks = 16

// sysrootFiles copies files of a sysroot into a tree, with the symbolic links that lead to them and, for programs, the
// shared libraries that they need.
type sysrootFiles struct {
	root    string
	tree    *tree
	origins map[string]string // path without leading slash -> package
}

// add puts name (an absolute path of the sysroot) into the tree under the same path.
func (s *sysrootFiles) add(name string) error {
	name = strings.TrimPrefix(path.Clean(name), "/")
	for range maxSymlinks {
		info, err := os.Lstat(filepath.Join(s.root, name))
		if err != nil {
			return fmt.Errorf("take /%s from sysroot: %w", name, err)
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(filepath.Join(s.root, name))
			if err != nil {
				return fmt.Errorf("take /%s from sysroot: %w", name, err)
			}
			if err := s.tree.link(name, target, s.origins[name]); err != nil {
				return err
			}
			if !path.IsAbs(target) {
				target = path.Join("/", path.Dir(name), target)
			}
			name = strings.TrimPrefix(path.Clean(target), "/")
		case info.Mode().IsRegular():
			return s.addRegular(name, info)
		default:
			return fmt.Errorf("take /%s from sysroot: it is neither a file nor a symbolic link", name)
		}
	}
	return fmt.Errorf("take /%s from sysroot: more than %d symbolic links", name, maxSymlinks)
}

func (s *sysrootFiles) addRegular(name string, info fs.FileInfo) error {
	perm := uint32(0o644)
	if info.Mode().Perm()&0o111 != 0 {
		perm = 0o755
	}
	source := filepath.Join(s.root, name)
	have, seen := s.tree.entries[name]
	if seen && have.mode&cpio.S_IFMT == cpio.S_IFREG {
		return nil
	}
	if err := s.tree.copy(name, perm, source, s.origins[name]); err != nil {
		return err
	}
	needs, err := sharedObjects(source)
	if err != nil {
		return fmt.Errorf("read libraries of /%s: %w", name, err)
	}
	for _, need := range needs {
		file, err := s.library(need)
		if err != nil {
			return fmt.Errorf("/%s needs %s: %w", name, need, err)
		}
		if err := s.add(file); err != nil {
			return err
		}
	}
	return nil
}

// library finds a soname; an absolute name (the program interpreter) is itself.
func (s *sysrootFiles) library(soname string) (string, error) {
	if path.IsAbs(soname) {
		return soname, nil
	}
	for _, dir := range libraryDirs {
		name := path.Join(dir, soname)
		if _, err := os.Lstat(filepath.Join(s.root, name)); err == nil {
			return "/" + name, nil
		}
	}
	return "", fmt.Errorf("no such library in the sysroot's %s", strings.Join(libraryDirs, ", "))
}

// sharedObjects lists the interpreter and the DT_NEEDED sonames of an ELF file; a file that is not ELF needs nothing.
func sharedObjects(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		if format := (*elf.FormatError)(nil); errors.As(err, &format) {
			return nil, scriptOrData(file)
		}
		if info, statErr := os.Stat(file); statErr == nil && info.Size() < 16 {
			return nil, nil
		}
		return nil, err
	}
	defer f.Close()
	var needs []string
	for _, prog := range f.Progs {
		if prog.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, prog.Filesz)
		if _, err := prog.ReadAt(name, 0); err != nil {
			return nil, fmt.Errorf("read program interpreter: %w", err)
		}
		needs = append(needs, strings.TrimRight(string(name), "\x00"))
	}
	sonames, err := f.DynString(elf.DT_NEEDED)
	if err != nil {
		return nil, fmt.Errorf("read DT_NEEDED: %w", err)
	}
	for _, tag := range []elf.DynTag{elf.DT_RUNPATH, elf.DT_RPATH} {
		if paths, err := f.DynString(tag); err == nil && len(paths) > 0 {
			return nil, fmt.Errorf("%s %q is not supported", tag, paths)
		}
	}
	return append(needs, sonames...), nil
}

// scriptOrData refuses an executable script: the image has no interpreter but busybox's shell, which the tools table
// must not rely on.
func scriptOrData(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [4]byte
	n, _ := f.Read(magic[:])
	switch {
	case n >= 2 && string(magic[:2]) == "#!":
		return errors.New("it is a script")
	case string(magic[:]) == elf.ELFMAG:
		return errors.New("it is a damaged ELF file")
	}
	return nil
}
