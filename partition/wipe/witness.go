package wipe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
)

// witnesses are what was on the disk right before it was wiped, in stretches from everywhere: a marker in each, beside what was there.
type witnesses struct {
	places  []place
	markers int
	// blocks are the hashes of the blocks that held data, by offset.
	blocks map[int64][sha256.Size]byte
}

// plant writes a marker at the beginning of each sample and takes down what the samples hold. A disk that does not give the markers back does
// not keep what is written to it, so that nothing can be shown of it.
func plant(ctx context.Context, d device, seed [32]byte) (*witnesses, error) {
	places := samplePlaces(d.Size(), seed)
	seed = sha256.Sum256(append([]byte("marker"), seed[:]...)) // not the noise that a disk may be filled with later
	w := &witnesses{places: places, blocks: map[int64][sha256.Size]byte{}}
	marker := make([]byte, max(block, d.SectorSize()))
	for _, p := range w.places {
		fill(marker, seed, p.off)
		if _, err := d.WriteAt(marker, p.off); err != nil {
			return nil, fmt.Errorf("write a marker at %d: %w", p.off, err)
		}
		w.markers++
	}
	if err := d.Drop(); err != nil {
		return nil, fmt.Errorf("flush the markers: %w", err)
	}
	err := eachBlock(ctx, d, w.places, nil, func(off int64, b []byte) error {
		if !uniform(b) {
			w.blocks[off] = sha256.Sum256(b)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the markers: %w", err)
	}
	for _, p := range w.places {
		fill(marker, seed, p.off)
		if w.blocks[p.off] != sha256.Sum256(marker[:block]) {
			return nil, fmt.Errorf("%w: it does not keep what is written at %d", ErrKeepsData, p.off)
		}
	}
	return w, nil
}

// look reads the samples again and says how many of the blocks that held data still hold the same, and how many hold anything at all.
func (w *witnesses) look(ctx context.Context, d device, tick func(read int64)) (kept, held int, err error) {
	if err := d.Drop(); err != nil {
		return 0, 0, fmt.Errorf("flush: %w", err)
	}
	err = eachBlock(ctx, d, w.places, tick, func(off int64, b []byte) error {
		if uniform(b) {
			return nil
		}
		held++
		if before, had := w.blocks[off]; had && before == sha256.Sum256(b) {
			kept++
		}
		return nil
	})
	return kept, held, err
}

// readsZero fails with ErrKeepsData at the first byte that is not zero.
func readsZero(ctx context.Context, d device, places []place, tick func(read int64)) error {
	if err := d.Drop(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	zeros := make([]byte, block)
	return eachBlock(ctx, d, places, tick, func(off int64, b []byte) error {
		if !bytes.Equal(b, zeros[:len(b)]) {
			return fmt.Errorf("%w: in the block at %d", ErrKeepsData, off)
		}
		return nil
	})
}

// readsPattern fails with ErrKeepsData where the disk does not give the pattern that it was overwritten with.
func readsPattern(ctx context.Context, d device, seed [32]byte, places []place, tick func(read int64)) error {
	if err := d.Drop(); err != nil {
		return fmt.Errorf("flush: %w", err)
	}
	want, chunk := make([]byte, mebibyte), int64(-1)
	return eachBlock(ctx, d, places, tick, func(off int64, b []byte) error {
		if off/mebibyte != chunk {
			chunk = off / mebibyte
			fill(want, seed, chunk*mebibyte)
		}
		if within := off % mebibyte; !bytes.Equal(b, want[within:within+int64(len(b))]) {
			return fmt.Errorf("%w: the block at %d is not what was written there", ErrKeepsData, off)
		}
		return nil
	})
}

// eachBlock reads places and hands them on block by block; tick is told how much was read.
func eachBlock(ctx context.Context, d device, places []place, tick func(read int64), use func(off int64, b []byte) error) error {
	buffer := make([]byte, mebibyte)
	var read int64
	for _, p := range places {
		err := eachChunk(ctx, p, mebibyte, func(off, n int64) error {
			if _, err := d.ReadAt(buffer[:n], off); err != nil {
				return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
			}
			for i := int64(0); i < n; i += block {
				if err := use(off+i, buffer[i:min(i+block, n)]); err != nil {
					return err
				}
			}
			read += n
			if tick != nil {
				tick(read)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func eachChunk(ctx context.Context, p place, chunk int64, f func(off, n int64) error) error {
	for off := p.off; off < p.off+p.n; off += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f(off, min(chunk, p.off+p.n-off)); err != nil {
			return err
		}
	}
	return nil
}

// uniform says that a block is one byte over and over, as erased flash and untouched disks are.
func uniform(b []byte) bool {
	return len(b) == 0 || bytes.Count(b, b[:1]) == len(b)
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %s", n, strings.TrimSuffix(word, "s")+"s")
}
