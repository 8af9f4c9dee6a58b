package images

import (
	"bytes"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"log/slog"

	"github.com/google/go-cmp/cmp"
)

// A server that dies in the middle of answers, then comes back: the write only takes longer.
func TestSourceServerDies(t *testing.T) {
	f := newFixture(t)
	inner := Handler(f.store(t), slog.New(slog.DiscardHandler))
	var requests atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := requests.Add(1); n%2 == 1 {
			w.Header().Set("Content-Length", "100000")
			w.Header().Set("Content-Range", strings.Replace(r.Header.Get("Range"), "=", " ", 1)+"/9999999")
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(make([]byte, 500))
			panic(http.ErrAbortHandler)
		}
		inner.ServeHTTP(w, r)
	}))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	defer server.Close()
	device := newFakeDevice(len(f.disk))
	source := &HTTPSource{BaseURLs: []string{server.URL}, Patience: 20 * time.Second}
	if _, err := Write(t.Context(), WriteOptions{Manifest: f.m, Source: source, Device: device}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(device.disk, f.disk) {
		t.Error("disk differs")
	}
}

func TestSourceFailures(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	for name, tc := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"stalled": {func(w http.ResponseWriter, r *http.Request) { <-stop }, "server sent nothing"},
		"not 206": {func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(make([]byte, 10)) }, "200 OK"},
		"absent":  {http.NotFound, ErrNotFound.Error()},
		"wrong range": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-4/5")
			w.WriteHeader(206)
		}, "Content-Range"},
		"short": {func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-14/99")
			w.WriteHeader(206)
		}, "ended after 0 of 10"},
		"broken": {func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(503) }, "503"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(tc.handler)
			t.Cleanup(server.CloseClientConnections)
			source := &HTTPSource{BaseURLs: []string{server.URL + "/"}, Patience: 300 * time.Millisecond, IdleTimeout: 100 * time.Millisecond}
			err := source.ReadRange(t.Context(), "debian-12", make([]byte, 10), 5)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestSourceNextServer(t *testing.T) {
	f := newFixture(t)
	good := f.source(t)
	dead := httptest.NewServer(nil)
	dead.Close()
	empty := httptest.NewServer(http.NotFoundHandler())
	defer empty.Close()
	source := &HTTPSource{BaseURLs: []string{dead.URL, empty.URL, good.BaseURLs[0]}, Patience: time.Second}
	for range 3 {
		manifest, signature, err := source.FetchManifest(t.Context(), "debian-12")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := VerifyManifest(manifest, signature, f.public); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := good.FetchManifest(t.Context(), "debian-13"); !errors.Is(err, ErrNotFound) {
		t.Errorf("error = %v, want ErrNotFound", err)
	}
}

// A server that swallows requests and one that lacks the image cost a few requests, not a third of them each.
func TestSourceSparesBadServers(t *testing.T) {
	f := newFixture(t)
	good := f.source(t)
	var hung, empty atomic.Int32
	stop := make(chan struct{})
	hanging := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { hung.Add(1); <-stop }))
	t.Cleanup(func() { close(stop); hanging.CloseClientConnections(); hanging.Close() })
	lagging := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { empty.Add(1); http.NotFound(w, r) }))
	t.Cleanup(lagging.Close)
	source := &HTTPSource{BaseURLs: []string{hanging.URL, good.BaseURLs[0], lagging.URL}, IdleTimeout: 50 * time.Millisecond}
	for i := range 200 {
		if err := source.ReadRange(t.Context(), "debian-12", make([]byte, 10), int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if hung.Load() > 10 || empty.Load() > 10 || hung.Load()+empty.Load() == 0 {
		t.Errorf("of 200 requests %d went to the server that hangs, %d to the one without the image", hung.Load(), empty.Load())
	}
}

func TestServersOrder(t *testing.T) {
	var s servers
	all, now := []string{"a", "b", "c"}, time.Unix(1000, 0)
	seen := map[string]int{}
	for range 6 {
		seen[s.order(all, now)[0]]++
	}
	if diff := cmp.Diff(map[string]int{"a": 2, "b": 2, "c": 2}, seen); diff != "" {
		t.Errorf("turns: %s", diff)
	}
	s.outcome("a", errors.New("dead"), now)
	for range 4 {
		if order := s.order(all, now); len(order) != 3 || order[2] != "a" {
			t.Errorf("a failed server is asked in the order %v", order)
		}
	}
	// When its rest is over one caller tries it, and the others go on without it.
	later := now.Add(firstRest + 1)
	tries := 0
	for range 4 {
		if order := s.order(all, later); order[2] != "a" {
			tries++
		}
	}
	if tries != 1 {
		t.Errorf("%d callers try the server whose rest is over, want one", tries)
	}
	s.outcome("a", nil, later)
	if order := s.order([]string{"a"}, later); len(order) != 1 {
		t.Errorf("order of one: %v", order)
	}
	if len(s.failed) != 0 {
		t.Errorf("a server that is good again is remembered as failed: %v", s.failed)
	}
}
