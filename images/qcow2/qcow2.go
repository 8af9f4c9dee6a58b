// Package qcow2 reads QEMU's disk image format, versions 2 and 3, as the bytes of the disk that it holds. It never writes.
//
// The format is that of QEMU's docs/interop/qcow2.rst. Nothing in a file is believed: every offset and length is held against the file's
// size before it is used, and an error names the offset in the file. Reference counts and snapshots are not looked at: they say
// nothing about the bytes of the disk.
package qcow2

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"
)

var (
	// ErrUnsupported says that a file uses a feature that this package does not read.
	ErrUnsupported = errors.New("not supported")
	// ErrCorrupt says that a file contradicts itself or ends too early.
	ErrCorrupt = errors.New("corrupt")
)

// Error is what is wrong with a file, and where.
type Error struct {
	// Offset in the file, in bytes.
	Offset int64
	// Kind is ErrUnsupported, ErrCorrupt, or the error of reading the file.
	Kind   error
	Reason string
}

func (e *Error) Error() string {
	return fmt.Sprintf("qcow2 at byte %d of the file: %s: %v", e.Offset, e.Reason, e.Kind)
}

func (e *Error) Unwrap() error { return e.Kind }

func corrupt(offset int64, format string, args ...any) error {
	return &Error{offset, ErrCorrupt, fmt.Sprintf(format, args...)}
}

func unsupported(offset int64, format string, args ...any) error {
	return &Error{offset, ErrUnsupported, fmt.Sprintf(format, args...)}
}

// maxFileClusters bounds what Check remembers to 8 MiB: a bit for each cluster of the file. It is 4 TiB of clusters of 64 KiB.
const maxFileClusters = 64 << 20

// Image is an open file. Its methods may be called concurrently; reads go one after the other.
type Image struct {
	file   io.ReaderAt
	size   int64
	header header
	l1     []uint64

	mu sync.Mutex
	// table is the L2 table at tableAt, the last one that was used.
	table   []byte
	tableAt int64
	// plain is the cluster whose descriptor in the L2 table is plainOf, decompressed.
	plain   []byte
	plainOf uint64
	packed  []byte
	inflate io.ReadCloser
	zstd    *zstd.Decoder
	fetched int64
}

// Open reads the header and the L1 table of a file of so many bytes.
func Open(file io.ReaderAt, size int64) (*Image, error) {
	h, err := readHeader(file, size)
	if err != nil {
		return nil, err
	}
	if clusters := size >> h.clusterBits; clusters > maxFileClusters {
		return nil, unsupported(20, "the file has %d clusters of %d bytes, more than %d", clusters, h.clusterSize(), maxFileClusters)
	}
	i := &Image{file: file, size: size, header: h}
	if i.l1, err = i.readL1(); err != nil {
		return nil, err
	}
	return i, nil
}

// Close frees the decompressors. The file is the caller's.
func (i *Image) Close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.zstd != nil {
		i.zstd.Close()
		i.zstd = nil
	}
}

// Size is the number of bytes of the disk.
func (i *Image) Size() int64 { return i.header.size }

// Fetched is the number of bytes of the file that were read.
func (i *Image) Fetched() int64 {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetched
}

// ReadAt implements io.ReaderAt over the bytes of the disk.
func (i *Image) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, errors.New("qcow2: reading before the disk")
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	done := 0
	for done < len(p) {
		at := offset + int64(done)
		if at >= i.header.size {
			return done, io.EOF
		}
		within := at & (i.header.clusterSize() - 1)
		n := min(int64(len(p)-done), i.header.clusterSize()-within, i.header.size-at)
		if err := i.readCluster(p[done:done+int(n)], at>>i.header.clusterBits, within); err != nil {
			return done, err
		}
		done += int(n)
	}
	return done, nil
}

// readCluster fills p with the bytes from within on of a cluster of the disk.
func (i *Image) readCluster(p []byte, index, within int64) error {
	e, err := i.lookUp(index)
	if err != nil {
		return err
	}
	switch e.kind {
	case zeroCluster:
		clear(p)
		return nil
	case plainCluster:
		if e.at+within+int64(len(p)) > i.size {
			return corrupt(e.at, "the data of the disk's cluster %d goes on after the file's end, which has %d bytes", index, i.size)
		}
		return i.read(p, e.at+within, "data")
	}
	if err := i.decompress(e); err != nil {
		return err
	}
	copy(p, i.plain[within:])
	return nil
}

// read fills p from the file. The caller has checked that the file has the bytes.
func (i *Image) read(p []byte, offset int64, what string) error {
	n, err := i.file.ReadAt(p, offset)
	i.fetched += int64(n)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &Error{offset + int64(n), err, "reading " + what}
}
