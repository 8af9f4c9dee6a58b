package images

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"bloomery/images/oci"
)

// DefaultPlatform is the one whose image ImportOCI takes when none is named.
const DefaultPlatform = "linux/amd64"

// layersRatio bounds the layers of an OCI image together, as a multiple of the archive that may come of them: what a later layer replaces is read too.
const layersRatio = 4

// ImportOCI turns the image for a platform in an OCI layout, a folder or a tar archive of one, into a rootfs image: its layers are flattened, and
// the result is checked like ImportRootfs's archive.
func ImportOCI(ctx context.Context, source, platform string, options ImportOptions) (*Manifest, error) {
	layout, err := oci.Open(source)
	if err != nil {
		return nil, fmt.Errorf("importing rootfs image %.64s: %w", options.Name, err)
	}
	defer layout.Close() // read only
	if platform == "" {
		platform = DefaultPlatform
	}
	m, err := importTo(ctx, nil, options, ociInput{layout: layout, platform: platform, boot: options.Boot})
	if err != nil {
		return nil, fmt.Errorf("importing rootfs image %.64s: %w", options.Name, err)
	}
	return m, nil
}

// ociInput is the input of a rootfs image: the layers of an OCI image.
type ociInput struct {
	layout   *oci.Layout
	platform string
	boot     Boot
}

func (ociInput) kind() string { return KindRootfs }

func (in ociInput) open(ctx context.Context, group *errgroup.Group, _ io.Reader, _ string, limit int64) (*diskReader, error) {
	var consumed atomic.Int64
	options := oci.Options{Platform: in.platform, MaxSize: layersRatio * limit, Decompress: func(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
		d, err := decompress(&countingReader{ctx: ctx, r: &sharedCount{r, &consumed}})
		if err != nil {
			return nil, err
		}
		return closing{d}, nil
	}}
	flat, flatten := io.Pipe()
	reader, writer := io.Pipe()
	group.Go(func() error {
		return flatten.CloseWithError(in.layout.Flatten(ctx, flatten, options))
	})
	group.Go(func() error {
		err := normalise(ctx, flat, writer, in.boot)
		// Flatten stops too when nobody reads any more.
		_ = flat.CloseWithError(err)
		return writer.CloseWithError(err)
	})
	return &diskReader{kind: "OCI", r: reader, close: func() { _ = reader.Close() }, consumed: consumed.Load}, nil
}

// sharedCount counts what is read of several inputs.
type sharedCount struct {
	r io.Reader
	n *atomic.Int64
}

func (s *sharedCount) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.n.Add(int64(n))
	return n, err
}

// closing makes an io.Closer of a diskReader, whose closing cannot fail.
type closing struct{ *diskReader }

func (c closing) Close() error {
	c.diskReader.Close()
	return nil
}
