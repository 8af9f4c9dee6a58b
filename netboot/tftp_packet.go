package netboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// TFTP operations and error codes of RFC 1350, section 5, and RFC 2347.
const (
	tftpRead  = 1
	tftpWrite = 2
	tftpData  = 3
	tftpAck   = 4
	tftpError = 5
	tftpOAck  = 6

	tftpErrUndefined = 0
	tftpErrNotFound  = 1
	tftpErrAccess    = 2
	tftpErrIllegal   = 4
	tftpErrTransfer  = 5
)

const (
	// tftpMaxRequest is the largest request packet: RFC 2347, page 3.
	tftpMaxRequest = 512
	// tftpDefaultBlock is the block size without negotiation: RFC 1350.
	tftpDefaultBlock = 512
	// tftpMaxBlock fits an Ethernet frame without fragments: 1500 less IPv4,
	// UDP and TFTP headers. Firmware reassembles fragments badly.
	tftpMaxBlock = 1500 - 20 - 8 - 4
	// tftpMaxWindow bounds the buffers of a transfer, and firmware's receive
	// queues: RFC 7440, section 4, finds little gain above 64.
	tftpMaxWindow = 64
)

// tftpRequest is a parsed RRQ or WRQ. The option values are zero if they were
// not asked for or are not acceptable: RFC 2347 has the server leave those out.
type tftpRequest struct {
	write bool
	file  string
	mode  string // lower case
	// blockSize is RFC 2348, 8 to tftpMaxBlock; size says that RFC 2349's tsize
	// was asked for; timeout is RFC 2349, 1 to 255 s; window is RFC 7440.
	blockSize int
	size      bool
	timeout   time.Duration
	window    int
}

var errNoTFTPRequest = errors.New("not a TFTP read or write request")

func parseTFTPRequest(b []byte) (tftpRequest, error) {
	if len(b) < 4 || len(b) > tftpMaxRequest {
		return tftpRequest{}, fmt.Errorf("%w: %d bytes", errNoTFTPRequest, len(b))
	}
	op := binary.BigEndian.Uint16(b)
	if op != tftpRead && op != tftpWrite {
		return tftpRequest{}, fmt.Errorf("%w: operation %d", errNoTFTPRequest, op)
	}
	// Some firmware pads the packet with zeros: fields end at the first empty name.
	fields := strings.Split(string(b[2:]), "\x00")
	if len(fields) < 3 {
		return tftpRequest{}, fmt.Errorf("%w: file name or mode is not terminated", errNoTFTPRequest)
	}
	fields = fields[:len(fields)-1]
	r := tftpRequest{write: op == tftpWrite, file: fields[0], mode: strings.ToLower(fields[1])}
	if r.file == "" || r.mode == "" {
		return tftpRequest{}, fmt.Errorf("%w: empty file name or mode", errNoTFTPRequest)
	}
	for options := fields[2:]; len(options) >= 2 && options[0] != ""; options = options[2:] {
		r.setOption(strings.ToLower(options[0]), options[1])
	}
	return r, nil
}

func (r *tftpRequest) setOption(name, value string) {
	n, err := strconv.ParseUint(value, 10, 32)
	if err != nil {
		return
	}
	switch name {
	case "blksize":
		if n >= 8 && n <= 65464 {
			r.blockSize = int(min(n, tftpMaxBlock))
		}
	case "tsize":
		r.size = true
	case "timeout":
		if n >= 1 && n <= 255 {
			r.timeout = time.Duration(n) * time.Second
		}
	case "windowsize":
		if n >= 1 && n <= 65535 {
			r.window = int(min(n, tftpMaxWindow))
		}
	}
}

// oack is the OACK packet for what was accepted, nil if nothing was.
func (r tftpRequest) oack(size int64) []byte {
	var b bytes.Buffer
	add := func(name string, value int64) {
		fmt.Fprintf(&b, "%s\x00%d\x00", name, value)
	}
	if r.blockSize > 0 {
		add("blksize", int64(r.blockSize))
	}
	if r.size {
		add("tsize", size)
	}
	if r.timeout > 0 {
		add("timeout", int64(r.timeout/time.Second))
	}
	if r.window > 0 {
		add("windowsize", int64(r.window))
	}
	if b.Len() == 0 {
		return nil
	}
	return append([]byte{0, tftpOAck}, b.Bytes()...)
}

func tftpDataPacket(block uint16, data []byte) []byte {
	b := make([]byte, 4, 4+len(data))
	b[1] = tftpData
	binary.BigEndian.PutUint16(b[2:], block)
	return append(b, data...)
}

func tftpErrorPacket(code uint16, text string) []byte {
	b := []byte{0, tftpError, byte(code >> 8), byte(code)}
	return append(append(b, text...), 0)
}

// clientError is an ERROR packet of the other side.
type clientError struct {
	code uint16
	text string
	// negotiating: the packet came in answer to the OACK.
	negotiating bool
}

func (e clientError) Error() string {
	return fmt.Sprintf("client sent error %d: %q", e.code, e.text)
}

// parseTFTPAck reads what a client sends within a transfer: the block that it
// acknowledges, or a clientError.
func parseTFTPAck(b []byte) (uint16, error) {
	if len(b) < 4 {
		return 0, fmt.Errorf("TFTP packet of %d bytes", len(b))
	}
	switch op, n := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]); op {
	case tftpAck:
		return n, nil
	case tftpError:
		text, _, _ := bytes.Cut(b[4:], []byte{0})
		return 0, clientError{code: n, text: string(text[:min(len(text), 128)])}
	default:
		return 0, fmt.Errorf("TFTP operation %d within a transfer", op)
	}
}
