package vswitch

import (
	"cmp"
	"net"
	"slices"
	"time"
)

const (
	defaultAgeing = 300 * time.Second // IEEE 802.1Q-2018 table 8-6
	maxLearned    = 4096              // addresses of one port, so that one machine cannot fill memory
)

// fdb is the forwarding database; the switch's lock guards it.
type fdb struct {
	ageing  time.Duration
	entries map[fdbKey]*fdbEntry
}

type fdbKey uint64 // VLAN above the 48 bits of the address

type fdbEntry struct {
	port *port
	seen int64 // Unix nanoseconds
}

func key(vid uint16, m mac) fdbKey { return fdbKey(vid)<<48 | fdbKey(m) }

func (k fdbKey) vlan() uint16 { return uint16(k >> 48) }
func (k fdbKey) mac() mac     { return mac(k) & (1<<48 - 1) }

func (t *fdb) learn(vid uint16, m mac, p *port, now int64) {
	k := key(vid, m)
	if e, ok := t.entries[k]; ok {
		if e.port != p {
			if p.learned >= maxLearned {
				return
			}
			e.port.learned--
			p.learned++
			e.port = p
		}
		e.seen = now
		return
	}
	if p.learned >= maxLearned {
		return
	}
	p.learned++
	t.entries[k] = &fdbEntry{port: p, seen: now}
}

// lookup returns nil for an address that is unknown or too old.
func (t *fdb) lookup(vid uint16, m mac, now int64) *port {
	e, ok := t.entries[key(vid, m)]
	if !ok || now-e.seen > int64(t.ageing) {
		return nil
	}
	return e.port
}

func (t *fdb) sweep(now int64) {
	for k, e := range t.entries {
		if now-e.seen > int64(t.ageing) {
			t.forget(k, e)
		}
	}
}

func (t *fdb) flush(p *port) {
	for k, e := range t.entries {
		if e.port == p {
			t.forget(k, e)
		}
	}
}

func (t *fdb) forget(k fdbKey, e *fdbEntry) {
	e.port.learned--
	delete(t.entries, k)
}

// Learned is one entry of the forwarding database.
type Learned struct {
	Port string
	VLAN uint16
	MAC  net.HardwareAddr
	Age  time.Duration
}

func (t *fdb) list(now int64) []Learned {
	t.sweep(now)
	out := make([]Learned, 0, len(t.entries))
	for k, e := range t.entries {
		out = append(out, Learned{Port: e.port.name, VLAN: k.vlan(), MAC: k.mac().addr(), Age: time.Duration(now - e.seen)})
	}
	slices.SortFunc(out, func(a, b Learned) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.VLAN, b.VLAN), slices.Compare(a.MAC, b.MAC))
	})
	return out
}
