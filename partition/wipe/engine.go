package wipe

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"
)

// device is what the engine needs of a disk; tests fake it. Offsets and lengths are whole sectors.
type device interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Size() int64
	SectorSize() int
	// Discard gives errors.ErrUnsupported where the device cannot.
	Discard(off, n int64) error
	ZeroOut(off, n int64) error
	// Drop flushes, and makes the next read come from the device.
	Drop() error
}

// eraser is one way in which a drive erases itself.
type eraser struct {
	method       Method
	sanitization Sanitization
	// command is what is sent, for the certificate.
	command string
	// noise says that reads may give anything afterwards, as they do when the key went and not the data.
	noise bool
	// refused says why it cannot be used; "" if it can.
	refused string
	// erase returns when the drive says that it is done. It tells what part is done, 0 to 1, where that is known.
	erase func(ctx context.Context, tick func(part float64)) error
}

// engine wipes one disk.
type engine struct {
	disk device
	// means gives the drive's own erasures, after it has finished what an interrupted wipe left in it; nil where there are none.
	means func(ctx context.Context, tick func(part float64)) ([]eraser, error)
	// virtual says that the disk is a hypervisor's: it is zeroed by command instead of being filled with noise.
	virtual  bool
	seed     [32]byte
	progress Progress
	result   Result
}

const (
	discardChunk = 16 * gibibyte
	zeroChunk    = gibibyte
	writeChunk   = 4 * mebibyte
)

func (e *engine) run(ctx context.Context, level Level) (Result, error) {
	if e.progress == nil {
		e.progress = func(int64, int64, string) {}
	}
	e.result = Result{Level: level, Sanitization: None, Bytes: e.disk.Size(), Started: time.Now(), Verification: Verification{Seed: hex.EncodeToString(e.seed[:])}}
	erasers, err := e.findMeans(ctx, level)
	if err != nil {
		e.result.Ended = time.Now()
		return e.result, err
	}
	places := metadataPlaces(e.disk, e.disk.Size(), e.disk.SectorSize())
	switch level {
	case Signatures:
		e.result.Method = MethodSignatures
		if err = e.discard(ctx); errors.Is(err, errors.ErrUnsupported) {
			err = nil
		}
	case Quick:
		err = e.quick(ctx)
	case Erase:
		err = e.erase(ctx, erasers)
	default:
		err = fmt.Errorf("level %q is not known", level)
	}
	if err == nil {
		err = e.clearMetadata(ctx, places)
	}
	e.result.Ended = time.Now()
	if err != nil {
		e.result.Sanitization = None
	}
	return e.result, err
}

func (e *engine) findMeans(ctx context.Context, level Level) ([]eraser, error) {
	if level != Erase || e.means == nil {
		return nil, nil
	}
	size := e.disk.Size()
	return e.means(ctx, func(part float64) {
		e.progress(int64(min(max(part, 0), 0.999)*float64(size)), size, "waiting for an erasure that was interrupted")
	})
}

// quick believes a discard if the disk then gives zeros wherever it is looked at.
func (e *engine) quick(ctx context.Context) error {
	w, err := e.plant(ctx)
	if err != nil {
		return err
	}
	err = e.discard(ctx)
	if err == nil {
		e.result.Method = MethodDiscard
		var kept, held int
		if kept, held, err = e.look(ctx, w); err != nil {
			return err
		}
		if kept == 0 && held == 0 {
			return nil
		}
		err = errors.New(findings(kept, held))
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	e.passOver(MethodDiscard, err)
	return e.zero(ctx, w)
}

// erase tries what the drive offers, best first, and overwrites where nothing of that is to be had or to be believed.
func (e *engine) erase(ctx context.Context, erasers []eraser) error {
	w, err := e.plant(ctx)
	if err != nil {
		return err
	}
	for _, way := range erasers {
		if way.refused != "" {
			e.passOver(way.method, errors.New(way.refused))
			continue
		}
		done, err := e.tryEraser(ctx, way, w)
		if err != nil || done {
			return err
		}
	}
	// Cells that are given back before are ready for the writing, spare ones included.
	err = e.discard(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		kept, _, lookErr := e.look(ctx, w)
		if lookErr != nil {
			return lookErr
		}
		err = errors.New("it proves nothing by itself")
		if kept > 0 {
			err = errors.New(findings(kept, kept))
		}
	}
	e.passOver(MethodDiscard, err)
	if e.virtual {
		return e.zero(ctx, w)
	}
	return e.overwrite(ctx, w)
}

// tryEraser says whether the drive erased itself, as far as can be seen.
func (e *engine) tryEraser(ctx context.Context, way eraser, w *witnesses) (bool, error) {
	e.note("%s", way.command)
	start, total := time.Now(), e.disk.Size()
	message := fmt.Sprintf("erasing by %s", way.method)
	e.progress(0, total, message)
	err := way.erase(ctx, func(part float64) {
		done := int64(min(max(part, 0), 0.999) * float64(total))
		e.progress(done, total, message+left(done, total, time.Since(start)))
	})
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	if err != nil {
		e.passOver(way.method, err)
		return false, nil
	}
	kept, held, err := e.look(ctx, w)
	if err != nil {
		return false, err
	}
	if kept > 0 || (held > 0 && !way.noise) {
		e.passOver(way.method, errors.New(findings(kept, held)))
		return false, nil
	}
	e.result.Method, e.result.Sanitization = way.method, way.sanitization
	return true, nil
}

func findings(kept, held int) string {
	if kept > 0 {
		return fmt.Sprintf("the drive said that it was done and kept %s of the old data", plural(kept, "block"))
	}
	return fmt.Sprintf("%s hold data afterwards", plural(held, "block"))
}

func (e *engine) plant(ctx context.Context) (*witnesses, error) {
	e.progress(0, e.disk.Size(), "writing markers")
	w, err := plant(ctx, e.disk, e.seed)
	if err != nil {
		return nil, err
	}
	e.note("write %d markers of %d bytes", w.markers, max(block, e.disk.SectorSize()))
	e.result.Verification.Markers, e.result.Verification.Samples = w.markers, len(w.places)
	return w, nil
}

func (e *engine) look(ctx context.Context, w *witnesses) (kept, held int, err error) {
	kept, held, err = w.look(ctx, e.disk, nil)
	e.result.Verification.Bytes += totalBytes(w.places)
	if err != nil {
		return kept, held, fmt.Errorf("look for old data: %w", err)
	}
	return kept, held, nil
}

func (e *engine) discard(ctx context.Context) error {
	size := e.disk.Size()
	err := eachChunk(ctx, place{0, size}, discardChunk, func(off, n int64) error {
		e.progress(0, size, fmt.Sprintf("discarding, %d of %d GB", off/1e9, size/1e9))
		return e.disk.Discard(off, n)
	})
	if errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("the disk cannot discard: %w", err)
	}
	if err == nil {
		e.note("discard %d bytes", size)
	}
	return err
}

