package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// dialTimeout bounds a connection to another node with its TLS handshake; nodes of a rack are in one building.
	dialTimeout = time.Second
	// idleProbe, probes and unacked find a cut cable: the first two on a silent connection, the last with data under way.
	idleProbe = 2 * time.Second
	probes    = 3
	unacked   = 4 * time.Second
	// maxAccepted bounds what strangers on the coordinators' network can occupy.
	maxAccepted = 256
	// clientProtocol and raftProtocol tell by ALPN (RFC 7301) what a connection between nodes is for.
	clientProtocol, raftProtocol = "bloomery-database", "bloomery-replication"
	// transferSize is the buffer of each direction of a connection.
	transferSize = 64 << 10
)

// links carries the database's connections between nodes: dqlite itself listens on a local socket only, everything
// that leaves the host goes through TLS 1.3 with certificates of the rack on both sides.
type links struct {
	own, socket string
	cluster     *Cluster
	log         *slog.Logger

	mu sync.Mutex
	// open are all connections; those of this process as a client of the database have the address of the node that they lead to.
	open map[net.Conn]string
	// accepted are connections from other nodes.
	accepted map[*tls.Conn]bool // true for those of clients, false for those of the replication
	closed   bool
	wg       sync.WaitGroup
	count    atomic.Int64
}

func newLinks(own, socket string, cluster *Cluster, log *slog.Logger) *links {
	return &links{own: own, socket: socket, cluster: cluster, log: log, open: map[net.Conn]string{}, accepted: map[*tls.Conn]bool{}}
}

// keep remembers connections so that they end with the links; it closes them at once when the links are closed.
func (l *links) keep(leadsTo string, conns ...net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		if l.closed {
			hangUp(c)
			continue
		}
		l.open[c] = leadsTo
	}
	return !l.closed
}

// end closes connections and forgets them.
func (l *links) end(conns ...net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range conns {
		hangUp(c)
		delete(l.open, c)
	}
}

// hangUp closes without a last word, which could block while the other end does not read.
func hangUp(c net.Conn) {
	if secured, ok := c.(*tls.Conn); ok {
		c = secured.NetConn()
	}
	_ = c.Close()
}

// client dials a node to use the database there.
func (l *links) client(ctx context.Context, address string) (net.Conn, error) {
	conn, err := l.dial(ctx, address, clientProtocol)
	if err != nil {
		return nil, err
	}
	if !l.keep(address, conn) {
		return nil, net.ErrClosed
	}
	return &boundedConn{Conn: conn, links: l}, nil
}

func (l *links) dial(ctx context.Context, address, protocol string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	if address == l.own {
		return d.DialContext(ctx, "unix", l.socket)
	}
	if l.cluster == nil {
		return nil, fmt.Errorf("dial the database at %s: this coordinator's configuration has no cluster.address", address)
	}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	if err := quickToNotice(conn.(*net.TCPConn)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	config := l.cluster.Client().Clone()
	config.NextProtos = []string{protocol}
	secured := tls.Client(conn, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("dial the database at %s: %w", address, err), conn.Close())
	}
	return secured, nil
}

// raft dials a node for dqlite's replication. dqlite wants a file descriptor, so it gets one end of a pair of sockets.
func (l *links) raft(ctx context.Context, address string) (net.Conn, error) {
	remote, err := l.dial(ctx, address, raftProtocol)
	if err != nil {
		l.log.Debug("dial a database node", "address", address, "error", err)
		return nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, errors.Join(err, remote.Close())
	}
	if !l.keep("", remote, ours) {
		l.end(remote, ours)
		return nil, errors.Join(net.ErrClosed, theirs.Close())
	}
	l.wg.Go(func() { l.carry(remote, ours) })
	return theirs, nil
}

// carry copies both ways between connections that are kept until either side ends: half a connection is of no use to dqlite.
func (l *links) carry(a, b net.Conn) {
	one := func(to, from net.Conn) {
		defer l.end(a, b)
		// The plain interfaces keep io.CopyBuffer from taking a way around the buffer.
		_, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, transferSize))
		if err != nil && !errors.Is(err, net.ErrClosed) {
			l.log.Debug("a connection between database nodes ended", "error", err)
		}
	}
	var both sync.WaitGroup
	both.Go(func() { one(a, b) })
	both.Go(func() { one(b, a) })
	both.Wait()
}

