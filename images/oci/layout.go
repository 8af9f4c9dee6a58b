// Package oci reads an image of the Open Container Initiative from a layout, a folder or a tar archive of one, and flattens its layers into one
// archive of the root file system. It talks to no registry.
//
// Sources: the OCI image specification v1.1, image-layout.md, image-index.md, manifest.md and layer.md. Each blob's length and SHA-256 are
// verified against what names it.
package oci

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	layoutFile = "oci-layout"
	indexFile  = "index.json"
	// maxDocument bounds an index, a manifest and a configuration; registries take 4 MiB.
	maxDocument = 4 << 20
	maxLayers   = 256
	// maxBlobs bounds the entries of a layout's archive.
	maxBlobs = 4096
	// maxNesting bounds indexes in indexes.
	maxNesting = 4
)

// Layout is an open image layout.
type Layout struct {
	open  func(name string) (io.ReadCloser, int64, error)
	close func() error
}

// IsLayout tells whether a folder or a tar archive is an image layout.
func IsLayout(source string) bool {
	l, err := Open(source)
	if err != nil {
		return false
	}
	return l.Close() == nil
}

// Open opens a layout in a folder or in a tar archive that is not compressed.
func Open(source string) (*Layout, error) {
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	l := &Layout{}
	if info.IsDir() {
		err = l.openFolder(source)
	} else {
		err = l.openArchive(source)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the OCI layout %s: %w", source, err)
	}
	if _, err := l.document(layoutFile, -1, v1.Hash{}); err != nil {
		return nil, errors.Join(fmt.Errorf("opening the OCI layout %s: %w", source, err), l.close())
	}
	return l, nil
}

// Close closes the layout's files.
func (l *Layout) Close() error { return l.close() }

func (l *Layout) openFolder(source string) error {
	root, err := os.OpenRoot(source)
	if err != nil {
		return err
	}
	l.close = root.Close
	l.open = func(name string) (io.ReadCloser, int64, error) {
		// Of a pipe or a device neither the length nor the end is known.
		if info, err := root.Stat(name); err != nil {
			return nil, 0, err
		} else if !info.Mode().IsRegular() {
			return nil, 0, fmt.Errorf("%s is no regular file", name)
		}
		file, err := root.Open(name)
		if err != nil {
			return nil, 0, err
		}
		info, err := file.Stat()
		if err != nil {
			return nil, 0, errors.Join(err, file.Close())
		}
		return file, info.Size(), nil
	}
	return nil
}

type stretch struct{ offset, size int64 }

// openArchive finds where in the archive each blob lies.
func (l *Layout) openArchive(source string) error {
	file, err := os.Open(source)
	if err != nil {
		return err
	}
	places := map[string]stretch{}
	reader := tar.NewReader(file)
	for {
		h, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil && len(places) == maxBlobs {
			err = fmt.Errorf("it has more than %d files", maxBlobs)
		}
		var offset int64
		if err == nil {
			offset, err = file.Seek(0, io.SeekCurrent)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("reading the archive: %w", err), file.Close())
		}
		if h.Typeflag == tar.TypeReg {
			places[path.Clean(h.Name)] = stretch{offset, h.Size}
		}
	}
	l.close = file.Close
	l.open = func(name string) (io.ReadCloser, int64, error) {
		at, ok := places[name]
		if !ok {
			return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return io.NopCloser(io.NewSectionReader(file, at.offset, at.size)), at.size, nil
	}
	return nil
}

// document reads a small file whole. A size below 0 is not known.
func (l *Layout) document(name string, size int64, digest v1.Hash) ([]byte, error) {
	file, has, err := l.open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close() // read only
	if has > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, has, maxDocument)
	}
	if size >= 0 && size != has {
		return nil, fmt.Errorf("%s has %d bytes, want %d", name, has, size)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxDocument))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if size < 0 {
		return text, nil
	}
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != digest.Hex {
		return nil, fmt.Errorf("%s has sha256 %x", name, sum)
	}
	return text, nil
}

func blobName(d v1.Descriptor) (string, error) {
	if d.Digest.Algorithm != "sha256" || len(d.Digest.Hex) != 2*sha256.Size || strings.Trim(d.Digest.Hex, "0123456789abcdef") != "" {
		return "", fmt.Errorf("the digest %.100q is no sha256", d.Digest.String())
	}
	if d.Size < 0 {
		return "", fmt.Errorf("blob %s: its size is %d", d.Digest, d.Size)
	}
	return "blobs/sha256/" + d.Digest.Hex, nil
}

func (l *Layout) small(d v1.Descriptor) ([]byte, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	return l.document(name, d.Size, d.Digest)
}

