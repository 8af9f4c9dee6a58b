package images

import (
	"bytes"
	"context"
	"fmt"
)

// groupData is the number of compressed bytes that one request is meant to fetch: enough to make its round trip cheap.
const groupData = 2 << 20

// group is a run of frames whose data is fetched by one request.
type group struct {
	first, end int
	// offset and length of its bytes in the data file.
	offset, length int64
}

// planGroups cuts the frames [first, end), but for those to keep, into groups of at most groupData compressed bytes, or of one larger frame.
func planGroups(m *Manifest, first, end int, keep map[int]bool) []group {
	var groups []group
	var g group
	for i := first; i < end; i++ {
		f := &m.Frames[i]
		full := !f.Zero && g.length > 0 && g.length+f.DataLength > groupData
		if g.end > 0 && (full || keep[i]) {
			groups = append(groups, g)
			g = group{}
		}
		if keep[i] {
			continue
		}
		if g.end == 0 {
			g.first = i
		}
		if !f.Zero && g.length == 0 {
			g.offset = f.DataOffset
		}
		g.end = i + 1
		g.length += f.DataLength
	}
	if g.end > 0 {
		groups = append(groups, g)
	}
	return groups
}

// writeFunc puts disk bytes where they belong.
type writeFunc func(ctx context.Context, p []byte, offset int64) error

// writeBody writes disk bytes, zeroing long stretches of zeros, which most devices do quicker than they take bytes.
func (w *writer) writeBody(ctx context.Context, p []byte, offset int64) error {
	for len(p) > 0 {
		zero, n := stretch(p)
		if zero {
			if err := w.device.Zero(ctx, offset, int64(n)); err != nil {
				return err
			}
		} else if _, err := w.device.WriteAt(p[:n], offset); err != nil {
			return fmt.Errorf("writing %d bytes at %d of the disk: %w", n, offset, err)
		}
		p, offset = p[n:], offset+int64(n)
	}
	return nil
}

// stretch returns how many leading bytes of p, in steps of zeroGrain, are all zeros or all not to be taken for zeros.
func stretch(p []byte) (zero bool, n int) {
	for n < len(p) {
		step := min(zeroGrain, len(p)-n)
		isZero := allZero(p[n : n+step])
		if n > 0 && isZero != zero {
			break
		}
		zero = isZero
		n += step
	}
	return zero, n
}

// allZero compares p with itself shifted by one byte, which runs at the speed of memory.
func allZero(p []byte) bool {
	return len(p) == 0 || p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1])
}
