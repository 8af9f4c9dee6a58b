package vswitch

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

const (
	minFrame     = 14   // the header alone; virtual machines do not pad to 60
	maxFrame     = 9216 // what jumbo-frame switches commonly carry, tag included
	maxDiscard   = 128 << 10
	lengthPrefix = 4 // QEMU's -netdev stream: big-endian frame length (net/stream.c)
	tagLen       = 4
	typeVLAN     = 0x8100
	readBuffer   = 256 << 10
)

// mac is a 48-bit address in the low bits, first octet highest.
type mac uint64

func (m mac) group() bool { return m&(1<<40) != 0 }

// reserved is the block 01-80-C2-00-00-00 to -0F that no bridge forwards (IEEE 802.1Q-2018 table 8-1); LLDP is in it.
func (m mac) reserved() bool { return m&^0xf == 0x0180c2000000 }

func (m mac) addr() net.HardwareAddr {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(m))
	return net.HardwareAddr(b[2:])
}

func macOf(b []byte) mac {
	return mac(binary.BigEndian.Uint16(b))<<32 | mac(binary.BigEndian.Uint32(b[2:]))
}

// header is what forwarding needs of a frame.
type header struct {
	dst, src mac
	tagged   bool
	tci      uint16 // priority, drop eligible, VLAN: as in the tag
	vid      uint16 // 0 when untagged or priority tagged
}

var errFrame = errors.New("bad ethernet frame")

func parseHeader(f []byte) (header, error) {
	if len(f) < minFrame || len(f) > maxFrame {
		return header{}, fmt.Errorf("%w: %d bytes, want %d to %d", errFrame, len(f), minFrame, maxFrame)
	}
	h := header{dst: macOf(f), src: macOf(f[6:])}
	if h.src.group() || h.src == 0 {
		return header{}, fmt.Errorf("%w: source address %s", errFrame, h.src.addr())
	}
	if binary.BigEndian.Uint16(f[12:]) == typeVLAN {
		if len(f) < minFrame+tagLen {
			return header{}, fmt.Errorf("%w: %d bytes with a VLAN tag, want at least %d", errFrame, len(f), minFrame+tagLen)
		}
		h.tagged = true
		h.tci = binary.BigEndian.Uint16(f[14:])
		h.vid = h.tci & 0xfff
		if h.vid > maxVLAN {
			return header{}, fmt.Errorf("%w: VLAN %d", errFrame, h.vid)
		}
	}
	return h, nil
}

// appendFrame appends the length prefix and the frame as it leaves: with a tag of the VLAN or without. This is the only copy
// that a frame sees on its way through the switch.
func appendFrame(buf, f []byte, h header, tag bool, vid uint16) []byte {
	rest := f[12:]
	if h.tagged {
		rest = f[12+tagLen:]
	}
	n := 12 + len(rest)
	if tag {
		n += tagLen
	}
	buf = binary.BigEndian.AppendUint32(buf, uint32(n))
	buf = append(buf, f[:12]...)
	if tag {
		buf = binary.BigEndian.AppendUint16(buf, typeVLAN)
		buf = binary.BigEndian.AppendUint16(buf, h.tci&0xf000|vid)
	}
	return append(buf, rest...)
}

// readFrames calls handle with each frame of a length-prefixed stream; the slice is valid during the call only. Lengths that no
// switch port would take go to skipped; one that cannot be a frame at all means that the peer is out of step and ends the stream.
func readFrames(r io.Reader, handle func([]byte), skipped func(length int)) error {
	br := bufio.NewReaderSize(r, readBuffer)
	for {
		head, err := br.Peek(lengthPrefix)
		if err != nil {
			if errors.Is(err, io.EOF) && len(head) > 0 {
				return io.ErrUnexpectedEOF
			}
			return err
		}
		length := binary.BigEndian.Uint32(head)
		if length > maxDiscard {
			return fmt.Errorf("%w: length prefix %d, want at most %d", errFrame, length, maxFrame)
		}
		n := int(length)
		if n < minFrame || n > maxFrame {
			if _, err := br.Discard(lengthPrefix + n); err != nil {
				return midFrame(err)
			}
			skipped(n)
			continue
		}
		whole, err := br.Peek(lengthPrefix + n)
		if err != nil {
			return midFrame(err)
		}
		handle(whole[lengthPrefix:])
		if _, err := br.Discard(lengthPrefix + n); err != nil {
			return err
		}
	}
}

func midFrame(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
