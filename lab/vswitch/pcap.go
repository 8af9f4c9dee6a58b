package vswitch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// capture writes classic pcap with nanosecond stamps (magic a1b23c4d), LINKTYPE_ETHERNET
// (draft-ietf-opsawg-pcap section 4). It stops by itself at the first error.
type capture struct {
	mu  sync.Mutex
	w   io.Writer
	buf []byte
	err error
}

var errCaptureStopped = errors.New("capture stopped")

func newCapture(w io.Writer) (*capture, error) {
	head := make([]byte, 24)
	binary.LittleEndian.PutUint32(head[0:], 0xa1b23c4d)
	binary.LittleEndian.PutUint16(head[4:], 2)
	binary.LittleEndian.PutUint16(head[6:], 4)
	binary.LittleEndian.PutUint32(head[16:], maxFrame+tagLen)
	binary.LittleEndian.PutUint32(head[20:], 1)
	if _, err := w.Write(head); err != nil {
		return nil, fmt.Errorf("write capture header: %w", err)
	}
	return &capture{w: w}, nil
}

func (c *capture) write(at time.Time, f []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return
	}
	c.buf = binary.LittleEndian.AppendUint32(c.buf[:0], uint32(at.Unix()))
	c.buf = binary.LittleEndian.AppendUint32(c.buf, uint32(at.Nanosecond()))
	c.buf = binary.LittleEndian.AppendUint32(c.buf, uint32(len(f)))
	c.buf = binary.LittleEndian.AppendUint32(c.buf, uint32(len(f)))
	c.buf = append(c.buf, f...)
	_, c.err = c.w.Write(c.buf)
}

// stop ends the capture; nothing is written to w after it returned.
func (c *capture) stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	err := c.err
	c.err = errCaptureStopped
	if errors.Is(err, errCaptureStopped) {
		return nil
	}
	return err
}

// StartCapture writes every frame that the port receives or sends, as it is on the wire, to w in pcap format: one Write for
// each frame, on the forwarding path. The returned function ends it and reports the first error of writing.
func (s *Switch) StartCapture(name string, w io.Writer) (stop func() error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.find(name)
	if err != nil {
		return nil, err
	}
	if p.capture.Load() != nil {
		return nil, fmt.Errorf("port %s: a capture is running already", name)
	}
	c, err := newCapture(w)
	if err != nil {
		return nil, fmt.Errorf("port %s: %w", name, err)
	}
	p.capture.Store(c)
	return func() error {
		p.capture.CompareAndSwap(c, nil)
		if err := c.stop(); err != nil {
			return fmt.Errorf("capture of port %s: %w", name, err)
		}
		return nil
	}, nil
}
