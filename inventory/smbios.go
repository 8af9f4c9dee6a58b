package inventory

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// SMBIOS (DMTF DSP0134 3.7): structures one after the other, each a header of type, length and handle, a formatted part,
// and strings that end with two NULs.
const (
	smbiosMemoryDevice = 17
	smbiosEnd          = 127
	maxStructures      = 8192
	maxStrings         = 255
)

type structure struct {
	kind    byte
	data    []byte // formatted part, header included, so that offsets are those of the specification
	strings []string
}

// parseSMBIOS gives the structures up to the end marker; with an error, those before the damage.
func parseSMBIOS(table []byte) ([]structure, error) {
	var list []structure
	for offset := 0; len(table)-offset >= 4; {
		rest := table[offset:]
		length := int(rest[1])
		if length < 4 || length > len(rest) {
			return list, fmt.Errorf("the SMBIOS structure at byte %d has a length of %d where %d are left", offset, length, len(rest))
		}
		if len(list) == maxStructures {
			return list, fmt.Errorf("the SMBIOS table has more than %d structures", maxStructures)
		}
		s := structure{kind: rest[0], data: rest[:length]}
		used, err := s.readStrings(rest[length:])
		if err != nil {
			return list, fmt.Errorf("the SMBIOS structure at byte %d: %w", offset, err)
		}
		list = append(list, s)
		if s.kind == smbiosEnd {
			return list, nil
		}
		offset += length + used
	}
	return list, nil
}

// readStrings gives how many bytes the strings take (section 6.1.3).
func (s *structure) readStrings(b []byte) (int, error) {
	if len(b) >= 2 && b[0] == 0 && b[1] == 0 {
		return 2, nil
	}
	for at := 0; ; {
		end := bytes.IndexByte(b[at:], 0)
		if end < 0 || len(s.strings) == maxStrings {
			return 0, fmt.Errorf("its strings have no end")
		}
		if end == 0 {
			return at + 1, nil
		}
		s.strings = append(s.strings, clean(string(b[at:at+end])))
		at += end + 1
	}
}

func (s structure) byteAt(offset int) byte {
	if offset >= len(s.data) {
		return 0
	}
	return s.data[offset]
}

func (s structure) word(offset int) uint16 {
	if offset+2 > len(s.data) {
		return 0
	}
	return binary.LittleEndian.Uint16(s.data[offset:])
}

func (s structure) dword(offset int) uint32 {
	if offset+4 > len(s.data) {
		return 0
	}
	return binary.LittleEndian.Uint32(s.data[offset:])
}

// text is the string that the number at offset refers to; numbers start with 1.
func (s structure) text(offset int) string {
	n := int(s.byteAt(offset))
	if n == 0 || n > len(s.strings) {
		return ""
	}
	return known(s.strings[n-1])
}

// module reads a memory device (section 7.18, table 79); false for an empty slot.
func (s structure) module() (Module, bool) {
	var size uint64
	switch raw := s.word(0x0c); {
	case raw == 0 || raw == 0xffff: // empty; unknown
		return Module{}, false
	case raw == 0x7fff: // extended size, in MiB
		size = uint64(s.dword(0x1c)&0x7fffffff) << 20
	case raw&0x8000 != 0:
		size = uint64(raw&0x7fff) << 10
	default:
		size = uint64(raw) << 20
	}
	if size == 0 {
		return Module{}, false
	}
	speed := func(offset, extended int) int {
		switch v := s.word(offset); v {
		case 0xffff:
			return int(s.dword(extended) & 0x7fffffff)
		default:
			return int(v)
		}
	}
	total, data := s.word(0x08), s.word(0x0a)
	return Module{
		Slot: s.text(0x10), Bank: s.text(0x11), SizeBytes: size, Type: memoryType(s.byteAt(0x12)),
		Speed: speed(0x15, 0x54), Configured: speed(0x20, 0x58),
		Vendor: s.text(0x17), Serial: s.text(0x18), Part: s.text(0x1a), Rank: int(s.byteAt(0x1b) & 0xf),
		ECC: total != 0xffff && data != 0xffff && total > data,
	}, true
}

// memoryType is table 81, those that a server may have.
func memoryType(b byte) string {
	switch b {
	case 0x07:
		return "RAM" // QEMU's
	case 0x12:
		return "DDR"
	case 0x13:
		return "DDR2"
	case 0x18:
		return "DDR3"
	case 0x1a:
		return "DDR4"
	case 0x1e:
		return "LPDDR4"
	case 0x20:
		return "HBM"
	case 0x21:
		return "HBM2"
	case 0x22:
		return "DDR5"
	case 0x23:
		return "LPDDR5"
	default:
		return ""
	}
}
