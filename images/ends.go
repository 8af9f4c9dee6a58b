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

// writeEnds writes the frames that reach into the ends: first what of them lies outside, then the ends but for the table, then the table. Each
// is durable before the next begins, so that a table is there only with all that it speaks of.
func (w *writer) writeEnds(ctx context.Context) error {
	head := alignedBuffer(int(w.ends.head))
	tail := alignedBuffer(int(max(0, w.manifest.Size-w.ends.tail)))
	var lock sync.Mutex
	keep := func(p []byte, offset int64, end []byte, at int64) {
		lock.Lock()
		defer lock.Unlock()
		copy(end[offset-at:], p)
	}
	write := func(ctx context.Context, p []byte, offset int64) error {
		if n := w.ends.head - offset; n > 0 {
			n = min(n, int64(len(p)))
			keep(p[:n], offset, head, 0)
			p, offset = p[n:], offset+n
		}
		if n := offset + int64(len(p)) - w.ends.tail; n > 0 {
			n = min(n, int64(len(p)))
			inside := p[int64(len(p))-n:]
			p = p[:int64(len(p))-n]
			keep(inside, offset+int64(len(p)), tail, w.ends.tail)
		}
		return w.writeBody(ctx, p, offset)
	}
	last := planGroups(w.manifest, 0, w.ends.headFrames, nil)
	last = append(last, planGroups(w.manifest, w.ends.bodyEnd, len(w.manifest.Frames), nil)...)
	if err := w.stream(ctx, last, write); err != nil {
		return err
	}
	type part struct {
		name   string
		bytes  []byte
		offset int64
	}
	table := min(tableSize, len(head))
	for _, step := range [][]part{
		{}, // what was written so far
		{{"the beginning of the disk", head[table:], int64(table)}, {"the backup partition table", tail, w.ends.tail}},
		{{"the partition table", head[:table], 0}},
	} {
		for _, p := range step {
			if len(p.bytes) == 0 {
				continue
			}
			if _, err := w.device.WriteAt(p.bytes, p.offset); err != nil {
				return fmt.Errorf("writing %s: %w", p.name, err)
			}
		}
		if err := w.device.Sync(); err != nil {
			return fmt.Errorf("syncing the disk: %w", err)
		}
	}
	return nil
}
