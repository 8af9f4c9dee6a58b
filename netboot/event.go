package netboot

import (
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Kind is what an Event tells of.
type Kind string

const (
	// KindAnswer: a DHCP request was decided; see Action and Reason.
	KindAnswer Kind = "dhcp answer"
	// KindDeclined: a wanted machine says that its lease is used by another.
	KindDeclined Kind = "dhcp address declined"
	// KindError: a request could not be answered although it should have been.
	KindError Kind = "error"
	// KindServed: a file was fetched whole; see File, Bytes and Duration.
	KindServed Kind = "file served"
	// KindAborted: a transfer ended before the file was whole.
	KindAborted Kind = "file aborted"
	// KindDenied: a file was asked for by an address that may have none.
	KindDenied Kind = "file denied"
)

// Event is one thing that a server saw and what it did about it.
type Event struct {
	Time time.Time
	Kind Kind
	// Server is "dhcp", "tftp" or "http".
	Server string
	// Machine is empty if the client is unknown.
	Machine string
	// MAC and Request are set by the DHCP server only.
	MAC     net.HardwareAddr
	Request Request
	// Peer is the client's address: its lease, or where a file is asked from.
	Peer netip.Addr
	// Action is what the DHCP server did.
	Action Action
	// Reason is why, in words for an operator.
	Reason string
	// File, Bytes and Duration tell of a transfer. File of a DHCP answer is
	// what was offered: a URL or a TFTP file name.
	File     string
	Bytes    int64
	Duration time.Duration
	// Err is set with KindError and KindAborted.
	Err error
	// Suppressed is how many events were dropped by the rate limit since the
	// last one that was delivered.
	Suppressed uint64
}

// Observer is told what the servers do. It is called from their goroutines, so
// it must be quick and safe for concurrent use. Events come at no more than 20 a
// second (bursts of 200); it is the observer's part to merge repetitions.
type Observer func(Event)

const (
	eventsPerSecond = 20
	eventBurst      = 200
)

// observer puts a rate limit before an Observer; the zero Observer is allowed.
type observer struct {
	mu         sync.Mutex
	limit      *rate.Limiter
	suppressed uint64
	to         Observer
}

func newObserver(to Observer) *observer {
	return &observer{limit: rate.NewLimiter(eventsPerSecond, eventBurst), to: to}
}

func (o *observer) tell(e Event) {
	if o.to == nil {
		return
	}
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	o.mu.Lock()
	if !o.limit.AllowN(e.Time, 1) {
		o.suppressed++
		o.mu.Unlock()
		return
	}
	e.Suppressed, o.suppressed = o.suppressed, 0
	o.mu.Unlock()
	o.to(e)
}
