package partition

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// ErrNotZero is wrapped when a disk still gives data after everything was tried.
var ErrNotZero = errors.New("disk still holds data after the wipe")

const (
	wipeEdge        = 16 * mebibyte
	wipeSamples     = 128
	wipeSampleBytes = 64 << 10
	wipeChunk       = 1 << 30
)

// WipeResult says what a wipe did.
type WipeResult struct {
	// Method is "discard" (whole device discarded, signatures overwritten) or "zero" (every byte overwritten with zeros).
	Method string `json:"method"`
	// Bytes is the size of the disk, Overwritten how many of them were written with zeros.
	Bytes       int64 `json:"bytes"`
	Overwritten int64 `json:"overwritten"`
	// VerifiedBytes were read back as zeros: the places of signatures and Samples pieces drawn with Seed.
	VerifiedBytes int64   `json:"verified_bytes"`
	Samples       int     `json:"samples"`
	Seed          uint64  `json:"seed"`
	Seconds       float64 `json:"seconds"`
}

// WipeProgress tells how far a wipe is: done of total, and what is being done. They count the bytes that are overwritten and read back. Discarded
// ones count nothing, since no device tells how long it will take over them, and mostly they are gone at once; total is larger from the moment
// that the whole disk must be overwritten after all.
type WipeProgress func(done, total int64, message string)

// WipeSignatures removes what dev holds and reads back that it is gone: discard of the whole device where it can, zeros over the places where
// partition tables and filesystem signatures live (both ends of the disk and of every partition), then verification of these and of a random
// sample. Where the device cannot discard, or gives data after it, every byte is overwritten. A disk that is in use is refused with ErrInUse;
// ErrNotZero means that the disk does not keep what it is told. Call it with the same disk again after an interruption.
func (d Disks) WipeSignatures(ctx context.Context, dev string, progress WipeProgress) (WipeResult, error) {
	b, err := d.openBlock(dev, true)
	if err != nil {
		return WipeResult{}, fmt.Errorf("wipe: %w", err)
	}
	defer b.Close()
	result, err := wipe(ctx, b, rand.Uint64(), progress)
	if err != nil {
		return result, fmt.Errorf("wipe %s: %w", dev, err)
	}
	if err := rereadTable(b); err != nil {
		return result, fmt.Errorf("wipe %s: let the kernel forget its partitions: %w", dev, err)
	}
	return result, nil
}

func wipe(ctx context.Context, d disk, seed uint64, progress WipeProgress) (WipeResult, error) {
	start := time.Now()
	if progress == nil {
		progress = func(int64, int64, string) {}
	}
	result := WipeResult{Method: "discard", Bytes: d.Size(), Samples: wipeSamples, Seed: seed}
	places := signaturePlaces(d)
	verified := slices.Concat(places, samplePlaces(d.Size(), seed))
	overwrite, verify := totalBytes(places), totalBytes(verified)

	err := eachChunk(ctx, d.Size(), wipeChunk*16, func(off, n int64) error {
		progress(0, overwrite+verify, fmt.Sprintf("discarding, %d of %d GB", off/1e9, d.Size()/1e9))
		return d.Discard(off, n)
	})
	discarded := err == nil
	if ctx.Err() != nil {
		return result, ctx.Err()
	}
	if discarded {
		for _, p := range places {
			progress(result.Overwritten, overwrite+verify, "overwriting signatures")
			if err := d.ZeroOut(p.off, p.n); err != nil {
				return result, fmt.Errorf("overwrite %d bytes at %d: %w", p.n, p.off, err)
			}
			result.Overwritten += p.n
		}
		result.VerifiedBytes, err = readsZero(ctx, d, verified, func(read int64) { progress(overwrite+read, overwrite+verify, "reading back") })
		if err == nil || !errors.Is(err, ErrNotZero) {
			result.Seconds = time.Since(start).Seconds()
			return result, err
		}
	}

	result.Method, result.Overwritten = "zero", 0
	if err := eachChunk(ctx, d.Size(), wipeChunk, func(off, n int64) error {
		progress(off, d.Size()+verify, "overwriting")
		if err := d.ZeroOut(off, n); err != nil {
			return fmt.Errorf("overwrite %d bytes at %d: %w", n, off, err)
		}
		result.Overwritten += n
		return nil
	}); err != nil {
		return result, err
	}
	result.VerifiedBytes, err = readsZero(ctx, d, verified, func(read int64) { progress(d.Size()+read, d.Size()+verify, "reading back") })
	result.Seconds = time.Since(start).Seconds()
	return result, err
}

