package images

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"bloomery/images/qcow2"
)

// openDisk opens what Import is given: raw or qcow2, plain or compressed. Folder takes the temporary file that a qcow2 needs which is no file
// of its own.
func openDisk(ctx context.Context, r io.Reader, folder string, limit int64) (*diskReader, error) {
	whole, size, isFile := wholeFile(r)
	if isFile {
		head := make([]byte, len(qcow2.Magic))
		if _, err := whole.ReadAt(head, 0); err == nil && string(head) == qcow2.Magic {
			return openQcow2(ctx, whole, size, limit)
		}
	}
	d, err := decompress(&countingReader{ctx: ctx, r: r})
	if err != nil {
		return nil, err
	}
	buffered := bufio.NewReaderSize(d.r, 64<<10)
	head, err := buffered.Peek(1024)
	if err != nil && !errors.Is(err, io.EOF) {
		d.Close()
		return nil, fmt.Errorf("reading %s input at its byte %d: %w", d.kind, d.consumed(), err)
	}
	d.r = buffered
	if format := formatOf(head); format != "" {
		d.Close()
		return nil, refusedFormat(format)
	}
	if !bytes.HasPrefix(head, []byte(qcow2.Magic)) {
		return d, nil
	}
	defer d.Close()
	return spoolQcow2(ctx, d, folder, limit)
}

// readerAt is what a regular file can do that a pipe cannot.
type readerAt interface {
	io.ReaderAt
	Stat() (fs.FileInfo, error)
}

func wholeFile(r io.Reader) (file io.ReaderAt, size int64, ok bool) {
	f, ok := r.(readerAt)
	if !ok {
		return nil, 0, false
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, 0, false
	}
	return f, info.Size(), true
}

func openQcow2(ctx context.Context, file io.ReaderAt, size, limit int64) (*diskReader, error) {
	disk, err := qcow2.Open(file, size)
	if err != nil {
		return nil, fmt.Errorf("reading qcow2 input: %w", err)
	}
	if disk.Size() > limit {
		disk.Close()
		return nil, fmt.Errorf("reading qcow2 input: the disk has %d bytes, more than the limit of %d", disk.Size(), limit)
	}
	if _, err := disk.Check(ctx); err != nil {
		disk.Close()
		return nil, fmt.Errorf("reading qcow2 input: %w", err)
	}
	return &diskReader{kind: "qcow2", r: io.NewSectionReader(disk, 0, disk.Size()), close: disk.Close,
		consumed: func() int64 { return min(disk.Fetched(), size) }}, nil
}

// spoolQcow2 copies a qcow2 to a file without a name, so that it can be read here and there, and nothing is left of it whatever happens.
func spoolQcow2(ctx context.Context, r io.Reader, folder string, limit int64) (*diskReader, error) {
	file, err := os.CreateTemp(folder, "spool-")
	if err != nil {
		return nil, err
	}
	most := limit + limit/8 + 1<<20 // a qcow2 of noise is larger than its disk by its tables
	size, err := io.Copy(file, io.LimitReader(r, most+1))
	if err == nil && size > most {
		err = fmt.Errorf("it goes on at byte %d, the limit of a disk of %d bytes and its tables", most, limit)
	}
	if err = errors.Join(err, os.Remove(file.Name())); err != nil {
		return nil, errors.Join(fmt.Errorf("reading qcow2 input: copying it to a temporary file: %w", err), file.Close())
	}
	d, err := openQcow2(ctx, file, size, limit)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	closeDisk := d.close
	d.close = func() {
		closeDisk()
		_ = file.Close() // it has no name and was only read
	}
	return d, nil
}

// vhdCookie begins the footer that is a fixed VHD's last sector, and the header of a dynamic one.
const vhdCookie = "conectix"

// formatOf names by its first bytes what is no disk image that Import reads, so that it is not taken for a raw disk.
func formatOf(head []byte) string {
	for _, f := range []struct {
		at    int
		magic string
		name  string
	}{
		{0, "KDMV", "VMDK"},
		{0, "COWD", "VMDK"},
		{0, "# Disk DescriptorFile", "VMDK descriptor"},
		{0, vhdCookie, "VHD"},
		{0, "vhdxfile", "VHDX"},
		{64, "\x7f\x10\xda\xbe", "VDI"},
		{0, "QED\x00", "QED"},
		{0, "WithoutFreeSpace", "Parallels"},
		{0, "WithouFreSpacExt", "Parallels"},
		{257, "ustar", "tar"},
		{0, "PK\x03\x04", "zip"},
		{0, "7z\xbc\xaf\x27\x1c", "7z"},
		{0, "\x04\x22\x4d\x18", "lz4"},
		{0, "LZIP", "lzip"},
		{0, "\x28\xb5\x2f\xfd", "twice compressed"},
		{0, "\x1f\x8b\x08", "twice compressed"},
		{0, "\xfd7zXZ\x00", "twice compressed"},
	} {
		if len(head) >= f.at && bytes.HasPrefix(head[f.at:], []byte(f.magic)) {
			return f.name
		}
	}
	return ""
}

func refusedFormat(format string) error {
	advice := "make a raw or qcow2 one of it with: qemu-img convert -O qcow2"
	switch format {
	case "tar":
		advice = "a disk image has a partition table; for an archive of a root file system write \"kind\": \"rootfs\" into its meta file"
	case "zip", "7z", "lz4", "lzip", "twice compressed":
		advice = "unpack it first; read as they are: raw and qcow2, plain or compressed by zstd, gzip, xz or bzip2"
	}
	return fmt.Errorf("reading input: it is a %s file, which is not read; %s", format, advice)
}
