package initramfs

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/u-root/u-root/pkg/cpio"
)

// segmentAlign is what the kernel wants between concatenated archives (Documentation/driver-api/early-userspace/buffer-format.rst).
const segmentAlign = 4

// writeCPIO writes t as one newc archive. Order, inode numbers, owners and times depend on nothing but t and epoch.
func writeCPIO(w io.Writer, t *tree, epoch time.Time) error {
	buffered := bufio.NewWriterSize(w, 1<<20)
	counted := &countingWriter{w: buffered}
	records := cpio.Newc.Writer(counted)
	for i, e := range t.sorted() {
		if err := writeEntry(records, e, uint64(i+1), uint64(max(0, epoch.Unix()))); err != nil {
			return err
		}
	}
	if err := cpio.WriteTrailer(records); err != nil {
		return fmt.Errorf("end archive: %w", err)
	}
	if _, err := counted.Write(padding(counted.n)); err != nil {
		return fmt.Errorf("pad archive: %w", err)
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

func writeEntry(w cpio.RecordWriter, e entry, inode, mtime uint64) error {
	info := cpio.Info{Ino: inode, Mode: uint64(e.mode), NLink: 1, MTime: mtime, Name: e.path}
	var content io.ReaderAt
	switch e.mode & cpio.S_IFMT {
	case cpio.S_IFDIR:
		info.NLink = 2
	case cpio.S_IFLNK:
		info.FileSize = uint64(len(e.target))
		content = strings.NewReader(e.target)
	case cpio.S_IFREG:
		r, size, err := e.open()
		if err != nil {
			return err
		}
		defer r.Close()
		info.FileSize = uint64(size)
		data := make([]byte, size)
		if _, err := io.ReadFull(r, data); err != nil {
			return fmt.Errorf("read content of /%s: %w", e.path, err)
		}
		content = bytes.NewReader(data)
	default:
		return fmt.Errorf("add /%s to archive: file type %#o is not supported", e.path, e.mode&cpio.S_IFMT)
	}
	if err := w.WriteRecord(cpio.Record{Info: info, ReaderAt: content}); err != nil {
		return fmt.Errorf("add /%s to archive: %w", e.path, err)
	}
	return nil
}

// compress writes r as one zstd frame padded with zero bytes to segmentAlign. One goroutine, so that the output does
// not depend on the number of cores.
func compress(w io.Writer, r io.Reader) error {
	counted := &countingWriter{w: w}
	enc, err := zstd.NewWriter(counted, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20))
	if err != nil {
		return fmt.Errorf("start zstd: %w", err)
	}
	if _, err := io.Copy(enc, r); err != nil {
		_ = enc.Close()
		return fmt.Errorf("compress archive: %w", err)
	}
	if err := enc.Close(); err != nil {
		return fmt.Errorf("compress archive: %w", err)
	}
	if _, err := counted.Write(padding(counted.n)); err != nil {
		return fmt.Errorf("pad archive: %w", err)
	}
	return nil
}

func padding(n int64) []byte {
	return make([]byte, (segmentAlign-n%segmentAlign)%segmentAlign)
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