// image is what there is to flatten.
type image struct {
	layers []v1.Descriptor
	// plain are the layers' digests when they are decompressed.
	plain []v1.Hash
}

// choose finds the one image for a platform.
func (l *Layout) choose(platform v1.Platform) (image, error) {
	text, err := l.document(indexFile, -1, v1.Hash{})
	if err != nil {
		return image{}, err
	}
	var found []v1.Descriptor
	var others []string
	if err := l.walk(indexFile, text, platform, 0, &found, &others); err != nil {
		return image{}, err
	}
	switch {
	case len(found) == 0:
		return image{}, fmt.Errorf("no image is for platform %s; there are: %.500s", platform.String(), strings.Join(others, ", "))
	case len(found) > 1:
		return image{}, fmt.Errorf("%d images are for platform %s, the first two %s and %s; keep one in the layout, with: skopeo copy", len(found), platform.String(), found[0].Digest, found[1].Digest)
	}
	return l.image(found[0], platform)
}

// walk collects the images for a platform from an index and those in it.
func (l *Layout) walk(name string, text []byte, platform v1.Platform, depth int, found *[]v1.Descriptor, others *[]string) error {
	if depth > maxNesting {
		return fmt.Errorf("%s: indexes lie in each other more than %d deep", name, maxNesting)
	}
	index, err := v1.ParseIndexManifest(strings.NewReader(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if len(index.Manifests) > maxBlobs {
		return fmt.Errorf("%s: it has %d images", name, len(index.Manifests))
	}
	for _, d := range index.Manifests {
		switch {
		case d.MediaType.IsIndex():
			inner, err := l.small(d)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if err := l.walk(d.Digest.String(), inner, platform, depth+1, found, others); err != nil {
				return err
			}
		case !d.MediaType.IsImage(), d.Annotations["vnd.docker.reference.type"] != "":
			// Attestations and other artefacts.
		case d.Platform != nil && !d.Platform.Satisfies(platform):
			*others = append(*others, d.Platform.String())
		default:
			// Without a platform here the configuration tells.
			if !has(*found, d.Digest) {
				*found = append(*found, d)
			}
		}
	}
	return nil
}

func has(all []v1.Descriptor, digest v1.Hash) bool {
	for _, d := range all {
		if d.Digest == digest {
			return true
		}
	}
	return false
}

func (l *Layout) image(d v1.Descriptor, platform v1.Platform) (image, error) {
	text, err := l.small(d)
	if err != nil {
		return image{}, err
	}
	manifest, err := v1.ParseManifest(strings.NewReader(string(text)))
	if err != nil {
		return image{}, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	if text, err = l.small(manifest.Config); err != nil {
		return image{}, fmt.Errorf("manifest %s: %w", d.Digest, err)
	}
	config, err := v1.ParseConfigFile(strings.NewReader(string(text)))
	if err != nil {
		return image{}, fmt.Errorf("configuration %s: %w", manifest.Config.Digest, err)
	}
	if is := config.Platform(); is == nil || !is.Satisfies(platform) {
		return image{}, fmt.Errorf("image %s is for platform %s/%s, want %s", d.Digest, config.OS, config.Architecture, platform.String())
	}
	if n := len(manifest.Layers); n == 0 || n > maxLayers || n != len(config.RootFS.DiffIDs) {
		return image{}, fmt.Errorf("image %s has %d layers and %d digests of them; want as many, 1 to %d", d.Digest, n, len(config.RootFS.DiffIDs), maxLayers)
	}
	for n, layer := range manifest.Layers {
		if !isLayer(layer.MediaType) {
			return image{}, fmt.Errorf("image %s: layer %d is of type %.100q, which is no tar archive", d.Digest, n, layer.MediaType)
		}
	}
	return image{manifest.Layers, config.RootFS.DiffIDs}, nil
}

func isLayer(t types.MediaType) bool {
	return t.IsLayer() && !strings.HasSuffix(string(t), "+encrypted")
}

// checked reads a blob and tells at its end whether it was the right one.
type checked struct {
	r    io.Reader
	what string
	want v1.Hash
	sum  hash.Hash
}

func newChecked(r io.Reader, what string, want v1.Hash) *checked {
	return &checked{r, what, want, sha256.New()}
}

func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.sum.Write(p[:n])
	if errors.Is(err, io.EOF) {
		if sum := hex.EncodeToString(c.sum.Sum(nil)); c.want.Algorithm != "sha256" || sum != c.want.Hex {
			return n, fmt.Errorf("%s has sha256 %s, want %s", c.what, sum, c.want)
		}
	}
	return n, err
}
