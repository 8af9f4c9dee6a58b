package oci

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Options say which image is flattened, and what it may take.
type Options struct {
	// Platform is OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT.
	Platform string
	// MaxSize bounds the bytes of all layers together, decompressed.
	MaxSize int64
	// Decompress opens a layer's bytes by what they are, with bounds of its own.
	Decompress func(context.Context, io.Reader) (io.ReadCloser, error)
}

// Flatten writes the root file system of the layout's image for a platform to w as a tar archive: the layers one upon the other, without what
// a later one has removed or replaced. A file stands before the hard links to it; a folder may stand after what is in it. All layers are read
// twice, first to know what is left in the end.
func (l *Layout) Flatten(ctx context.Context, w io.Writer, o Options) error {
	platform, err := v1.ParsePlatform(o.Platform)
	if err != nil {
		return fmt.Errorf("platform %.64q: want OS/ARCHITECTURE, as in linux/amd64: %w", o.Platform, err)
	}
	chosen, err := l.choose(*platform)
	if err != nil {
		return err
	}
	tree := newTree()
	budget := o.MaxSize
	for n := range chosen.layers {
		err := l.layer(ctx, chosen, n, o, &budget, func(at place, h *tar.Header, _ io.Reader) error { return tree.add(h, at) })
		if err != nil {
			return err
		}
	}
	buffered := bufio.NewWriterSize(w, 1<<20)
	out := output{tar: tar.NewWriter(buffered)}
	out.names, out.contents = tree.settle()
	budget = o.MaxSize
	for n := range chosen.layers {
		if err := l.layer(ctx, chosen, n, o, &budget, out.write); err != nil {
			return err
		}
	}
	return errors.Join(out.tar.Close(), buffered.Flush())
}

// layer reads a layer to its end, verifying it compressed and decompressed.
func (l *Layout) layer(ctx context.Context, from image, n int, o Options, budget *int64, use func(place, *tar.Header, io.Reader) error) error {
	d := from.layers[n]
	fail := func(err error) error { return fmt.Errorf("layer %d, %s: %w", n, d.Digest, err) }
	name, err := blobName(d)
	if err != nil {
		return fail(err)
	}
	file, size, err := l.open(name)
	if err != nil {
		return fail(err)
	}
	defer file.Close() // read only
	if size != d.Size {
		return fail(fmt.Errorf("it has %d bytes, want %d", size, d.Size))
	}
	packed := newChecked(file, "the blob", d.Digest)
	plain, err := o.Decompress(ctx, packed)
	if err != nil {
		return fail(err)
	}
	defer plain.Close() // read only
	content := newChecked(&bounded{plain, budget}, "the decompressed layer", from.plain[n])
	reader := tar.NewReader(content)
	for index := 0; ; index++ {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fail(fmt.Errorf("reading entry %d: %w", index, err))
		}
		if err := use(place{n, index}, h, reader); err != nil {
			return fail(fmt.Errorf("entry %d, %.256q: %w", index, h.Name, err))
		}
	}
	// The sums are known at the end only, behind the padding.
	for _, rest := range []io.Reader{content, packed} {
		if _, err := io.Copy(io.Discard, rest); err != nil {
			return fail(err)
		}
	}
	return nil
}

// bounded ends the reading of layers that are too large.
type bounded struct {
	r    io.Reader
	left *int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if *b.left -= int64(n); *b.left < 0 {
		return 0, errors.New("the layers are larger together than the limit")
	}
	return n, err
}

// output writes what is left of the layers.
type output struct {
	tar      *tar.Writer
	names    map[place]kept
	contents map[place]*file
}

func (o *output) write(at place, h *tar.Header, content io.Reader) error {
	entry, isKept := o.names[at]
	f := o.contents[at]
	header := &tar.Header{Format: tar.FormatPAX, Typeflag: h.Typeflag, Name: entry.name, Linkname: h.Linkname, Mode: h.Mode, Uid: h.Uid, Gid: h.Gid,
		ModTime: h.ModTime, Devmajor: h.Devmajor, Devminor: h.Devminor, PAXRecords: attributes(h.PAXRecords)}
	switch {
	case f != nil: // under another name when its own is gone
		header.Typeflag, header.Name, header.Size = tar.TypeReg, f.name, h.Size
		if err := o.tar.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.Copy(o.tar, content)
		return err
	case !isKept:
		return nil
	case entry.file != nil:
		if entry.name == entry.file.name {
			return nil
		}
		header.Linkname = entry.file.name
	case h.Typeflag == tar.TypeDir:
		header.Name = "./" + entry.name
		if entry.name != "" {
			header.Name = entry.name + "/"
		}
	}
	return o.tar.WriteHeader(header)
}

// attributes are the records of an entry that say something of the file and nothing of the archive's own form.
func attributes(records map[string]string) map[string]string {
	kept := map[string]string{}
	for key, value := range records {
		if strings.HasPrefix(key, "SCHILY.") {
			kept[key] = value
		}
	}
	return kept
}
