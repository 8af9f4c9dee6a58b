package wipe

import (
	"context"
	"errors"

	"bloomery/internal/run"
)

// means finds out how the drive can erase itself, after it has finished what an interrupted wipe left in it.
func means(ctx context.Context, d *directDisk, t Target, r run.Runner, tick func(part float64)) ([]eraser, error) {
	switch t.Transport {
	case "nvme":
		return nvmeMeans(ctx, kernelNVMe{int(d.Fd())}, tick)
	case "sata":
		return ataMeans(ctx, &ataDrive{runner: r, dev: t.Path, rotational: t.Rotational})
	case "mmc":
		return []eraser{secureDiscard(d)}, nil
	}
	return nil, nil
}

// nvmeMeans fails only when ctx ends: a drive that cannot be asked is one that offers nothing.
func nvmeMeans(ctx context.Context, admin nvmeAdmin, tick func(float64)) ([]eraser, error) {
	drive, err := readNVMe(admin)
	if err != nil {
		return []eraser{{method: MethodSanitizeBlock, refused: err.Error()}}, nil
	}
	if err := drive.ready(ctx, tick); err != nil {
		return nil, err
	}
	return drive.erasers(), nil
}

// ataMeans fails when the drive stays locked, since it then takes no data at all.
func ataMeans(ctx context.Context, drive *ataDrive) ([]eraser, error) {
	if err := drive.ready(ctx); err != nil {
		if drive.state.locked || ctx.Err() != nil {
			return nil, err
		}
		return []eraser{{method: MethodATAEnhanced, refused: err.Error()}}, nil
	}
	return drive.erasers(), nil
}

// secureDiscard is an eMMC's secure trim and erase.
func secureDiscard(d interface {
	Size() int64
	SecureDiscard(off, n int64) error
}) eraser {
	return eraser{method: MethodSecureDiscard, sanitization: Purge, command: "secure discard of the whole device", erase: func(ctx context.Context, tick func(float64)) error {
		size := d.Size()
		err := eachChunk(ctx, place{0, size}, zeroChunk, func(off, n int64) error {
			tick(float64(off) / float64(size))
			return d.SecureDiscard(off, n)
		})
		if errors.Is(err, errors.ErrUnsupported) {
			return errors.New("the drive does not offer it")
		}
		return err
	}}
}
