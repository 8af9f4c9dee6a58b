package vswitch

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

const maxSocketPath = 107 // sun_path less its terminator (unix(7))

// AddSocketPort makes a port on a unix stream socket that QEMU connects to with
// `-netdev stream,server=off,addr.type=unix,addr.path=PATH`. The link is up while something is connected; a new
// connection takes the place of the one before. The socket file is made here (0600) and removed by Close.
func (s *Switch) AddSocketPort(name, path string, v VLAN) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("port %s: socket path %s has %d bytes, want at most %d", name, path, len(path), maxSocketPath)
	}
	if err := removeStale(path); err != nil {
		return fmt.Errorf("port %s: %w", name, err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return fmt.Errorf("port %s: listen: %w", name, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return errors.Join(fmt.Errorf("port %s: %w", name, err), ln.Close())
	}
	p := &socketPort{sw: s, link: &link{kind: "socket", far: path}, listener: ln}
	if err := s.plug(name, v, p.link, p, p.accept); err != nil {
		return errors.Join(err, ln.Close())
	}
	return nil
}

// removeStale removes a socket that nobody listens on any more, as a killed switch leaves it.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%s exists and is not a socket", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return errors.Join(fmt.Errorf("%s: another process listens on it", path), c.Close())
	}
	return os.Remove(path)
}

type socketPort struct {
	sw       *Switch
	link     *link
	listener net.Listener

	mu     sync.Mutex
	conn   net.Conn
	closed bool
}

func (p *socketPort) accept() {
	var previous chan struct{}
	defer func() {
		if previous != nil {
			<-previous
		}
	}()
	for {
		conn, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			p.sw.log.Warn("accept", "socket", p.link.far, "error", err)
			select { // out of file descriptors, most likely: do not spin
			case <-p.sw.stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if !p.replace(conn) {
			return
		}
		if previous != nil {
			<-previous
		}
		done := make(chan struct{})
		previous = done
		p.sw.running.Go(func() {
			defer close(done)
			p.serve(conn)
		})
	}
}

// replace makes conn the port's connection and ends the one before; false when the port is closed.
func (p *socketPort) replace(conn net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil {
		_ = p.conn.Close() // its reader reports
	}
	if p.closed {
		_ = conn.Close() // never used
		return false
	}
	p.conn = conn
	return true
}

func (p *socketPort) serve(conn net.Conn) {
	out := newOutbox(p.sw.queue)
	p.sw.carrier(p.link, out)
	writer := make(chan struct{})
	go func() {
		defer close(writer)
		var spare []byte
		for {
			batch, ok := out.take(spare)
			if !ok {
				return
			}
			if _, err := conn.Write(batch); err != nil {
				_ = conn.Close() // ends the reader too
				return
			}
			spare = batch
		}
	}()
	r := &receiver{sw: p.sw, link: p.link}
	err := readFrames(conn, r.frame, func(int) { p.sw.countError(p.link) })
	if errors.Is(err, errFrame) {
		p.sw.countError(p.link)
		p.sw.log.Warn("connection ended", "socket", p.link.far, "error", err)
	}
	_ = conn.Close() // may be closed already
	out.close()
	<-writer
	p.sw.carrier(p.link, nil)
}

func (s *Switch) countError(l *link) {
	s.mu.Lock()
	p := l.port
	s.mu.Unlock()
	p.count.inErrors.Add(1)
}

// Close implements io.Closer for the switch.
func (p *socketPort) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.conn != nil {
		_ = p.conn.Close() // may be closed already
	}
	return p.listener.Close()
}
