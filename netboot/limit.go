package netboot

import (
	"net"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// Firmware sends a packet every few seconds: these limits are far above what a
// rack sends, and below what would keep the coordinator's store busy.
const (
	packetsPerSecond       = 500
	packetBurst            = 1000
	packetsPerSecondPerMAC = 5
	packetBurstPerMAC      = 20
	limitedMACs            = 4096
)

// packetLimit bounds packets in all and for each MAC address, in bounded memory.
type packetLimit struct {
	mu    sync.Mutex
	total *rate.Limiter
	macs  map[[6]byte]*rate.Limiter
}

func newPacketLimit() *packetLimit {
	return &packetLimit{
		total: rate.NewLimiter(packetsPerSecond, packetBurst),
		macs:  map[[6]byte]*rate.Limiter{},
	}
}

func (l *packetLimit) allow(mac net.HardwareAddr, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := macKey(mac)
	one, ok := l.macs[key]
	if !ok {
		if len(l.macs) >= limitedMACs {
			l.forget(now)
		}
		one = rate.NewLimiter(packetsPerSecondPerMAC, packetBurstPerMAC)
		l.macs[key] = one
	}
	// The MAC's own limit comes first: a flood of one leaves the rest alone.
	return one.AllowN(now, 1) && l.total.AllowN(now, 1)
}

// forget drops the limiters that are full again, which carry no information,
// and all of them if there is none: the total limit still holds.
func (l *packetLimit) forget(now time.Time) {
	for key, one := range l.macs {
		if one.TokensAt(now) >= packetBurstPerMAC {
			delete(l.macs, key)
		}
	}
	if len(l.macs) >= limitedMACs {
		clear(l.macs)
	}
}
