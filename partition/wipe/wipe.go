package wipe

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"bloomery/internal/run"
	"bloomery/partition"
)

// Target is the disk, as it was found by serial or WWN a moment ago.
type Target struct {
	Path      string
	SizeBytes int64
	// Transport is how it is attached, as package inventory says.
	Transport  string
	Rotational bool
	Removable  bool
	ReadOnly   bool
	// Named says that somebody meant this very disk: it may be removable or reached over a network.
	Named bool
}

// Wiper wipes the machine's disks. The zero value with a Runner is ready.
type Wiper struct {
	// Runner starts hdparm; its own time limit must be longer than a drive's erasure takes.
	Runner run.Runner
	// Stop ends whatever uses a disk; nil where nothing does.
	Stop func(ctx context.Context, dev string) error
	// Sysfs is where sysfs is mounted; empty means /sys.
	Sysfs string
}

// slowest is what the slowest disk in use overwrites in a second, in bytes: half of what a hard disk does on its inner tracks.
const slowest = 40e6

// longest is more than any disk takes; what says it is larger lies.
const longest = 30 * 24 * time.Hour

// Limit is how long the wipe of a disk may take before it is given up.
func Limit(sizeBytes int64) time.Duration {
	return min(time.Hour+time.Duration(min(float64(sizeBytes)/slowest, longest.Seconds())*float64(time.Second)), longest)
}

// Wipe removes what the disk holds and looks whether it is gone. A disk that is in use is refused with partition.ErrInUse; what is not
// to be wiped with ErrRefused; ErrKeepsData says that the disk does not do what it is told. The result is worth keeping beside an error too. Call it again with the same disk after an interruption.
func (w Wiper) Wipe(ctx context.Context, t Target, level Level, progress Progress) (Result, error) {
	ctx, cancel := context.WithTimeout(ctx, Limit(t.SizeBytes))
	defer cancel()
	if err := t.check(); err != nil {
		return Result{}, fmt.Errorf("wipe %s: %w", t.Path, err)
	}
	disks := partition.Disks{Sysfs: w.Sysfs}
	if err := checkBootMedium(disks, t.Path); err != nil {
		return Result{}, fmt.Errorf("wipe %s: %w", t.Path, err)
	}
	if w.Stop != nil {
		if err := w.Stop(ctx, t.Path); err != nil {
			return Result{}, fmt.Errorf("wipe %s: %w", t.Path, err)
		}
	}
	d, err := openDirect(disks, t.Path)
	if err != nil {
		return Result{}, fmt.Errorf("wipe: %w", err)
	}
	defer d.Close()
	e := &engine{disk: d, virtual: t.Transport == "virtio", progress: progress, means: func(ctx context.Context, tick func(float64)) ([]eraser, error) {
		return means(ctx, d, t, w.Runner, tick)
	}}
	if _, err := rand.Read(e.seed[:]); err != nil {
		return Result{}, fmt.Errorf("wipe %s: draw a seed: %w", t.Path, err)
	}
	result, err := e.run(ctx, level)
	if err != nil {
		return result, fmt.Errorf("wipe %s: %w", t.Path, err)
	}
	if err := d.Reread(ctx); errors.Is(err, unix.EBUSY) {
		return result, fmt.Errorf("wipe %s: let the kernel forget its partitions: %w", t.Path, partition.ErrInUse)
	} else if err != nil {
		return result, fmt.Errorf("wipe %s: let the kernel forget its partitions: %w", t.Path, err)
	}
	return result, nil
}
