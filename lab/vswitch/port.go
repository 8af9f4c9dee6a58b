package vswitch

import (
	"sync/atomic"
	"time"
)

// port is one socket of the switch's front: configuration and counters. What is plugged into it is a link.
// The switch's lock guards all fields but counters and capture.
type port struct {
	name    string
	index   uint32
	vlan    VLAN
	initial VLAN
	link    *link
	cut     bool
	drop    float64
	dup     float64
	learned int
	changed time.Time // of the oper-status
	count   counters
	capture atomic.Pointer[capture]
}

func (p *port) up() bool { return !p.cut && p.link.out != nil }

// link is a cable with what hangs on it: a socket or a tap. The switch's lock guards its fields.
type link struct {
	port *port
	out  *outbox // nil without carrier
	kind string  // "socket" or "tap"
	far  string  // the socket's path, or namespace/interface
}

type counters struct {
	inFrames, inOctets, inDiscards, inErrors atomic.Uint64
	outFrames, outOctets, outDiscards        atomic.Uint64
}

// Counters are a port's counters since the switch began.
type Counters struct {
	InFrames, InOctets   uint64
	InDiscards           uint64 // wrong VLAN, link cut, injected loss, nowhere to go
	InErrors             uint64 // too short, too long, bad tag or source address
	OutFrames, OutOctets uint64
	OutDiscards          uint64 // queue full or injected loss
}

func (c *counters) read() Counters {
	return Counters{
		InFrames: c.inFrames.Load(), InOctets: c.inOctets.Load(), InDiscards: c.inDiscards.Load(), InErrors: c.inErrors.Load(),
		OutFrames: c.outFrames.Load(), OutOctets: c.outOctets.Load(), OutDiscards: c.outDiscards.Load(),
	}
}
