package vswitch

import "sync"

// outbox is the bounded queue of frames that leave by one link, kept as the bytes that go on the wire (length prefix and
// frame), so that all that is waiting leaves in one write.
type outbox struct {
	mu     sync.Mutex
	filled sync.Cond
	buf    []byte
	limit  int
	closed bool
}

func newOutbox(limit int) *outbox {
	o := &outbox{limit: limit}
	o.filled.L = &o.mu
	return o
}

// push queues a frame; false means that the queue is full or closed and the frame was dropped.
func (o *outbox) push(f []byte, h header, tag bool, vid uint16) bool {
	o.mu.Lock()
	if o.closed || len(o.buf)+len(f)+lengthPrefix+tagLen > o.limit {
		o.mu.Unlock()
		return false
	}
	wake := len(o.buf) == 0
	o.buf = appendFrame(o.buf, f, h, tag, vid)
	o.mu.Unlock()
	if wake {
		o.filled.Signal()
	}
	return true
}

// take waits for frames and returns all of them; empty becomes the next buffer to fill. False: closed.
func (o *outbox) take(empty []byte) ([]byte, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.buf) == 0 && !o.closed {
		o.filled.Wait()
	}
	if o.closed {
		return nil, false
	}
	batch := o.buf
	o.buf = empty[:0]
	return batch, true
}

// clear forgets what waits, as a pulled cable does.
func (o *outbox) clear() {
	o.mu.Lock()
	o.buf = o.buf[:0]
	o.mu.Unlock()
}

func (o *outbox) close() {
	o.mu.Lock()
	o.closed = true
	o.mu.Unlock()
	o.filled.Broadcast()
}
