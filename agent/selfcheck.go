package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	checksumsPath = "/etc/bloomery/files.sha256"
	maxChecksums  = 8 << 20
	maxFiles      = 50_000
)

// errImageDamaged is why an agent does not touch a disk.
var errImageDamaged = errors.New("the agent image did not arrive whole")

type fileSum struct {
	path string
	sum  [sha256.Size]byte
}

// parseSums reads what sha256sum writes: 64 hexadecimal digits, two spaces, an absolute path.
func parseSums(data []byte) ([]fileSum, error) {
	var list []fileSum
	for line := range strings.Lines(string(data)) {
		digits, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		sum, err := hex.DecodeString(digits)
		if !ok || err != nil || len(sum) != sha256.Size || !path.IsAbs(name) || path.Clean(name) != name {
			return nil, fmt.Errorf("line %d of the list of checksums is not \"HEX  /path\"", len(list)+1)
		}
		if len(list) == maxFiles {
			return nil, fmt.Errorf("the list of checksums has more than %d lines", maxFiles)
		}
		list = append(list, fileSum{path: name, sum: [sha256.Size]byte(sum)})
	}
	if len(list) == 0 {
		return nil, errors.New("the list of checksums is empty")
	}
	return list, nil
}

// CheckFiles implements System.
func (l *live) CheckFiles(ctx context.Context, deep bool) error { return checkFiles(ctx, "/", deep) }

// checkFiles compares the files below root with the list in the image. Without deep it only looks whether they are there and not empty, which takes
// milliseconds and finds an image that was cut off; with it, every byte is read, at the lowest priority.
func checkFiles(ctx context.Context, root string, deep bool) error {
	f, err := os.Open(filepath.Join(root, checksumsPath))
	if err != nil {
		return fmt.Errorf("%w: its list of checksums is missing: %w", errImageDamaged, err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxChecksums))
	if err != nil {
		return fmt.Errorf("read the list of checksums: %w", err)
	}
	list, err := parseSums(data)
	if err != nil {
		return fmt.Errorf("%w: %w", errImageDamaged, err)
	}
	if deep {
		// The thread is not unlocked: it ends with the goroutine, and its priority with it.
		runtime.LockOSThread()
		if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), 19); err != nil {
			return fmt.Errorf("lower the priority of the self-check: %w", err)
		}
	}
	var bad []string
	for _, file := range list {
		if err := ctx.Err(); err != nil {
			return err
		}
		if !isWhole(filepath.Join(root, file.path), file.sum, deep) {
			bad = append(bad, file.path)
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%w: %d of %d files are missing or changed, the first is %s", errImageDamaged, len(bad), len(list), bad[0])
	}
	return nil
}

func isWhole(name string, want [sha256.Size]byte, deep bool) bool {
	info, err := os.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	if !deep {
		return info.Size() > 0 || want == sha256.Sum256(nil)
	}
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return false
	}
	return [sha256.Size]byte(h.Sum(nil)) == want
}
