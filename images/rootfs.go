package images

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sync/errgroup"
)

// ImportRootfs turns a tar archive of a root file system, plain or compressed like Import's input, into an image in the folder options.Out.
// Every entry is checked and written anew as POSIX.1-2017 pax, so that Unpack meets one dialect only:
//
//   - names are relative and clean, a folder stands before what is in it (one that the archive leaves out is added: root's, mode 0755),
//     nothing lies behind a symbolic link, and no name comes twice but a folder's;
//   - files, folders, symbolic links, fifos, hard links to a file that stands before, and device nodes below dev/ only;
//   - owners are numbers; of the extended attributes stay user.*, security.capability and POSIX ACLs (as star's and GNU tar's text too);
//   - a sparse file is stored in full and marked, so that Unpack makes its holes again.
//
// Anything else is an error that names the entry and its place. options.Boot's kernel and initrd must be in the archive.
func ImportRootfs(ctx context.Context, r io.Reader, options ImportOptions) (*Manifest, error) {
	m, err := importTo(ctx, r, options, rootfsInput{boot: options.Boot})
	if err != nil {
		return nil, fmt.Errorf("importing rootfs image %.64s: %w", options.Name, err)
	}
	return m, nil
}

// rootfsInput is the input of a rootfs image: a tar archive that is normalised on its way.
type rootfsInput struct{ boot Boot }

func (rootfsInput) kind() string { return KindRootfs }

func (in rootfsInput) open(ctx context.Context, group *errgroup.Group, r io.Reader, _ string, _ int64) (*diskReader, error) {
	archive, err := decompress(&countingReader{ctx: ctx, r: r})
	if err != nil {
		return nil, err
	}
	reader, writer := io.Pipe()
	group.Go(func() error {
		defer archive.Close()
		err := normalise(ctx, archive, writer, in.boot)
		// The frames' reader gives the error; nil is its end of file.
		return writer.CloseWithError(err)
	})
	return &diskReader{kind: archive.kind + " tar", r: reader, close: func() { _ = reader.Close() }, consumed: archive.consumed}, nil
}

// tarBlock is the size of a header and what everything is padded to (POSIX.1-2017, pax, ustar interchange format).
const tarBlock = 512

func normalise(ctx context.Context, r io.Reader, w io.Writer, boot Boot) error {
	in := &countingReader{ctx: ctx, r: r}
	reader := tar.NewReader(in)
	out := bufio.NewWriterSize(w, 1<<20)
	writer := tar.NewWriter(out)
	tree := newTarTree()
	buffer := make([]byte, 1<<20)
	for count := 0; ; count++ {
		// What is left of the entry before is its padding.
		at := (in.n.Load() + tarBlock - 1) / tarBlock * tarBlock
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			if in.n.Load()-at < 2*tarBlock {
				return fmt.Errorf("the tar archive was cut off at byte %d: its end mark is missing", in.n.Load())
			}
			break
		}
		if err != nil {
			return fmt.Errorf("reading the tar archive's entry %d at byte %d: %w", count, at, err)
		}
		entry, missing, err := tree.add(header)
		if err != nil {
			return fmt.Errorf("entry %d of the tar archive, %.256q at byte %d: %w", count, header.Name, at, err)
		}
		if entry == nil {
			continue
		}
		for _, h := range append(missing, entry) {
			if err := writer.WriteHeader(h); err != nil {
				return fmt.Errorf("entry %d of the tar archive, %.256q at byte %d: %w", count, header.Name, at, err)
			}
		}
		if n, err := io.CopyBuffer(writer, struct{ io.Reader }{reader}, buffer); err != nil {
			return fmt.Errorf("reading entry %d of the tar archive, %.256q at byte %d, after %d of %d bytes: %w", count, header.Name, at, n, entry.Size, err)
		}
	}
	if err := onlyZeros(in, buffer); err != nil {
		return err
	}
	if err := tree.has(boot); err != nil {
		return err
	}
	if err := writer.Close(); err != nil {
		return err
	}
	return out.Flush()
}

// onlyZeros reads the padding after the end mark, and with it the compressed file's own end and checksum.
func onlyZeros(in *countingReader, buffer []byte) error {
	for {
		n, err := in.Read(buffer)
		if !allZero(buffer[:n]) {
			return fmt.Errorf("more than zeros follow the tar archive's end mark before byte %d", in.n.Load())
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the end of the tar archive at byte %d: %w", in.n.Load(), err)
		}
	}
}
