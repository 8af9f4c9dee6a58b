package coordinator

import (
	lru "container/list"
	"errors"
	"net/http"
	"net/netip"
	"sync"

	"connectrpc.com/connect"
	"golang.org/x/time/rate"

	"bloomery/internal/pki"
)

// limits bounds what anyone who can reach the coordinator can make it do and store. Where somebody's own share and all together
// are bounded, the own share is asked first: a flood from one leaves the rest alone.
type limits struct {
	// address is for every request; stranger for those without a certificate, and for tokens that open nothing.
	address, stranger *keyedLimit[netip.Addr]
	// caller is for what one operator, token, agent or coordinator asks.
	caller *keyedLimit[string]
	// enrol is for all enrolments of a rack: machines that start together are a burst.
	enrol     *rate.Limiter
	enrolFrom *keyedLimit[netip.Addr]
	// security is for events about refusals, phoneHome for the listeners on customers' networks.
	security      *rate.Limiter
	securityFrom  *keyedLimit[netip.Addr]
	phoneHome     *rate.Limiter
	phoneHomeFrom *keyedLimit[netip.Addr]
	// join is for coordinators that want to join: whoever asks has no certificate yet.
	join *rate.Limiter
}

func newLimits() *limits {
	return &limits{
		// Above what a whole rack asks through one relay; agents fetch images in ranges of 4 MiB.
		address:  newKeyedLimit[netip.Addr](20_000, 40_000),
		stranger: newKeyedLimit[netip.Addr](20, 200),
		caller:   newKeyedLimit[string](1000, 2000),
		enrol:    rate.NewLimiter(50, 400), enrolFrom: newKeyedLimit[netip.Addr](1, 20),
		security: rate.NewLimiter(2, 120), securityFrom: newKeyedLimit[netip.Addr](0.2, 60),
		phoneHome: rate.NewLimiter(50, 400), phoneHomeFrom: newKeyedLimit[netip.Addr](1, 20),
		join: rate.NewLimiter(0.2, 10),
	}
}

// limitedKeys bounds the memory of a keyedLimit: about 150 bytes each.
const limitedKeys = 8192

// keyedLimit is a rate limit for each key. When there are too many, the one that was not seen for longest is forgotten.
type keyedLimit[K comparable] struct {
	each  rate.Limit
	burst int

	mu      sync.Mutex
	entries map[K]*lru.Element
	// recent has the key that was seen last in front.
	recent *lru.List
}

type limitEntry[K comparable] struct {
	key     K
	limiter *rate.Limiter
}

func newKeyedLimit[K comparable](each rate.Limit, burst int) *keyedLimit[K] {
	return &keyedLimit[K]{each: each, burst: burst, entries: map[K]*lru.Element{}, recent: lru.New()}
}

func (l *keyedLimit[K]) limiter(key K) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.entries[key]; ok {
		l.recent.MoveToFront(e)
		return e.Value.(*limitEntry[K]).limiter
	}
	if len(l.entries) >= limitedKeys {
		oldest := l.recent.Back()
		delete(l.entries, oldest.Value.(*limitEntry[K]).key)
		l.recent.Remove(oldest)
	}
	entry := &limitEntry[K]{key, rate.NewLimiter(l.each, l.burst)}
	l.entries[key] = l.recent.PushFront(entry)
	return entry.limiter
}

// allow takes one from a key's share.
func (l *keyedLimit[K]) allow(key K) bool { return l.limiter(key).Allow() }

// left says whether a key's share has one, without taking it.
func (l *keyedLimit[K]) left(key K) bool { return l.limiter(key).Tokens() >= 1 }

// limitKey is what addresses are limited by: an IPv6 host can take any address of its /64. All of a unix socket are one.
func limitKey(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

var errTooMany = errors.New("too many requests: try again in a second")

// limit refuses requests above an address's share, before anything is looked up for them.
func (c *Coordinator) limit(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if from, ok := remote(r); ok && !c.limits.address.allow(limitKey(from)) {
			refuseRequest(w, r, connect.NewError(connect.CodeResourceExhausted, errTooMany))
			return
		}
		if _, rpc := c.permissions[r.URL.Path]; !rpc {
			r.Body = http.MaxBytesReader(w, r.Body, maxPlainBody)
		}
		next.ServeHTTP(w, r)
	})
}

// maxPlainBody bounds the body of a request that is no RPC; none of them needs one.
const maxPlainBody = 4 << 10

// within says whether a caller, known or not, may ask once more.
func (l *limits) within(who caller) bool {
	if who.Role == pki.RoleNone && who.token == nil {
		return !who.from.IsValid() || l.stranger.allow(limitKey(who.from))
	}
	return l.caller.allow(who.actor())
}

// remote is the address at the other end of a request; a unix socket has none.
func remote(r *http.Request) (netip.Addr, bool) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	return ap.Addr().Unmap(), err == nil
}
