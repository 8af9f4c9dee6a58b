package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

const (
	// consoleReplay is how much of the past a client sees when it attaches.
	consoleReplay = 32 << 10
	// consoleLogMax bounds the log; one older file of the same size is kept beside it.
	consoleLogMax = 4 << 20
	// consoleBacklog is how many pieces a slow client may be behind before it is cut off.
	consoleBacklog = 256
)

// console is a machine's serial port: it listens for QEMU, logs what comes and shares it with clients.
type console struct {
	listener net.Listener
	logPath  string

	mu      sync.Mutex
	qemu    net.Conn
	past    []byte
	clients map[*consoleClient]struct{}
	log     *os.File
	logSize int64
}

// consoleClient is one who watches and types.
type consoleClient struct {
	c      *console
	pieces chan []byte
	rest   []byte
}

func newConsole(socket, logPath string) (*console, error) {
	l, err := net.Listen("unix", socket)
	if err != nil {
		return nil, fmt.Errorf("console: %w", err)
	}
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("console: %w", err), l.Close())
	}
	return &console{listener: l, logPath: logPath, log: log, clients: map[*consoleClient]struct{}{}}, nil
}

// serve takes one QEMU after another until the context ends.
func (c *console) serve(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() {
		c.listener.Close()
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.qemu != nil {
			c.qemu.Close()
		}
	})
	defer stop()
	buf := make([]byte, 4096)
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			break
		}
		c.mu.Lock()
		c.qemu = conn
		c.mu.Unlock()
		for ctx.Err() == nil {
			n, err := conn.Read(buf)
			if n > 0 {
				c.output(buf[:n])
			}
			if err != nil {
				break
			}
		}
		conn.Close()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for cl := range c.clients {
		close(cl.pieces)
		delete(c.clients, cl)
	}
	c.log.Close()
}

// output logs and hands out what the machine wrote. A client that does not keep up loses its
// connection rather than stopping the machine.
func (c *console) output(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.past = append(c.past, p...)
	if len(c.past) > 2*consoleReplay {
		c.past = append([]byte(nil), c.past[len(c.past)-consoleReplay:]...)
	}
	piece := append([]byte(nil), p...)
	for cl := range c.clients {
		select {
		case cl.pieces <- piece:
		default:
			close(cl.pieces)
			delete(c.clients, cl)
		}
	}
	if c.logSize += int64(len(p)); c.logSize > consoleLogMax {
		c.rotate()
	}
	_, _ = c.log.Write(p) // a full disk must not stop the machine
}

// rotate keeps the old file as .1 and starts a new one; if that fails it goes on with the old one.
func (c *console) rotate() {
	if err := os.Rename(c.logPath, c.logPath+".1"); err != nil {
		return
	}
	f, err := os.OpenFile(c.logPath, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return
	}
	c.log.Close()
	c.log, c.logSize = f, 0
}

// attach makes a client that first reads the recent past.
func (c *console) attach() *consoleClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	cl := &consoleClient{c: c, pieces: make(chan []byte, consoleBacklog)}
	cl.rest = append(cl.rest, c.past[max(0, len(c.past)-consoleReplay):]...)
	c.clients[cl] = struct{}{}
	return cl
}

// Read implements io.Reader; it ends with io.EOF when the client is closed or too slow.
func (cl *consoleClient) Read(p []byte) (int, error) {
	if len(cl.rest) == 0 {
		piece, ok := <-cl.pieces
		if !ok {
			return 0, io.EOF
		}
		cl.rest = piece
	}
	n := copy(p, cl.rest)
	cl.rest = cl.rest[n:]
	return n, nil
}

// Write types on the machine's serial port. A machine that is off swallows it.
func (cl *consoleClient) Write(p []byte) (int, error) {
	cl.c.mu.Lock()
	conn := cl.c.qemu
	cl.c.mu.Unlock()
	if conn != nil {
		_, _ = conn.Write(p) // off or just switched off
	}
	return len(p), nil
}

// Close ends a Read that waits.
func (cl *consoleClient) Close() error {
	cl.c.mu.Lock()
	defer cl.c.mu.Unlock()
	if _, ok := cl.c.clients[cl]; ok {
		delete(cl.c.clients, cl)
		close(cl.pieces)
	}
	return nil
}
