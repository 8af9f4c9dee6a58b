package netboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

const (
	tftpTimeout = time.Second
	// tftpRetries is how often one window is sent again without any progress.
	tftpRetries = 6
	// tftpTransferLimit ends transfers that progress too slowly to be of use.
	tftpTransferLimit = 30 * time.Minute
)

var errTFTPSilent = errors.New("client does not answer")

// transfer sends one file to one client from a socket of its own.
type transfer struct {
	conn   net.PacketConn
	peer   netip.AddrPort
	file   io.Reader
	block  int
	window int
	// timeout is the wait for an answer before the first retry.
	timeout time.Duration
	retries int

	// sent holds the DATA packets that are not acknowledged yet; the first of
	// them is block number next. Block numbers count from 1 and wrap to 0.
	sent [][]byte
	next uint16
	eof  bool
	// bytes is the payload that was acknowledged.
	bytes int64
}

// run sends the OACK, if there is one, and the file. It ends with the last
// acknowledgement, an error, or ctx.
func (t *transfer) run(ctx context.Context, oack []byte) error {
	t.next = 1
	if oack != nil {
		if err := t.negotiate(ctx, oack); err != nil {
			return err
		}
	}
	for {
		if err := t.fill(); err != nil {
			t.conn.WriteTo(tftpErrorPacket(tftpErrUndefined, "file cannot be read"), net.UDPAddrFromAddrPort(t.peer))
			return err
		}
		if len(t.sent) == 0 {
			return nil
		}
		if err := t.sendWindow(ctx); err != nil {
			return err
		}
	}
}

// negotiate sends the OACK until the client acknowledges it as block 0.
func (t *transfer) negotiate(ctx context.Context, oack []byte) error {
	for try := 0; try <= t.retries; try++ {
		if err := t.send(oack); err != nil {
			return err
		}
		for deadline := t.deadline(try); ; {
			n, err := t.receive(ctx, deadline)
			if errors.Is(err, errTFTPSilent) {
				break
			}
			var ended clientError
			if errors.As(err, &ended) {
				ended.negotiating = true
				return ended
			}
			if err != nil {
				return err
			}
			if n == 0 {
				return nil
			}
		}
	}
	return fmt.Errorf("options: %w after %d tries", errTFTPSilent, t.retries+1)
}

// fill reads blocks until the window is full. The last block is the first one
// that is shorter than the block size, an empty one if need be.
func (t *transfer) fill() error {
	for len(t.sent) < t.window && !t.eof {
		buf := make([]byte, t.block)
		n, err := io.ReadFull(t.file, buf)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			t.eof = true
		case err != nil:
			return fmt.Errorf("read file: %w", err)
		}
		t.sent = append(t.sent, tftpDataPacket(t.next+uint16(len(t.sent)), buf[:n]))
	}
	return nil
}

// sendWindow sends all of t.sent until something of it is acknowledged.
//
// An acknowledgement of the block before the window says that the client missed
// the window's first block (RFC 7440, section 3). It is heeded once in a try: a
// network that doubles packets must not double the whole transfer.
func (t *transfer) sendWindow(ctx context.Context) error {
	for try := 0; try <= t.retries; try++ {
		if err := t.send(t.sent...); err != nil {
			return err
		}
		heeded := t.window == 1
		for deadline := t.deadline(try); ; {
			n, err := t.receive(ctx, deadline)
			if errors.Is(err, errTFTPSilent) {
				break
			}
			if err != nil {
				return err
			}
			if acked := int(n - t.next + 1); acked >= 1 && acked <= len(t.sent) {
				t.acknowledge(acked)
				return nil
			}
			if n == t.next-1 && !heeded {
				heeded = true
				if err := t.send(t.sent...); err != nil {
					return err
				}
			}
		}
	}
	return fmt.Errorf("block %d: %w after %d tries", t.next, errTFTPSilent, t.retries+1)
}

func (t *transfer) acknowledge(blocks int) {
	for _, packet := range t.sent[:blocks] {
		t.bytes += int64(len(packet) - 4)
	}
	t.sent = append(t.sent[:0], t.sent[blocks:]...)
	t.next += uint16(blocks)
}

// deadline backs off: a client that is busy is not helped by more packets.
func (t *transfer) deadline(try int) time.Time {
	return time.Now().Add(t.timeout << min(try, 3))
}

func (t *transfer) send(packets ...[]byte) error {
	for _, p := range packets {
		if _, err := t.conn.WriteTo(p, net.UDPAddrFromAddrPort(t.peer)); err != nil && !isQueuedError(err) {
			return fmt.Errorf("send to %s: %w", t.peer, err)
		}
	}
	return nil
}

// receive waits for the client's next acknowledgement. Packets of others and
// unreadable ones do not count (RFC 1350, section 4).
func (t *transfer) receive(ctx context.Context, deadline time.Time) (uint16, error) {
	if err := t.conn.SetReadDeadline(deadline); err != nil {
		return 0, fmt.Errorf("set deadline: %w", err)
	}
	buf := make([]byte, tftpMaxRequest)
	for {
		n, from, err := t.conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		var timeout net.Error
		switch {
		case err == nil:
		case errors.As(err, &timeout) && timeout.Timeout():
			return 0, errTFTPSilent
		case isQueuedError(err):
			continue
		default:
			return 0, fmt.Errorf("receive from %s: %w", t.peer, err)
		}
		if addrPortOf(from) != t.peer {
			t.conn.WriteTo(tftpErrorPacket(tftpErrTransfer, "unknown transfer"), from)
			continue
		}
		block, err := parseTFTPAck(buf[:n])
		if errors.As(err, new(clientError)) {
			return 0, err
		}
		if err == nil {
			return block, nil
		}
	}
}

// addrPortOf is the address of a UDP peer, without the IPv6 mapping.
func addrPortOf(a net.Addr) netip.AddrPort {
	u, ok := a.(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := u.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