// accept takes other nodes' connections until the listener is closed.
func (l *links) accept(ctx context.Context, listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// Out of file descriptors, say: it passes.
			l.log.Warn("accept a connection of another database node", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		if l.count.Load() >= maxAccepted {
			l.log.Warn("too many connections to the database", "from", conn.RemoteAddr())
			_ = conn.Close()
			continue
		}
		l.count.Add(1)
		l.wg.Go(func() {
			defer l.count.Add(-1)
			l.serve(ctx, conn)
		})
	}
}

// serve lets one node in, if it is one.
func (l *links) serve(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	if err := quickToNotice(conn.(*net.TCPConn)); err != nil {
		l.log.Warn("prepare a connection of another database node", "from", conn.RemoteAddr(), "error", err)
		return
	}
	hello, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	config := l.cluster.Server().Clone()
	config.NextProtos = []string{clientProtocol, raftProtocol}
	secured := tls.Server(conn, config)
	err := secured.HandshakeContext(hello)
	if err == nil {
		err = l.cluster.Admit(secured.ConnectionState())
	}
	if err != nil {
		l.log.Warn("a connection to the database was refused", "from", conn.RemoteAddr(), "error", err)
		return
	}
	var d net.Dialer
	local, err := d.DialContext(hello, "unix", l.socket)
	if err != nil {
		l.log.Debug("reach the local database node", "error", err)
		return
	}
	if !l.keep("", secured, local) {
		return
	}
	l.mu.Lock()
	l.accepted[secured] = secured.ConnectionState().NegotiatedProtocol == clientProtocol
	l.mu.Unlock()
	l.carry(secured, local)
	l.mu.Lock()
	delete(l.accepted, secured)
	l.mu.Unlock()
}

// recheck ends connections of nodes that are not admitted any more.
func (l *links) recheck() {
	if l.cluster == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn := range l.accepted {
		if err := l.cluster.Admit(conn.ConnectionState()); err != nil {
			l.log.Info("a connection to the database is closed", "from", conn.RemoteAddr(), "reason", err)
			hangUp(conn)
		}
	}
}

// hangUpClients ends the connections of all who use the database here, or from here; the replication goes on.
func (l *links) hangUpClients() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn, client := range l.accepted {
		if client {
			hangUp(conn)
		}
	}
	for conn, address := range l.open {
		if address != "" {
			hangUp(conn)
		}
	}
}

// follow ends the clients' connections to any other node than the leader: calls that hang at a leader which is gone fail at once and go to the new one.
func (l *links) follow(leader string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for conn, address := range l.open {
		if address != "" && address != leader {
			hangUp(conn)
		}
	}
}

// close ends all connections and lets no new ones begin; wait waits for what carried them.
func (l *links) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for conn := range l.open {
		hangUp(conn)
	}
}

func (l *links) wait() { l.wg.Wait() }

// boundedConn is a client's connection on which nothing waits for ever: the driver commits and rolls back without a deadline.
// It also gives an end of file the form of a network error, without which the driver would go on using the connection.
type boundedConn struct {
	net.Conn
	links *links
	// given says that the driver has set a deadline of its own. The driver makes one call at a time.
	given atomic.Bool
}

// SetDeadline implements net.Conn.
func (b *boundedConn) SetDeadline(t time.Time) error {
	b.given.Store(!t.IsZero())
	return b.Conn.SetDeadline(t)
}

func (b *boundedConn) bound() error {
	if b.given.Load() {
		return nil
	}
	return b.Conn.SetDeadline(time.Now().Add(callTimeout))
}

// Write implements net.Conn.
func (b *boundedConn) Write(p []byte) (int, error) {
	if err := b.bound(); err != nil {
		return 0, err
	}
	n, err := b.Conn.Write(p)
	return n, asNetworkError("write", err)
}

// Read implements net.Conn.
func (b *boundedConn) Read(p []byte) (int, error) {
	if err := b.bound(); err != nil {
		return 0, err
	}
	n, err := b.Conn.Read(p)
	return n, asNetworkError("read", err)
}

// Close implements net.Conn.
func (b *boundedConn) Close() error {
	b.links.end(b.Conn)
	return nil
}

func asNetworkError(op string, err error) error {
	var known *net.OpError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return known
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return &net.OpError{Op: op, Net: "database", Err: err}
}

// quickToNotice makes a TCP connection end within seconds when the other end is cut off (tcp(7)).
func quickToNotice(c *net.TCPConn) error {
	if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idleProbe, Interval: idleProbe, Count: probes}); err != nil {
		return err
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unacked.Milliseconds()))
	})
	return errors.Join(err, setErr)
}

// socketPair makes two connected unix sockets (socketpair(2)).
func socketPair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		c, err := net.FileConn(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return nil, nil, fmt.Errorf("make a pair of sockets: %w", err)
		}
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1], nil
}