type place struct{ off, n int64 }

func totalBytes(places []place) (n int64) {
	for _, p := range places {
		n += p.n
	}
	return n
}

// signaturePlaces are both ends of the disk and of each old partition, of a GUID table or of an MBR's four entries. A table that cannot be
// read costs only the partitions' own ends: the whole is discarded or overwritten in any case.
func signaturePlaces(d disk) []place {
	size, sector := d.Size(), int64(d.SectorSize())
	places := []place{{0, wipeEdge}, {size - wipeEdge, wipeEdge}}
	add := func(first, last uint64) {
		if last < first || last >= uint64(size/sector) {
			return
		}
		places = append(places, place{int64(first) * sector, mebibyte}, place{int64(last+1)*sector - mebibyte, mebibyte})
	}
	if t, err := readTable(d, size, int(sector)); err == nil {
		for n := 1; n <= t.count(); n++ {
			if entry := t.entry(n); entry != nil {
				add(t.first(entry), t.last(entry))
			}
		}
	}
	mbr := make([]byte, sector)
	if err := readFull(d, mbr, 0); err == nil && mbr[510] == 0x55 && mbr[511] == 0xaa {
		for i := range 4 {
			entry := mbr[446+16*i:]
			first, count := uint64(binary.LittleEndian.Uint32(entry[8:])), uint64(binary.LittleEndian.Uint32(entry[12:]))
			if entry[4] != 0 && entry[4] != 0xee && count > 0 {
				add(first, first+count-1)
			}
		}
	}
	for i := range places {
		places[i] = clampPlace(places[i], size, sector)
	}
	slices.SortFunc(places, func(a, b place) int { return int(min(max(a.off-b.off, -1), 1)) })
	return slices.DeleteFunc(places, func(p place) bool { return p.n <= 0 })
}

func clampPlace(p place, size, sector int64) place {
	end := min(p.off+p.n, size) / sector * sector
	off := max(p.off, 0) / sector * sector
	return place{off, end - off}
}

// samplePlaces draws the pieces that are read back, one from each of equal stretches so that none is left out.
func samplePlaces(size int64, seed uint64) []place {
	draw := rand.New(rand.NewPCG(seed, 0))
	stretch := size / wipeSamples
	var places []place
	for i := range int64(wipeSamples) {
		at := i * stretch
		if room := stretch - wipeSampleBytes; room > 0 {
			at += draw.Int64N(room) / 4096 * 4096
		}
		if p := clampPlace(place{at, wipeSampleBytes}, size, 512); p.n > 0 {
			places = append(places, p)
		}
	}
	return places
}

func readsZero(ctx context.Context, d disk, places []place, progress func(read int64)) (int64, error) {
	if err := d.Drop(); err != nil {
		return 0, fmt.Errorf("flush: %w", err)
	}
	zeros, buffer := make([]byte, mebibyte), make([]byte, mebibyte)
	var read int64
	for _, p := range places {
		err := eachChunk(ctx, p.n, mebibyte, func(off, n int64) error {
			if err := readFull(d, buffer[:n], p.off+off); err != nil {
				return fmt.Errorf("read back: %w", err)
			}
			if !bytes.Equal(buffer[:n], zeros[:n]) {
				return fmt.Errorf("%w: in %d bytes at %d", ErrNotZero, n, p.off+off)
			}
			read += n
			progress(read)
			return nil
		})
		if err != nil {
			return read, err
		}
	}
	return read, nil
}

func eachChunk(ctx context.Context, size, chunk int64, f func(off, n int64) error) error {
	for off := int64(0); off < size; off += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := f(off, min(chunk, size-off)); err != nil {
			return err
		}
	}
	return nil
}
