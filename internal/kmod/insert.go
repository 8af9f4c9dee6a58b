package kmod

import (
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// maxModuleSize bounds a decompressed module; the largest of Debian's have about 10 MB.
const maxModuleSize = 128 << 20

// Kernel inserts modules into the running kernel: plain files by finit_module(2), so that the kernel reads them itself,
// and .gz, .xz and .zst ones by init_module(2), since not every kernel decompresses.
type Kernel struct{}

// Insert implements Loader.
func (Kernel) Insert(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if strings.HasSuffix(path, ".ko") {
		return unix.FinitModule(int(f.Fd()), "", 0)
	}
	r, err := decompressor(path, f)
	if err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	image, err := io.ReadAll(io.LimitReader(r, maxModuleSize+1))
	if err != nil {
		return fmt.Errorf("decompress: %w", err)
	}
	if len(image) > maxModuleSize {
		return fmt.Errorf("decompress: larger than %d bytes", maxModuleSize)
	}
	return unix.InitModule(image, "")
}

func decompressor(path string, r io.Reader) (io.Reader, error) {
	switch {
	case strings.HasSuffix(path, ".gz"):
		return gzip.NewReader(r)
	case strings.HasSuffix(path, ".xz"):
		return xz.NewReader(r)
	case strings.HasSuffix(path, ".zst"):
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxModuleSize))
	default:
		return nil, fmt.Errorf("the ending of %s is none of .ko, .ko.gz, .ko.xz, .ko.zst", path)
	}
}
