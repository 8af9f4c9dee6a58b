package images

import (
	"context"
	"fmt"
	"sync"
)

const (
	// headSize is the part of the disk that holds its partition table and is written last: without one a half-written disk is not taken for bootable.
	headSize = 1 << 20
	// tailSize is where a GPT keeps its backup, which firmware would use when the first one is gone.
	tailSize = 1 << 20
	// tableSize is what is cleared before all else and written after all else: the protective MBR and the GPT's header (UEFI 2.10, section
	// 5.3.2), in one physical block of today's disks, which is written wholly or not at all.
	tableSize = 4096
)

// ends are the places of a disk's partition tables, [0, head) and [tail, tailEnd), and the frames of an image that reach into them.
type ends struct {
	head, tail, tailEnd int64
	// headFrames is the number of frames that overlap the head; those from bodyEnd on overlap the tail. Frames of a body lie in between.
	headFrames, bodyEnd int
}

func endsOf(m *Manifest, device Device) ends {
	e := ends{head: min(headSize, m.Size), tailEnd: device.Size()}
	e.tail = max(e.head, device.Size()-tailSize)
	e.tail -= e.tail % int64(device.SectorSize())
	for e.headFrames < len(m.Frames) && m.Frames[e.headFrames].Offset < e.head {
		e.headFrames++
	}
	e.bodyEnd = len(m.Frames)
	for e.bodyEnd > e.headFrames && m.Frames[e.bodyEnd-1].Offset+m.Frames[e.bodyEnd-1].Length > e.tail {
		e.bodyEnd--
	}
	return e
}

// clearEnds takes the partition table that is there and its backup. The table goes first, in one block: until it is gone the earlier one is whole.
func (w *writer) clearEnds(ctx context.Context) error {
	table := min(tableSize, w.ends.head)
	if err := w.device.Zero(ctx, 0, table); err != nil {
		return fmt.Errorf("clearing the partition table: %w", err)
	}
	if err := w.device.Sync(); err != nil {
		return fmt.Errorf("clearing the partition table: %w", err)
	}
	if err := w.device.Zero(ctx, table, w.ends.head-table); err != nil {
		return fmt.Errorf("clearing the partition table: %w", err)
	}
	if err := w.device.Zero(ctx, w.ends.tail, w.ends.tailEnd-w.ends.tail); err != nil {
		return fmt.Errorf("clearing the backup partition table: %w", err)
	}
	if err := w.device.Sync(); err != nil {
		return fmt.Errorf("clearing the partition table: %w", err)
	}
	return nil
}

// endBytes are the bytes of an image that belong into the ends, kept until all others are on the disk.
type endBytes struct {
	mu         sync.Mutex
	head, tail []byte
}

func (w *writer) newEndBytes() *endBytes {
	return &endBytes{head: alignedBuffer(int(w.ends.head)), tail: alignedBuffer(int(max(0, w.manifest.Size-w.ends.tail)))}
}

// keep takes of p what belongs into the ends and returns the rest and its place.
func (b *endBytes) keep(e ends, p []byte, offset int64) ([]byte, int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := min(e.head-offset, int64(len(p))); n > 0 {
		copy(b.head[offset:], p[:n])
		p, offset = p[n:], offset+n
	}
	if n := min(offset+int64(len(p))-e.tail, int64(len(p))); n > 0 {
		rest := p[:int64(len(p))-n]
		copy(b.tail[offset+int64(len(rest))-e.tail:], p[len(rest):])
		p = rest
	}
	return p, offset
}

// writeEnds writes the ends but for the table, and then the table. Each is durable before the next begins, and all else before both, so that a
// table is there only with all that it speaks of.
func (w *writer) writeEnds(b *endBytes) error {
	table := min(tableSize, len(b.head))
	for _, part := range []struct {
		name   string
		bytes  []byte
		offset int64
		sync   bool
	}{
		{"the beginning of the disk", b.head[table:], int64(table), false},
		{"the backup partition table", b.tail, w.ends.tail, true},
		{"the partition table", b.head[:table], 0, true},
	} {
		if len(part.bytes) > 0 {
			if _, err := w.device.WriteAt(part.bytes, part.offset); err != nil {
				return fmt.Errorf("writing %s: %w", part.name, err)
			}
		}
		if part.sync {
			if err := w.device.Sync(); err != nil {
				return fmt.Errorf("syncing %s: %w", part.name, err)
			}
		}
	}
	return nil
}
