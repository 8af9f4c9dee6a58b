package coordinator

import (
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"bloomery/api/bloomery/v1/bloomeryv1connect"
)

const (
	// stallTimeout is how long a client may take to send or receive the next piece; bodyTimeout to send all of a request's body.
	stallTimeout = 30 * time.Second
	bodyTimeout  = time.Minute
	// maxConnections bounds a listener, maxPerAddress one address's share of it. Agents have up to 17 each.
	maxConnections = 16384
	maxPerAddress  = 8192
)

// paced ends requests of clients that stall while they send or receive. A stream may be silent as long as it likes: only the other
// end's not taking what was sent counts, and HTTP/2 pings find those who are gone.
func paced(next http.Handler, stall, body time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		reader := &pacedBody{ReadCloser: r.Body, control: control, stall: stall}
		// An image of many GiB may take its time as long as it comes.
		if r.URL.Path != bloomeryv1connect.ImageServiceAddImageProcedure {
			reader.until = time.Now().Add(body)
		}
		r.Body = reader
		writer := &pacedWriter{ResponseWriter: w, control: control, stall: stall}
		next.ServeHTTP(writer, r)
		// What the server still has to send when the handler is done.
		writer.deadline(time.Now().Add(stall))
	})
}

// pacedBody is a request's body with a deadline for each piece, and one for all.
type pacedBody struct {
	io.ReadCloser
	control *http.ResponseController
	stall   time.Duration
	until   time.Time
}

func (b *pacedBody) Read(p []byte) (int, error) {
	end := time.Now().Add(b.stall)
	if !b.until.IsZero() && b.until.Before(end) {
		end = b.until
	}
	// The connection may be gone already or be of a kind without deadlines; reading tells.
	_ = b.control.SetReadDeadline(end)
	n, err := b.ReadCloser.Read(p)
	if err == nil || errors.Is(err, io.EOF) {
		_ = b.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// pacedWriter is a response with a deadline for each piece.
type pacedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
	stall   time.Duration
}

// deadline sets or clears the deadline; as with reading, writing tells what is wrong with a connection.
func (w *pacedWriter) deadline(at time.Time) { _ = w.control.SetWriteDeadline(at) }

func (w *pacedWriter) Write(p []byte) (int, error) {
	w.deadline(time.Now().Add(w.stall))
	n, err := w.ResponseWriter.Write(p)
	if err == nil {
		w.deadline(time.Time{})
	}
	return n, err
}

// Flush implements http.Flusher, which connect asks for.
func (w *pacedWriter) Flush() {
	w.deadline(time.Now().Add(w.stall))
	if w.control.Flush() == nil {
		w.deadline(time.Time{})
	}
}

// Unwrap lets http.ResponseController reach the server's own writer.
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// cappedListener closes connections above a number, in all and of one address, at once: waiting ones would cost as much.
type cappedListener struct {
	net.Listener
	most, perAddress int

	mu    sync.Mutex
	open  int
	hosts map[string]int
}

func capped(l net.Listener, most, perAddress int) net.Listener {
	return &cappedListener{Listener: l, most: most, perAddress: perAddress, hosts: map[string]int{}}
}

func (l *cappedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		host := ""
		if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
			host = limitKey(tcp.AddrPort().Addr().Unmap()).String()
		}
		if l.enter(host) {
			return &cappedConn{Conn: conn, leave: sync.OnceFunc(func() { l.exit(host) })}, nil
		}
		// Nothing was said on it; there is nobody to tell if closing fails.
		_ = conn.Close()
	}
}

func (l *cappedListener) enter(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.most || l.hosts[host] >= l.perAddress {
		return false
	}
	l.open++
	l.hosts[host]++
	return true
}

func (l *cappedListener) exit(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.hosts[host]--; l.hosts[host] == 0 {
		delete(l.hosts, host)
	}
}

type cappedConn struct {
	net.Conn
	leave func()
}

func (c *cappedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
