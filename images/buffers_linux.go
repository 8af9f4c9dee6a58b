package images

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// buffers is a fixed number of buffers of one size, at page boundaries, outside Go's heap: nearly all the memory of a write is in them, and
// the collector would let a heap of their size grow to twice that before it clears up (GOGC). A page that was never touched costs nothing.
type buffers struct {
	free chan []byte
	all  [][]byte
}

func newBuffers(count, size int) (*buffers, error) {
	b := &buffers{free: make(chan []byte, count)}
	for range count {
		p, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("getting %d buffers of %d bytes: %w", count, size, err), b.close())
		}
		b.all = append(b.all, p)
		b.free <- p
	}
	return b, nil
}

// take waits for a free buffer.
func (b *buffers) take(ctx context.Context) ([]byte, error) {
	select {
	case p := <-b.free:
		return p, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// put gives back what take returned, or a shorter slice of its beginning.
func (b *buffers) put(p []byte) { b.free <- p[:cap(p)] }

// close frees the memory; nothing may use it any more.
func (b *buffers) close() error {
	var err error
	for _, p := range b.all {
		err = errors.Join(err, unix.Munmap(p))
	}
	b.all = nil
	return err
}
