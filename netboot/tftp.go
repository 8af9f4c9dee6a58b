package netboot

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
)

// tftpTransfers bounds the transfers at a time: a whole rack's, twice.
const tftpTransfers = 96

// TFTPConfig is what a TFTP server needs to know.
type TFTPConfig struct {
	// Files and Allowed are as for HTTPConfig.
	Files   fs.FS
	Allowed Allowed
	// Observer may be nil.
	Observer Observer
	Logger   *slog.Logger
}

// TFTPServer serves the boot files, for reading in octet mode: RFC 1350 with the
// options of RFC 2347, 2348 (blksize), 2349 (tsize, timeout) and 7440
// (windowsize).
type TFTPServer struct {
	cfg     TFTPConfig
	events  *observer
	timeout time.Duration

	mu sync.Mutex
	// active holds the clients that a transfer runs for: a request that is
	// repeated because its answer was lost must not start a second one.
	active map[netip.AddrPort]struct{}
}

// NewTFTPServer checks the configuration; the error names the field.
func NewTFTPServer(cfg TFTPConfig) (*TFTPServer, error) {
	switch {
	case cfg.Files == nil:
		return nil, errors.New("tftp server: files: want the boot files")
	case cfg.Allowed == nil:
		return nil, errors.New("tftp server: allowed: want a function")
	case cfg.Logger == nil:
		return nil, errors.New("tftp server: logger: want one")
	}
	return &TFTPServer{cfg: cfg, events: newObserver(cfg.Observer), timeout: tftpTimeout, active: map[netip.AddrPort]struct{}{}}, nil
}

// Serve answers requests read from conn until ctx ends, which is no error. It
// closes conn, aborts the transfers under way and waits for them.
func (s *TFTPServer) Serve(ctx context.Context, conn net.PacketConn) error {
	local, ok := conn.LocalAddr().(*net.UDPAddr)
	if !ok {
		return fmt.Errorf("tftp server: %s is no UDP address", conn.LocalAddr())
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer conn.Close()
	var transfers sync.WaitGroup
	defer transfers.Wait()
	buf := make([]byte, tftpMaxRequest+1)
	for {
		n, from, err := conn.ReadFrom(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			if isTransient(err) {
				pause(ctx)
				continue
			}
			return fmt.Errorf("tftp server: read: %w", err)
		}
		request, err := parseTFTPRequest(buf[:n])
		if err != nil {
			continue
		}
		peer := addrPortOf(from)
		refusal := refuseTFTP(request)
		if refusal == nil {
			switch s.begin(peer) {
			case slotTaken:
				transfers.Go(func() {
					defer s.end(peer)
					s.serve(ctx, local.IP, peer, request)
				})
			case slotsFull:
				refusal = tftpErrorPacket(tftpErrUndefined, "server is busy, try again")
			}
		}
		if refusal != nil {
			conn.WriteTo(refusal, from)
		}
	}
}

// refuseTFTP is the ERROR packet for what is not done for anyone, or nil.
func refuseTFTP(r tftpRequest) []byte {
	switch {
	case r.write:
		return tftpErrorPacket(tftpErrAccess, "files cannot be written")
	case r.mode != "octet":
		return tftpErrorPacket(tftpErrIllegal, "only octet mode is served")
	}
	return nil
}

type slot uint8

const (
	// slotTaken: the transfer may start and must end with end.
	slotTaken slot = iota
	// slotRepeated: a transfer for this client runs already.
	slotRepeated
	// slotsFull: as many transfers run as may.
	slotsFull
)

func (s *TFTPServer) begin(peer netip.AddrPort) slot {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.active[peer]; ok {
		return slotRepeated
	}
	if len(s.active) >= tftpTransfers {
		return slotsFull
	}
	s.active[peer] = struct{}{}
	return slotTaken
}

func (s *TFTPServer) end(peer netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.active, peer)
}

// serve answers one read request from a socket of its own, whose port is the
// transfer's identifier (RFC 1350, section 4).
func (s *TFTPServer) serve(ctx context.Context, local net.IP, peer netip.AddrPort, r tftpRequest) {
	ctx, cancel := context.WithTimeout(ctx, tftpTransferLimit)
	defer cancel()
	start := time.Now()
	event := Event{Server: "tftp", File: strings.TrimLeft(r.file, "/"), Peer: peer.Addr()}
	event.Kind, event.Reason = KindServed, "file was fetched whole"
	if err := s.transfer(ctx, local, peer, r, &event); err != nil {
		event.Err = err
	}
	event.Duration = time.Since(start)
	if isProbe(event.Err) {
		s.cfg.Logger.Debug("tftp size asked", "machine", event.Machine, "peer", event.Peer, "file", event.File)
		return
	}
	logEvent(s.cfg.Logger, event)
	s.events.tell(event)
}

// isProbe tells PXE firmware's way of asking for a file's size: it reads tsize
// from the OACK and ends the transfer with an error of its own.
func isProbe(err error) bool {
	var ended clientError
	return errors.As(err, &ended) && ended.negotiating
}

func (s *TFTPServer) transfer(ctx context.Context, local net.IP, peer netip.AddrPort, r tftpRequest, event *Event) error {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: local})
	if err != nil {
		event.Kind, event.Reason = KindError, "no socket for the transfer"
		return fmt.Errorf("open TFTP socket: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	refuse := func(code uint16, text string) {
		conn.WriteTo(tftpErrorPacket(code, text), net.UDPAddrFromAddrPort(peer))
	}

	asking, cancel := context.WithTimeout(ctx, allowedTimeout)
	machine, ok := s.cfg.Allowed(asking, peer.Addr())
	cancel()
	event.Machine = machine
	if !ok {
		event.Kind, event.Reason = KindDenied, "the address is not leased to a machine that is expected to boot"
		refuse(tftpErrNotFound, "file not found")
		return nil
	}
	file, info, err := openBootFile(s.cfg.Files, event.File)
	if err != nil {
		event.Kind, event.Reason = KindError, "boot file cannot be opened"
		refuse(tftpErrNotFound, "file not found")
		return err
	}
	defer file.Close()

	t := transfer{
		conn: conn, peer: peer, file: file, retries: tftpRetries,
		block: cmp.Or(r.blockSize, tftpDefaultBlock), window: cmp.Or(r.window, 1), timeout: cmp.Or(r.timeout, s.timeout),
	}
	err = t.run(ctx, r.oack(info.Size()))
	event.Bytes = t.bytes
	if err != nil {
		event.Kind, event.Reason = KindAborted, "transfer ended before the end of the file"
	}
	return err
}
