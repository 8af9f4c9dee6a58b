package netboot

import (
	"fmt"
	"io/fs"
	"slices"
	"time"
)

// bootFiles are the only names that are served, whatever else lies beside them.
func bootFiles() []string {
	return []string{AgentImage, "vmlinuz", "initramfs.cpio.zst"}
}

// openBootFile opens one of bootFiles. Any other name, with or without
// directories, does not exist.
func openBootFile(files fs.FS, name string) (fs.File, fs.FileInfo, error) {
	if !slices.Contains(bootFiles(), name) {
		return nil, nil, fmt.Errorf("open %q: %w", name, fs.ErrNotExist)
	}
	f, err := files.Open(name)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open %q: not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// allowedTimeout bounds the question who an address belongs to.
const allowedTimeout = 3 * time.Second
