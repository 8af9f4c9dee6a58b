package qcow2

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/zstd"
)

// maxWindow bounds what a zstd cluster can ask of the decoder, in bytes. QEMU's encoder asks for 2 MiB at most.
const maxWindow = 8 << 20

// decompress makes plain the cluster of an entry, unless it is already.
func (i *Image) decompress(e entry) error {
	if i.plainOf == e.raw && i.plain != nil {
		return nil
	}
	if i.plain == nil {
		i.plain = make([]byte, i.header.clusterSize())
		i.packed = make([]byte, 2*i.header.clusterSize()+sectorSize)
	}
	i.plainOf = 0
	packed := i.packed[:e.length]
	if err := i.read(packed, e.at, "compressed data"); err != nil {
		return err
	}
	from, err := i.decoder(packed)
	if err != nil {
		return err
	}
	// The data ends with the cluster: what follows it up to the sector's end is another's.
	if n, err := io.ReadFull(from, i.plain); err != nil {
		return corrupt(e.at, "decompressing a cluster of %d bytes came to %d: %v", len(i.plain), n, err)
	}
	i.plainOf = e.raw
	return nil
}

func (i *Image) decoder(packed []byte) (io.Reader, error) {
	input := bytes.NewReader(packed)
	if i.header.compression == compressedZstd {
		if i.zstd == nil {
			decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
			if err != nil {
				return nil, fmt.Errorf("qcow2: starting zstd: %w", err)
			}
			i.zstd = decoder
		}
		if err := i.zstd.Reset(input); err != nil {
			return nil, fmt.Errorf("qcow2: starting zstd: %w", err)
		}
		return i.zstd, nil
	}
	if i.inflate == nil {
		i.inflate = flate.NewReader(input)
		return i.inflate, nil
	}
	resetter, ok := i.inflate.(flate.Resetter)
	if !ok {
		return nil, errors.New("qcow2: the inflate reader cannot be reset")
	}
	if err := resetter.Reset(input, nil); err != nil {
		return nil, fmt.Errorf("qcow2: starting inflate: %w", err)
	}
	return i.inflate, nil
}
