package vswitch

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

const (
	lldpDestination = mac(0x0180c200000e) // nearest bridge, IEEE 802.1AB-2016 table 7-1
	lldpType        = 0x88cc
)

// lldpFrame encodes an LLDPDU (IEEE 802.1AB-2016 section 8): chassis and port ids, time to live, port description, system
// name, and the port VLAN id of IEEE 802.1 (802.1Q-2018 annex D.2.1).
func lldpFrame(chassis mac, system, port string, pvid uint16, ttl time.Duration) []byte {
	f := append([]byte(nil), lldpDestination.addr()...)
	f = append(f, chassis.addr()...)
	f = binary.BigEndian.AppendUint16(f, lldpType)
	f = appendTLV(f, 1, append([]byte{4}, chassis.addr()...)) // subtype MAC address
	f = appendTLV(f, 2, append([]byte{5}, port...))           // subtype interface name
	f = appendTLV(f, 3, binary.BigEndian.AppendUint16(nil, uint16(min(ttl/time.Second, 0xffff))))
	f = appendTLV(f, 4, []byte(port))
	f = appendTLV(f, 5, []byte(system))
	f = appendTLV(f, 127, binary.BigEndian.AppendUint16([]byte{0x00, 0x80, 0xc2, 1}, pvid))
	return appendTLV(f, 0, nil)
}

// appendTLV cuts strings at 255 bytes, the most that any of these types may have.
func appendTLV(b []byte, kind uint8, value []byte) []byte {
	if len(value) > 255 {
		value = value[:255]
	}
	b = binary.BigEndian.AppendUint16(b, uint16(kind)<<9|uint16(len(value)))
	return append(b, value...)
}

// chassis is a locally administered address made from the name, so that a switch keeps its own over restarts.
func (s *Switch) chassis() mac {
	sum := sha256.Sum256([]byte("vswitch " + s.name))
	sum[0] = sum[0]&^1 | 2
	return macOf(sum[:6])
}

func (s *Switch) announceAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.ports {
		if p.up() {
			s.announce(p)
		}
	}
}

// announce sends LLDP on a port; the lock is held and the port is up.
func (s *Switch) announce(p *port) {
	f := lldpFrame(s.chassis(), s.name, p.name, p.vlan.pvid(), 4*s.lldp)
	h, err := parseHeader(f)
	if err != nil {
		s.log.Error("lldp", "port", p.name, "error", err)
		return
	}
	target{port: p, out: p.link.out}.send(s, f, h, 0)
}
