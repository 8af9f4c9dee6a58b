package network

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"time"
)

const (
	// The first pause is short: a switch port that has just begun to forward answers within seconds.
	firstPause = 500 * time.Millisecond
	maxPause   = 15 * time.Second
	minRenew   = 5 * time.Second
)

// errSilent is what a dhcpClient wraps when no server answered.
var errSilent = errors.New("no DHCP server answered")

// dhcpClient speaks DHCPv4 on one interface. Both calls end within seconds or with ctx.
type dhcpClient interface {
	request(ctx context.Context, l Link) (Lease, error)
	renew(ctx context.Context, l Link, lease Lease) (Lease, error)
}

// keepAddress asks until there is an address, keeps it fresh, and starts again when it is lost. It ends with ctx.
func (n *Links) keepAddress(ctx context.Context, l Link) {
	for ctx.Err() == nil {
		lease, ok := n.acquire(ctx, l)
		if !ok {
			return
		}
		n.set(lease)
		n.tell(Event{Kind: Leased, Interface: l.Name, Lease: lease})
		if n.maintain(ctx, l, lease); ctx.Err() != nil {
			return
		}
		n.drop(l)
	}
}

// acquire tries without end, more and more seldom; false means that ctx ended.
func (n *Links) acquire(ctx context.Context, l Link) (Lease, bool) {
	pause := firstPause
	for tries := 1; ; tries++ {
		lease, err := n.dhcp.request(ctx, l)
		if err == nil {
			err = n.kernel.configure(l, lease)
		}
		switch {
		case ctx.Err() != nil:
			return Lease{}, false
		case err == nil:
			return lease, true
		case errors.Is(err, errSilent):
			n.tell(Event{Kind: DHCPSilent, Interface: l.Name, Tries: tries})
		default:
			n.tell(Event{Kind: DHCPFailed, Interface: l.Name, Tries: tries, Err: err})
		}
		if !sleep(ctx, jitter(l, tries, pause)) {
			return Lease{}, false
		}
		pause = min(2*pause, maxPause)
	}
}

// maintain renews at half of the lease's time (T1 of RFC 2131, section 4.4.5) and, from 7/8 of it (T2), asks any server
// for an address anew. It returns when the lease has expired, the server took it back, or ctx ended.
func (n *Links) maintain(ctx context.Context, l Link, lease Lease) {
	wait := lease.Expires.Sub(lease.Obtained) / 2
	for {
		if !sleep(ctx, max(wait, minRenew)) {
			return
		}
		now := time.Now()
		if !now.Before(lease.Expires) {
			return
		}
		ask := n.dhcp.renew
		if t2 := lease.Expires.Sub(lease.Obtained) * 7 / 8; now.Sub(lease.Obtained) >= t2 {
			ask = func(ctx context.Context, l Link, _ Lease) (Lease, error) { return n.dhcp.request(ctx, l) }
		}
		fresh, err := ask(ctx, l, lease)
		if err == nil && fresh.Address != lease.Address {
			return // the new address is asked for again, after the old one is gone
		}
		if err == nil {
			err = n.kernel.configure(l, fresh)
		}
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errRefused) {
			return
		}
		if err != nil {
			n.cfg.Log.Warn("lease not renewed", "interface", l.Name, "address", lease.Address.String(), "expires", lease.Expires, "error", err)
			wait = min(time.Until(lease.Expires)/2, time.Minute)
			continue
		}
		lease = fresh
		n.set(lease)
		wait = lease.Expires.Sub(lease.Obtained) / 2
	}
}

// jitter takes up to a fifth off a pause, by MAC and try, so that forty machines do not ask in one breath and no entropy
// is needed.
func jitter(l Link, tries int, pause time.Duration) time.Duration {
	h := sha256.Sum256(append([]byte(l.MAC), byte(tries), byte(tries>>8)))
	return pause - pause/5*time.Duration(binary.BigEndian.Uint16(h[:]))/0xffff
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