// zero makes the device write zeros over every byte.
func (e *engine) zero(ctx context.Context, w *witnesses) error {
	e.result.Method, e.result.Sanitization, e.result.Overwritten = MethodZero, Clear, 0
	start, size := time.Now(), e.disk.Size()
	e.note("zero %d bytes", size)
	err := eachChunk(ctx, place{0, size}, zeroChunk, func(off, n int64) error {
		e.progress(off, size, "overwriting with zeros"+left(off, size, time.Since(start)))
		if err := e.disk.ZeroOut(off, n); err != nil {
			return fmt.Errorf("overwrite %d bytes at %d: %w", n, off, err)
		}
		e.result.Overwritten += n
		return nil
	})
	if err != nil {
		return err
	}
	e.result.Verification.Bytes += totalBytes(w.places)
	return readsZero(ctx, e.disk, w.places, nil)
}

// overwrite fills the disk with noise and reads samples of it back; the disk is discarded at the end, so that it has its spare cells again.
func (e *engine) overwrite(ctx context.Context, w *witnesses) error {
	e.result.Method, e.result.Sanitization, e.result.Overwritten = MethodOverwrite, Clear, 0
	start, size := time.Now(), e.disk.Size()
	e.note("overwrite %d bytes with noise from the seed", size)
	buffer := make([]byte, writeChunk)
	err := eachChunk(ctx, place{0, size}, writeChunk, func(off, n int64) error {
		fill(buffer[:n], e.seed, off)
		if _, err := e.disk.WriteAt(buffer[:n], off); err != nil {
			return fmt.Errorf("overwrite %d bytes at %d: %w", n, off, err)
		}
		e.result.Overwritten += n
		e.progress(off+n, size, "overwriting"+left(off+n, size, time.Since(start)))
		return nil
	})
	if err != nil {
		return err
	}
	e.result.Verification.Bytes += totalBytes(w.places)
	if err := readsPattern(ctx, e.disk, e.seed, w.places, nil); err != nil {
		return err
	}
	if err := e.discard(ctx); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("discard what was overwritten: %w", err)
	}
	return nil
}

// clearMetadata ends every wipe: zeros where anything could be taken for a table, a superblock or a label.
func (e *engine) clearMetadata(ctx context.Context, places []place) error {
	total := 2 * totalBytes(places)
	var written int64
	for _, p := range places {
		if err := ctx.Err(); err != nil {
			return err
		}
		e.progress(written, total, "overwriting the places of metadata")
		if err := e.disk.ZeroOut(p.off, p.n); err != nil {
			return fmt.Errorf("overwrite %d bytes at %d: %w", p.n, p.off, err)
		}
		written += p.n
	}
	e.note("zero %d bytes in %d places of metadata", written, len(places))
	if e.result.Method != MethodZero && e.result.Method != MethodOverwrite {
		e.result.Overwritten += written
	}
	if err := readsZero(ctx, e.disk, places, func(read int64) { e.progress(written+read, total, "reading back") }); err != nil {
		return err
	}
	e.result.Verification.Bytes += written
	e.result.Verification.MetadataPlaces = len(places)
	return nil
}

func (e *engine) note(format string, args ...any) {
	e.result.Commands = append(e.result.Commands, fmt.Sprintf(format, args...))
}

func (e *engine) passOver(m Method, why error) {
	e.result.PassedOver = append(e.result.PassedOver, PassedOver{Method: m, Reason: why.Error()})
}

// left says for people how long the rest takes at the pace until now; nothing before there is one.
func left(done, total int64, spent time.Duration) string {
	if done <= 0 || done >= total || spent < time.Second {
		return ""
	}
	return fmt.Sprintf(", about %s left", (time.Duration(float64(spent) * float64(total-done) / float64(done))).Round(time.Second))
}
