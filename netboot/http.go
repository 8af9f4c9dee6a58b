package netboot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// BootPath is the directory of the boot files on the HTTP server.
const BootPath = "/boot/"

// TimePath answers with the time in RFC 3339, UTC, without a line end.
const TimePath = "/time"

// HTTPConfig is what the HTTP boot handler needs to know.
type HTTPConfig struct {
	// Files holds the boot files: bloomery-agent.efi, vmlinuz and
	// initramfs.cpio.zst. Others are not served.
	Files fs.FS
	// Allowed says who may fetch them. The time is everyone's.
	Allowed Allowed
	// Observer may be nil.
	Observer Observer
	Logger   *slog.Logger
	// Now is time.Now if nil.
	Now func() time.Time
}

type httpBoot struct {
	cfg    HTTPConfig
	events *observer
}

// NewHTTPHandler serves GET and HEAD, with ranges, of the boot files under
// BootPath to addresses that are leased to a machine which is expected to boot,
// and the time under TimePath as a hint: unauthenticated, so a client must
// bound it by what it knows. Everyone else finds no boot file (404).
func NewHTTPHandler(cfg HTTPConfig) (http.Handler, error) {
	switch {
	case cfg.Files == nil:
		return nil, errors.New("http boot: files: want the boot files")
	case cfg.Allowed == nil:
		return nil, errors.New("http boot: allowed: want a function")
	case cfg.Logger == nil:
		return nil, errors.New("http boot: logger: want one")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	h := &httpBoot{cfg: cfg, events: newObserver(cfg.Observer)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+BootPath+"{name}", h.file)
	mux.HandleFunc("GET "+TimePath, h.time)
	return mux, nil
}

// NewHTTPServer is a server with limits that suit firmware: it sends tiny
// requests, and its downloads may take minutes.
func NewHTTPServer(handler http.Handler, logger *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           http.MaxBytesHandler(handler, 4<<10),
		ReadHeaderTimeout: 10 * time.Second,
		ReadTimeout:       30 * time.Second,
		WriteTimeout:      30 * time.Minute,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}

func (h *httpBoot) time(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	io.WriteString(w, h.cfg.Now().UTC().Format(time.RFC3339))
}

func (h *httpBoot) file(w http.ResponseWriter, r *http.Request) {
	name := r.PathValue("name")
	event := Event{Server: "http", File: name, Peer: peerOf(r)}
	ctx, cancel := context.WithTimeout(r.Context(), allowedTimeout)
	machine, ok := h.cfg.Allowed(ctx, event.Peer)
	cancel()
	event.Machine = machine
	if !ok {
		event.Kind, event.Reason = KindDenied, "the address is not leased to a machine that is expected to boot"
		h.tell(event)
		http.NotFound(w, r)
		return
	}
	f, info, err := openBootFile(h.cfg.Files, name)
	if err != nil {
		event.Kind, event.Reason, event.Err = KindError, "boot file cannot be opened", err
		h.tell(event)
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	content, ok := f.(io.ReadSeeker)
	if !ok {
		event.Kind, event.Reason, event.Err = KindError, "boot file cannot be served", errors.New("file is not seekable")
		h.tell(event)
		http.Error(w, "boot file cannot be served", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType(name))
	counted := &countingWriter{ResponseWriter: w}
	start := time.Now()
	http.ServeContent(counted, r, name, info.ModTime(), content)
	event.Bytes, event.Duration = counted.bytes, time.Since(start)
	h.finished(r, counted, info.Size(), event)
}

// finished tells of whole downloads, and of whole ones that were cut short. A
// range is part of a download, of which no single request knows the end.
func (h *httpBoot) finished(r *http.Request, w *countingWriter, size int64, event Event) {
	if r.Method != http.MethodGet || w.status != http.StatusOK {
		return
	}
	event.Kind, event.Reason = KindServed, "file was fetched whole"
	if event.Bytes != size {
		event.Kind, event.Reason = KindAborted, "client went away before the end of the file"
		event.Err = fmt.Errorf("%d of %d bytes sent", event.Bytes, size)
	}
	h.tell(event)
}

func (h *httpBoot) tell(e Event) {
	logEvent(h.cfg.Logger, e)
	h.events.tell(e)
}

// logEvent writes the one line of a file server's event.
func logEvent(log *slog.Logger, e Event) {
	level := slog.LevelInfo
	if e.Kind != KindServed {
		level = slog.LevelWarn
	}
	log.Log(context.Background(), level, string(e.Kind), "server", e.Server, "machine", e.Machine, "peer", e.Peer,
		"file", e.File, "bytes", e.Bytes, "duration", e.Duration, "reason", e.Reason, "err", e.Err)
}

func contentType(name string) string {
	if strings.HasSuffix(name, ".efi") {
		return "application/efi" // what UEFI 2.10, section 24.7.3.3, wants for an executable
	}
	return "application/octet-stream"
}

func peerOf(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// countingWriter counts the body and keeps the status. It hands ReadFrom on, so
// that the file still goes out by sendfile.
type countingWriter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *countingWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *countingWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(b)
	w.bytes += int64(n)
	return n, err
}

func (w *countingWriter) ReadFrom(src io.Reader) (int64, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := io.Copy(w.ResponseWriter, src)
	w.bytes += n
	return n, err
}
