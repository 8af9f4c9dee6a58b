package images

import (
	"bytes"
	"testing"
)

// FuzzPlanGroups cuts frames of any lengths, zeros and frames to keep among them: every other frame is in one group, in order, and a group's bytes
// are those of its frames without a gap.
func FuzzPlanGroups(f *testing.F) {
	f.Add([]byte{1, 200, 0, 7, 255, 255, 255}, byte(0b0010_0000), byte(1), byte(6))
	f.Add([]byte{0, 0, 0}, byte(0), byte(0), byte(3))
	f.Add([]byte{255, 255, 255, 255, 255}, byte(0xff), byte(0), byte(5))
	f.Fuzz(func(t *testing.T, lengths []byte, kept, first, end byte) {
		m := &Manifest{FrameSize: FrameSize}
		keep := map[int]bool{}
		var at int64
		for i, n := range lengths {
			frame := Frame{Offset: int64(i) * FrameSize, Length: FrameSize, Zero: n == 0}
			if n > 0 {
				frame.DataOffset, frame.DataLength = at, int64(n)<<14
				at += frame.DataLength
				keep[i] = kept>>(i%8)&1 == 1
			}
			m.Frames = append(m.Frames, frame)
		}
		from, to := min(int(first), len(lengths)), min(int(end), len(lengths))
		next := from
		skip := func(until int) {
			for ; next < until; next++ {
				if !keep[next] {
					t.Fatalf("frame %d is in no group", next)
				}
			}
		}
		for _, g := range planGroups(m, from, to, keep) {
			skip(g.first)
			offset, stored := g.offset, 0
			for ; next < g.end; next++ {
				frame := m.Frames[next]
				if keep[next] {
					t.Fatalf("frame %d is in a group, but to be kept", next)
				}
				if frame.Zero {
					continue
				}
				if frame.DataOffset != offset {
					t.Fatalf("frame %d is at %d of the data, its group goes on at %d", next, frame.DataOffset, offset)
				}
				offset += frame.DataLength
				stored++
			}
			if offset-g.offset != g.length || g.length > groupData && stored > 1 {
				t.Fatalf("group %+v has %d bytes in %d frames", g, offset-g.offset, stored)
			}
		}
		skip(to)
	})
}

// FuzzEndBytes cuts a piece of the disk at the places of the partition tables: each byte is kept for the end or left for the body, once.
func FuzzEndBytes(f *testing.F) {
	f.Add(uint16(0), uint16(512), uint16(100), uint16(300))
	f.Add(uint16(99), uint16(2), uint16(100), uint16(100))
	f.Add(uint16(400), uint16(50), uint16(10), uint16(420))
	f.Fuzz(func(t *testing.T, offset, length, head, tail uint16) {
		const size = 1 << 10
		from := min(int(offset), size)
		to := min(from+int(length), size)
		e := ends{head: int64(min(int(head), size)), tailEnd: size}
		e.tail = max(e.head, int64(min(int(tail), size)))
		image := bytes.Repeat([]byte{1}, size)
		disk := make([]byte, size)
		kept := &endBytes{head: make([]byte, e.head), tail: make([]byte, size-e.tail)}
		rest, at := kept.keep(e, image[from:to], int64(from))
		copy(disk[at:], rest)
		if len(rest) > 0 && (at < e.head || at+int64(len(rest)) > e.tail) {
			t.Fatalf("bytes %d-%d are left for the body, which is %d-%d", at, at+int64(len(rest)), e.head, e.tail)
		}
		copy(disk, kept.head)
		copy(disk[e.tail:], kept.tail)
		want := make([]byte, size)
		copy(want[from:], image[from:to])
		if !bytes.Equal(disk, want) {
			t.Fatalf("the disk is not the piece [%d, %d) of the image", from, to)
		}
	})
}
