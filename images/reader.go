package images

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"github.com/klauspost/compress/zstd"
)

// Reader reads the disk, or the archive, that an image in a folder holds, here and there. It is for looks at a few places: each frame that
// is read is verified and decompressed whole, and only the last one is kept. It is one goroutine's.
type Reader struct {
	Manifest *Manifest

	data    *os.File
	decoder *zstd.Decoder
	held    int // frame whose bytes are in raw; -1 for none
	raw     []byte
}

// OpenReader opens the image that Import made in a folder; its signature is not looked at.
func OpenReader(folder string) (*Reader, error) {
	text, err := readLimited(filepath.Join(folder, ManifestFile), MaxManifestSize)
	if err != nil {
		return nil, fmt.Errorf("opening image: %w", err)
	}
	m, err := DecodeManifest(text)
	if err != nil {
		return nil, fmt.Errorf("opening image %s: %w", folder, err)
	}
	data, err := os.Open(filepath.Join(folder, DataFile))
	if err != nil {
		return nil, fmt.Errorf("opening image: %w", err)
	}
	decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*FrameSize), zstd.WithDecoderMaxWindow(FrameSize))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting zstd: %w", err), data.Close())
	}
	return &Reader{Manifest: m, data: data, decoder: decoder, held: -1}, nil
}

// Close closes the image's file.
func (r *Reader) Close() error {
	r.decoder.Close()
	return r.data.Close()
}

// ReadAt implements io.ReaderAt.
func (r *Reader) ReadAt(p []byte, offset int64) (int, error) {
	if offset < 0 {
		return 0, fmt.Errorf("reading image: offset %d", offset)
	}
	frames := r.Manifest.Frames
	n := 0
	for n < len(p) {
		at := offset + int64(n)
		i := sort.Search(len(frames), func(i int) bool { return frames[i].Offset+frames[i].Length > at })
		if i == len(frames) {
			return n, io.EOF
		}
		inside := at - frames[i].Offset
		part := p[n:min(len(p), n+int(min(frames[i].Length-inside, int64(len(p)))))]
		if frames[i].Zero {
			clear(part)
		} else {
			if err := r.hold(i); err != nil {
				return n, fmt.Errorf("reading image at byte %d: %w", at, err)
			}
			copy(part, r.raw[inside:])
		}
		n += len(part)
	}
	return n, nil
}

// hold decompresses a frame.
func (r *Reader) hold(i int) error {
	if r.held == i {
		return nil
	}
	f := &r.Manifest.Frames[i]
	stored := make([]byte, f.DataLength)
	if _, err := r.data.ReadAt(stored, f.DataOffset); err != nil {
		return err
	}
	if Digest(sha256.Sum256(stored)) != f.SHA256 {
		return fmt.Errorf("frame %d: %w", i, ErrCorrupt)
	}
	r.held = -1
	raw, err := r.decoder.DecodeAll(stored, r.raw[:0])
	if err != nil {
		return fmt.Errorf("frame %d: %w: %w", i, ErrCorrupt, err)
	}
	if int64(len(raw)) != f.Length {
		return fmt.Errorf("frame %d has %d bytes, want %d: %w", i, len(raw), f.Length, ErrCorrupt)
	}
	r.raw, r.held = raw, i
	return nil
}
