package images

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// decoderSlack is by how much a buffer should be larger than the frame that is decoded into it: zstd's quicker code is used only while a block
// and a little more would fit (RFC 8878, section 3.1.1.2: blocks have at most 128 KiB).
const decoderSlack = 132 << 10

// frameDecoder turns stored frames of one image into disk bytes, verifying them before they reach the decompressor.
type frameDecoder struct {
	manifest *Manifest
	zstd     *zstd.Decoder
}

func newFrameDecoder(m *Manifest) (*frameDecoder, error) {
	decoder, err := zstd.NewReader(nil,
		zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(FrameSize),
		// The stored bytes are checked by SHA-256 before.
		zstd.IgnoreChecksum(true),
	)
	if err != nil {
		return nil, fmt.Errorf("starting zstd: %w", err)
	}
	return &frameDecoder{manifest: m, zstd: decoder}, nil
}

func (d *frameDecoder) close() { d.zstd.Close() }

// decode returns the disk bytes of data frame i, using buffer's capacity when it suffices.
func (d *frameDecoder) decode(i int, stored, buffer []byte) ([]byte, error) {
	f := &d.manifest.Frames[i]
	if sum := sha256.Sum256(stored); sum != f.SHA256 {
		return nil, fmt.Errorf("frame %d at byte %d of the data has sha256 %x, want %s: %w", i, f.DataOffset, sum, f.SHA256, ErrCorrupt)
	}
	raw, err := d.zstd.DecodeAll(stored, buffer[:0])
	if err != nil {
		return nil, fmt.Errorf("decompressing frame %d: %w: %w", i, err, ErrCorrupt)
	}
	if int64(len(raw)) != f.Length {
		return nil, fmt.Errorf("frame %d has %d bytes of disk, want %d: %w", i, len(raw), f.Length, ErrCorrupt)
	}
	return raw, nil
}

// decodeOrFetch is decode, but a corrupt frame is fetched again by itself.
func (d *frameDecoder) decodeOrFetch(ctx context.Context, source Source, i int, stored, buffer []byte) ([]byte, error) {
	for try := 1; ; try++ {
		raw, err := d.decode(i, stored, buffer)
		if err == nil {
			return raw, nil
		}
		if try == corruptTries {
			return nil, err
		}
		if again := source.ReadRange(ctx, d.manifest.Name, stored, d.manifest.Frames[i].DataOffset); again != nil {
			return nil, errors.Join(err, again)
		}
	}
}
