package images

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// maxWindow bounds the memory that a compressed file can ask of its decompressor, in bytes: zstd --ultra -22 and xz -9 need 128 MiB and 64 MiB.
const maxWindow = 128 << 20

// A decompressor that has made more than bombGrace bytes must not have made more than bombRatio of each byte of its input. A disk with a
// system on it has more to say: one of 64 GiB that is nearly empty need only have 128 MiB compressed. Runs of zeros reach 1030 with gzip and a
// million with bzip2.
const (
	bombRatio = 500
	bombGrace = 1 << 30
)

// diskReader reads the disk bytes of an input and remembers whether it ended well, because io.ReadFull reports the same
// error for the last, shorter frame and for an input that was cut off.
type diskReader struct {
	kind  string
	r     io.Reader
	close func()
	eof   bool
	// consumed is how many bytes of the input were read. It may be called while others read.
	consumed func() int64
	// ratio bounds the bytes made of each byte of the input once there are more than grace; 0 for no bound.
	ratio, grace, made int64
}

func (d *diskReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.eof = err == io.EOF
	d.made += int64(n)
	if d.ratio > 0 && d.made > d.grace && d.made/d.ratio > d.consumed() {
		d.eof = false
		return 0, fmt.Errorf("%d bytes came of the first %d of the input, more than %d of each: this is no disk image but a decompression bomb, or a disk so empty that it is to be given raw or as qcow2",
			d.made, d.consumed(), d.ratio)
	}
	return n, err
}

func (d *diskReader) ended() bool { return d.eof }

func (d *diskReader) Close() { d.close() }

// decompress finds out how an input is compressed by its first bytes: zstd (RFC 8878, section 3.1.1), gzip (RFC 1952, section 2.3.1),
// xz (the .xz file format 1.2.1, section 2.1.1.1), bzip2, or else not.
func decompress(counted *countingReader) (*diskReader, error) {
	buffered := bufio.NewReaderSize(counted, 256<<10)
	head, err := buffered.Peek(64)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("reading input: %w", err)
	}
	d := &diskReader{close: func() {}, consumed: counted.n.Load, ratio: bombRatio, grace: bombGrace}
	switch {
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		decoder, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, fmt.Errorf("reading zstd input: %w", err)
		}
		d.kind, d.r, d.close = "zstd", decoder, decoder.Close
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		decoder, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("reading gzip input: %w", err)
		}
		d.kind, d.r = "gzip", decoder
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		if err := checkXZDictionary(head); err != nil {
			return nil, err
		}
		decoder, err := xz.NewReader(buffered)
		if err != nil {
			return nil, fmt.Errorf("reading xz input: %w", err)
		}
		d.kind, d.r = "xz", decoder
	case isBzip2(head):
		d.kind, d.r = "bzip2", bzip2.NewReader(buffered)
	default:
		d.kind, d.r, d.ratio = "raw", buffered, 0
	}
	return d, nil
}

// isBzip2 tells a bzip2 stream by "BZh", its block size of 1 to 9, and the magic of its first block or, of an empty one, of its end.
func isBzip2(head []byte) bool {
	return len(head) >= 10 && bytes.HasPrefix(head, []byte("BZh")) && head[3] >= '1' && head[3] <= '9' &&
		(bytes.HasPrefix(head[4:], []byte("1AY&SY")) || bytes.HasPrefix(head[4:], []byte("\x17rE8P\x90")))
}

// checkXZDictionary refuses a first block that asks for more memory than maxWindow, since the library takes what the header says.
// The stream header has 12 bytes; then come the block header's size, its flags, two optional sizes, and the filters: id, size of
// properties, properties (.xz file format 1.2.1, sections 3.1 and 5.3.1).
func checkXZDictionary(head []byte) error {
	const streamHeader = 12
	if len(head) < streamHeader+4 || head[streamHeader] == 0 {
		return nil // too short or without a block: the library says so
	}
	block := head[streamHeader:]
	flags, rest := block[1], block[2:]
	for _, present := range []bool{flags&0x40 != 0, flags&0x80 != 0} {
		for present {
			if len(rest) == 0 {
				return nil
			}
			present = rest[0]&0x80 != 0
			rest = rest[1:]
		}
	}
	const lzma2 = 0x21
	if flags&0x03 != 0 || len(rest) < 3 || rest[0] != lzma2 || rest[1] != 1 {
		return errors.New("reading xz input: a filter other than LZMA2 is used; compress with plain xz")
	}
	bits := rest[2] & 0x3f
	size := uint64(2|bits&1) << (bits/2 + 11)
	if bits > 40 || size > maxWindow {
		return fmt.Errorf("reading xz input: its dictionary is larger than %d bytes; compress with at most xz -9", maxWindow)
	}
	return nil
}

// countingReader counts what was read of the input and stops when the context ends.
type countingReader struct {
	ctx context.Context
	r   io.Reader
	n   atomic.Int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}
