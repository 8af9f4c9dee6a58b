package inventory

import (
	"encoding/binary"
	"fmt"
)

// vpdBody is a vital product data page without its header, cut to the length that the header tells.
func vpdBody(page []byte, code byte) []byte {
	if len(page) < 4 || page[1] != code {
		return nil
	}
	length := int(binary.BigEndian.Uint16(page[2:]))
	return page[4:min(4+length, len(page))]
}

// unitSerial reads page 80h.
func unitSerial(page []byte) string { return clean(string(vpdBody(page, 0x80))) }

// unitName reads page 83h and gives the logical unit's best worldwide name: NAA, the longer first, then EUI-64.
func unitName(page []byte) string {
	body := vpdBody(page, 0x83)
	best, rank := "", 0
	for len(body) >= 4 {
		length := int(body[3])
		if 4+length > len(body) {
			break
		}
		id := body[4 : 4+length]
		association, kind, binaryCode := body[1]>>4&3, body[1]&0xf, body[0]&0xf == 1
		body = body[4+length:]
		if association != 0 || !binaryCode {
			continue // of the port or target, or text
		}
		switch {
		case kind == 3 && length == 16 && rank < 3:
			best, rank = fmt.Sprintf("0x%x", id), 3
		case kind == 3 && length == 8 && rank < 2:
			best, rank = fmt.Sprintf("0x%x", id), 2
		case kind == 2 && (length == 8 || length == 12 || length == 16) && rank < 1:
			best, rank = fmt.Sprintf("eui.%x", id), 1
		}
	}
	return best
}
