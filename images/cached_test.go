package images

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
)

var errPowerCut = errors.New("the power is gone")

// cachedDevice is a disk with a volatile write cache: what was not synced when the power goes is on the medium or not, block by block, and in no
// order. A physical block is written wholly or not at all.
type cachedDevice struct {
	mu            sync.Mutex
	cache, medium []byte
	dirty         []deviceOp
	// cutAt is the operation at which the power goes, counted from 1; never when 0.
	cutAt, ops int
	// written are the operations that changed the disk since it was opened.
	written []deviceOp
	random  *rand.Rand
}

const physicalBlock = 4096

func newCachedDevice(content []byte, seed uint64) *cachedDevice {
	return &cachedDevice{cache: bytes.Clone(content), medium: bytes.Clone(content), random: rand.New(rand.NewPCG(seed, 3))}
}

// begin counts an operation and lets the power go when its turn has come; change says that the cache holds what it does by then.
func (d *cachedDevice) begin(op deviceOp, change func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cutAt > 0 && d.ops >= d.cutAt {
		return errPowerCut
	}
	d.ops++
	change()
	if op.kind != "sync" {
		d.dirty, d.written = append(d.dirty, op), append(d.written, op)
	}
	if d.ops == d.cutAt {
		d.lose()
		return errPowerCut
	}
	if op.kind == "sync" {
		for _, op := range d.dirty {
			copy(d.medium[op.offset:op.offset+op.length], d.cache[op.offset:])
		}
		d.dirty = nil
	}
	return nil
}

func (d *cachedDevice) lose() {
	for _, op := range d.dirty {
		for at := op.offset; at < op.offset+op.length; {
			next := min(at-at%physicalBlock+physicalBlock, op.offset+op.length)
			if d.random.IntN(2) == 0 {
				copy(d.medium[at:next], d.cache[at:next])
			}
			at = next
		}
	}
}

func (d *cachedDevice) ReadAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cutAt > 0 && d.ops >= d.cutAt {
		return 0, errPowerCut
	}
	return bytes.NewReader(d.cache).ReadAt(p, offset)
}

func (d *cachedDevice) WriteAt(p []byte, offset int64) (int, error) {
	return len(p), d.begin(deviceOp{"write", offset, int64(len(p))}, func() { copy(d.cache[offset:], p) })
}

func (d *cachedDevice) Zero(_ context.Context, offset, length int64) error {
	if length == 0 {
		return nil
	}
	return d.begin(deviceOp{"zero", offset, length}, func() { clear(d.cache[offset : offset+length]) })
}

func (d *cachedDevice) Sync() error {
	// What a flush brings to the medium is there only once it returned.
	return d.begin(deviceOp{kind: "sync"}, func() {})
}

func (d *cachedDevice) Size() int64     { return int64(len(d.cache)) }
func (d *cachedDevice) SectorSize() int { return SectorSize }
