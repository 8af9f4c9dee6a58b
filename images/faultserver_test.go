package images

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// smallImage is an image of small frames in a store, with the keys to it.
type smallImage struct {
	disk, data []byte
	m          *Manifest
	store      *Store
	public     PublicKey
	keyFile    string
}

func newSmallImage(t *testing.T, frames int) *smallImage {
	t.Helper()
	s := &smallImage{}
	s.disk, s.data, s.m = smallFrames(t, frames, 11)
	dir := t.TempDir()
	private := filepath.Join(dir, "key")
	s.keyFile = private + ".pub"
	var err error
	if s.public, err = GenerateKeyFiles(private, s.keyFile); err != nil {
		t.Fatal(err)
	}
	key, err := LoadPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := s.m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	signature, err := Sign(manifest, key)
	if err != nil {
		t.Fatal(err)
	}
	if s.store, err = OpenStore(filepath.Join(dir, "store"), s.public); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.store.Close() })
	u, err := s.store.Begin(t.Context(), s.m.Name, manifest, signature)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(s.data); err != nil {
		t.Fatal(err)
	}
	if err := u.Commit(); err != nil {
		t.Fatal(err)
	}
	return s
}

// faultServer serves an image's store, and misbehaves at one byte of its data.
type faultServer struct {
	t       *testing.T
	image   *smallImage
	address string
	at      int64
	// fault answers a request for the bytes from first to last, among which at is, as long as times is not 0.
	fault func(w http.ResponseWriter, first, last int64)
	times atomic.Int64
	over  chan struct{}

	mu     sync.Mutex
	server *http.Server
	ranges [][2]int64
	served sync.WaitGroup
}

func newFaultServer(t *testing.T, image *smallImage) *faultServer {
	s := &faultServer{t: t, image: image, address: "127.0.0.1:0", at: int64(len(image.data)) * 6 / 10, over: make(chan struct{})}
	s.start()
	t.Cleanup(func() {
		close(s.over)
		s.kill()
		s.served.Wait()
	})
	return s
}

func (s *faultServer) start() {
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Error(err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.address = listener.Addr().String()
	s.server = &http.Server{Handler: s, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)}
	server := s.server
	s.served.Go(func() { _ = server.Serve(listener) })
}

func (s *faultServer) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.server.Close()
}

func (s *faultServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var first, last int64
	if n, _ := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); n == 2 {
		s.mu.Lock()
		s.ranges = append(s.ranges, [2]int64{first, last + 1})
		s.mu.Unlock()
		if first <= s.at && s.at <= last && s.fault != nil && s.times.Add(-1) >= 0 {
			s.fault(w, first, last)
			return
		}
	}
	Handler(s.image.store, slog.New(slog.DiscardHandler)).ServeHTTP(w, r)
}

func (s *faultServer) source(patience time.Duration) *HTTPSource {
	return &HTTPSource{
		BaseURLs: []string{"http://" + s.address}, Client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 8}}, Patience: patience,
		IdleTimeout: 300 * time.Millisecond,
	}
}

// partial begins the right answer, up to the byte of the fault, and returns the connection.
func (s *faultServer) partial(w http.ResponseWriter, first, last int64) *net.TCPConn {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		s.t.Error(err)
		return nil
	}
	_, _ = fmt.Fprintf(buffered, "HTTP/1.1 206 Partial Content\r\nContent-Length: %d\r\nContent-Range: bytes %d-%d/%d\r\n\r\n", last+1-first, first, last, len(s.image.data))
	_, _ = buffered.Write(s.image.data[first:s.at])
	_ = buffered.Flush() // a client that has gone shows as what it does next
	return conn.(*net.TCPConn)
}

func (s *faultServer) fin(w http.ResponseWriter, first, last int64) {
	if conn := s.partial(w, first, last); conn != nil {
		_ = conn.CloseWrite()
		_, _ = io.Copy(io.Discard, conn) // until the client has closed too: no RST
		_ = conn.Close()
	}
}

func (s *faultServer) rst(w http.ResponseWriter, first, last int64) {
	if conn := s.partial(w, first, last); conn != nil {
		_ = errors.Join(conn.SetLinger(0), conn.Close())
	}
}

func (s *faultServer) stall(w http.ResponseWriter, first, last int64) {
	if conn := s.partial(w, first, last); conn != nil {
		<-s.over
		_ = conn.Close()
	}
}

func (s *faultServer) answer(w http.ResponseWriter, first, last int64, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(s.image.data)))
	w.WriteHeader(http.StatusPartialContent)
	_, _ = w.Write(body)
}

func (s *faultServer) flip(w http.ResponseWriter, first, last int64) {
	body := append([]byte(nil), s.image.data[first:last+1]...)
	body[s.at-first] ^= 0x10
	s.answer(w, first, last, body)
}

// short answers with a range that ends at the fault, as a server with a truncated file does.
func (s *faultServer) short(w http.ResponseWriter, first, _ int64) {
	s.answer(w, first, s.at-1, s.image.data[first:s.at])
}

func (s *faultServer) status(code int) func(http.ResponseWriter, int64, int64) {
	return func(w http.ResponseWriter, _, _ int64) { http.Error(w, "no", code) }
}

// restart kills the server with all its connections, and starts it again at the same address half a second later.
func (s *faultServer) restart(http.ResponseWriter, int64, int64) {
	s.kill()
	s.served.Go(func() {
		select {
		case <-time.After(500 * time.Millisecond):
			s.start()
		case <-s.over:
		}
	})
	panic(http.ErrAbortHandler)
}
