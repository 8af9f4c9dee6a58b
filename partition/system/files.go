package system

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// Limits of what is read of an image, in bytes.
const (
	maxLoader    = 16 << 20
	maxInitrd    = 512 << 20
	maxOSRelease = 64 << 10
)

// inside turns a path of the installed system into one below its root.
func inside(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func readCapped(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := root.Open(inside(name))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s has more than %d bytes", name, limit)
	}
	return content, nil
}

// writeFile puts a file of root's into the system, in one piece: it is the old or the new one, whenever the power goes. What is there already
// stays. The image is not trusted: a link in it that leads out of root is an error.
func writeFile(root *os.Root, name string, content []byte, mode fs.FileMode) error {
	name = inside(name)
	if same, err := holds(root, name, content, mode); same || err != nil {
		return err
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	temporary := name + ".new"
	if err := root.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode) // whatever the process's umask
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return root.Rename(temporary, name)
}

func holds(root *os.Root, name string, content []byte, mode fs.FileMode) (bool, error) {
	info, err := root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || !info.Mode().IsRegular() || info.Size() != int64(len(content)) || info.Mode().Perm() != mode {
		return false, err
	}
	had, err := readCapped(root, name, int64(len(content)))
	return bytes.Equal(had, content), err
}

// follow gives the file that a path of the installed system is, through symbolic links as the system itself would follow them.
func follow(root *os.Root, name string) (string, error) {
	const maxLinks = 8
	for range maxLinks {
		info, err := root.Lstat(inside(name))
		if err != nil {
			return "", err
		}
		if info.Mode().IsRegular() {
			return path.Clean("/" + name), nil
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return "", fmt.Errorf("%s is no file", name)
		}
		target, err := root.Readlink(inside(name))
		if err != nil {
			return "", err
		}
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(name), target)
		}
		name = target
	}
	return "", fmt.Errorf("%s: more than %d symbolic links", name, maxLinks)
}
