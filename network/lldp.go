package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"
)

// Neighbour is what an LLDP frame (IEEE 802.1AB-2016, clause 8) says about the switch port at the other end. Strings are
// printable; MAC and IP addresses are in their usual forms.
type Neighbour struct {
	ChassisID         string
	PortID            string
	PortDescription   string
	SystemName        string
	SystemDescription string
	ManagementAddress netip.Addr
	PortVLAN          uint16 // 802.1 port VLAN ID; 0 if not said
	TTL               time.Duration
	Source            net.HardwareAddr // who sent the frame
}

const (
	maxLLDP = 9216 // bytes of one frame; jumbo frames are larger than any real one
	maxTLVs = 256
	maxText = 255
)

// ParseLLDP reads an LLDP data unit, without the Ethernet header. Its first three TLVs must be chassis ID, port ID and
// TTL (clause 8.2); unknown ones are passed over.
func ParseLLDP(data []byte) (Neighbour, error) {
	if len(data) > maxLLDP {
		return Neighbour{}, fmt.Errorf("parse LLDP: %d bytes are more than %d", len(data), maxLLDP)
	}
	var n Neighbour
	for i := 0; ; i++ {
		if len(data) == 0 && i >= 3 {
			return n, nil // some switches leave the end out
		}
		if len(data) < 2 {
			return Neighbour{}, errors.New("parse LLDP: cut within a TLV's header")
		}
		if i == maxTLVs {
			return Neighbour{}, fmt.Errorf("parse LLDP: more than %d TLVs", maxTLVs)
		}
		header := binary.BigEndian.Uint16(data)
		kind, length := int(header>>9), int(header&0x1ff)
		if 2+length > len(data) {
			return Neighbour{}, fmt.Errorf("parse LLDP: TLV %d of type %d has %d bytes where %d are left", i, kind, length, len(data)-2)
		}
		if i < 3 && kind != i+1 {
			return Neighbour{}, fmt.Errorf("parse LLDP: TLV %d has type %d, it must be %d", i, kind, i+1)
		}
		if kind == 0 {
			return n, nil
		}
		if err := n.tlv(kind, data[2:2+length]); err != nil {
			return Neighbour{}, fmt.Errorf("parse LLDP: TLV %d of type %d: %w", i, kind, err)
		}
		data = data[2+length:]
	}
}

func (n *Neighbour) tlv(kind int, v []byte) error {
	switch kind {
	case 1, 2:
		if len(v) < 2 {
			return errors.New("an identifier of less than 2 bytes")
		}
		// Subtypes of clauses 8.5.2.2 and 8.5.3.2: MAC is 4 for a chassis and 3 for a port, network address 5 and 4.
		id := identifier(v[1:], v[0] == byte(5-kind), v[0] == byte(6-kind))
		if kind == 1 {
			n.ChassisID = id
		} else {
			n.PortID = id
		}
	case 3:
		if len(v) < 2 {
			return errors.New("a TTL of less than 2 bytes")
		}
		n.TTL = time.Duration(binary.BigEndian.Uint16(v)) * time.Second
	case 4:
		n.PortDescription = text(v)
	case 5:
		n.SystemName = text(v)
	case 6:
		n.SystemDescription = text(v)
	case 8:
		if len(v) >= 2 && int(v[0]) >= 1 && len(v) >= 1+int(v[0]) && !n.ManagementAddress.IsValid() {
			n.ManagementAddress = networkAddress(v[1 : 1+int(v[0])])
		}
	case 127: // organisationally specific; 00-80-C2 subtype 1 is the port VLAN ID (IEEE 802.1Q, annex D)
		if len(v) >= 6 && v[0] == 0x00 && v[1] == 0x80 && v[2] == 0xc2 && v[3] == 1 {
			n.PortVLAN = binary.BigEndian.Uint16(v[4:]) & 0xfff
		}
	}
	return nil
}

func identifier(v []byte, isMAC, isAddress bool) string {
	if isMAC && len(v) == 6 {
		return net.HardwareAddr(v).String()
	}
	if isAddress {
		if a := networkAddress(v); a.IsValid() {
			return a.String()
		}
	}
	return text(v)
}

// networkAddress reads an address with its IANA family number before it: 1 is IPv4, 2 is IPv6.
func networkAddress(v []byte) netip.Addr {
	if len(v) == 5 && v[0] == 1 || len(v) == 17 && v[0] == 2 {
		a, _ := netip.AddrFromSlice(v[1:])
		return a
	}
	return netip.Addr{}
}

// text keeps what a switch sent printable; what is no text at all is shown as hexadecimal.
func text(v []byte) string {
	if len(v) > maxText {
		v = v[:maxText]
	}
	s := strings.TrimRight(string(v), "\x00 ")
	if strings.ToValidUTF8(s, "") != s {
		return fmt.Sprintf("%x", v)
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s))
}
