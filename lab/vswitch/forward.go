package vswitch

import "math/rand/v2"

// target is one port that a frame leaves by.
type target struct {
	port *port
	out  *outbox
	tag  bool
	copy int // 2 when the duplicate fault strikes
}

// receiver carries one reader's scratch space, so that forwarding does not allocate.
type receiver struct {
	sw      *Switch
	link    *link
	targets []target
}

// frame forwards one received frame (IEEE 802.1Q-2018 section 8.6: ingress, learning, egress, queueing).
func (r *receiver) frame(f []byte) {
	h, err := parseHeader(f)
	now := r.sw.now()
	r.targets = r.targets[:0]

	r.sw.mu.Lock()
	p := r.link.port
	vid, reason := uint16(0), dropNone
	switch {
	case err != nil:
		reason = dropError
	case !p.up() || strikes(p.drop) || h.dst.reserved():
		reason = dropDiscard
	default:
		var ok bool
		if vid, ok = p.vlan.ingress(h); !ok {
			reason = dropDiscard
			break
		}
		r.sw.fdb.learn(vid, h.src, p, now.UnixNano())
		r.route(p, vid, h, now.UnixNano())
	}
	r.sw.mu.Unlock()

	switch reason {
	case dropError:
		p.count.inErrors.Add(1)
		return
	case dropDiscard:
		p.count.inDiscards.Add(1)
	case dropNone:
		p.count.inFrames.Add(1)
		p.count.inOctets.Add(uint64(len(f)))
	}
	if c := p.capture.Load(); c != nil {
		c.write(now, f)
	}
	for _, t := range r.targets {
		for range t.copy {
			t.send(r.sw, f, h, vid)
		}
	}
}

type dropReason int

const (
	dropNone dropReason = iota
	dropDiscard
	dropError
)

// route fills targets; the switch's lock is held.
func (r *receiver) route(from *port, vid uint16, h header, now int64) {
	if !h.dst.group() {
		if to := r.sw.fdb.lookup(vid, h.dst, now); to != nil {
			if to != from {
				r.add(to, vid)
			}
			return
		}
	}
	for _, to := range r.sw.ports {
		if to != from {
			r.add(to, vid)
		}
	}
}

func (r *receiver) add(to *port, vid uint16) {
	tag, ok := to.vlan.egress(vid)
	if !ok || !to.up() {
		return
	}
	t := target{port: to, out: to.link.out, tag: tag, copy: 1}
	if strikes(to.drop) {
		to.count.outDiscards.Add(1)
		return
	}
	if strikes(to.dup) {
		t.copy = 2
	}
	r.targets = append(r.targets, t)
}

func (t target) send(sw *Switch, f []byte, h header, vid uint16) {
	if !t.out.push(f, h, t.tag, vid) {
		t.port.count.outDiscards.Add(1)
		return
	}
	t.port.count.outFrames.Add(1)
	t.port.count.outOctets.Add(uint64(len(f)))
	if c := t.port.capture.Load(); c != nil {
		c.write(sw.now(), appendFrame(nil, f, h, t.tag, vid)[lengthPrefix:])
	}
}

// strikes decides a fault of the given probability.
func strikes(rate float64) bool { return rate > 0 && rand.Float64() < rate }
