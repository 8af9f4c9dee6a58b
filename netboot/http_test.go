package netboot

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func startHTTP(t *testing.T, allowed Allowed, content []byte) (base string, events chan Event) {
	t.Helper()
	events = make(chan Event, 10)
	handler, err := NewHTTPHandler(HTTPConfig{
		Files: agentFiles(content), Allowed: allowed, Observer: func(e Event) { events <- e }, Logger: slog.New(slog.DiscardHandler),
		Now: func() time.Time { return time.Date(2026, 3, 1, 13, 0, 5, 999, time.FixedZone("", 3600)) },
	})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(handler)
	server.Config = NewHTTPServer(handler, slog.New(slog.DiscardHandler))
	server.Start()
	t.Cleanup(server.Close)
	return server.URL, events
}

func TestHTTPBoot(t *testing.T) {
	content := pattern(100_000)
	for _, tt := range []struct {
		name, method, path, ranges string
		allowed                    Allowed
		status                     int
		length                     int64
		body                       []byte
		kind                       Kind
	}{
		{name: "get", method: "GET", path: "/boot/bloomery-agent.efi", allowed: everyone, status: 200, length: 100_000, body: content, kind: KindServed},
		{name: "head", method: "HEAD", path: "/boot/bloomery-agent.efi", allowed: everyone, status: 200, length: 100_000},
		{name: "range", method: "GET", path: "/boot/bloomery-agent.efi", ranges: "bytes=10-19", allowed: everyone, status: 206, length: 10, body: content[10:20]},
		{name: "bad range", method: "GET", path: "/boot/bloomery-agent.efi", ranges: "bytes=200000-", allowed: everyone, status: 416, length: -1},
		{name: "not leased", method: "GET", path: "/boot/bloomery-agent.efi", allowed: nobody, status: 404, length: -1, kind: KindDenied},
		{name: "not leased, head", method: "HEAD", path: "/boot/bloomery-agent.efi", allowed: nobody, status: 404, length: -1, kind: KindDenied},
		{name: "not built", method: "GET", path: "/boot/vmlinuz", allowed: everyone, status: 404, length: -1, kind: KindError},
		{name: "not a boot file", method: "GET", path: "/boot/secret", allowed: everyone, status: 404, length: -1, kind: KindError},
		{name: "traversal", method: "GET", path: "/boot/..%2fsecret", allowed: everyone, status: 404, length: -1, kind: KindError},
		{name: "directory", method: "GET", path: "/boot/", allowed: everyone, status: 404, length: -1},
		{name: "write", method: "PUT", path: "/boot/bloomery-agent.efi", allowed: everyone, status: 405, length: -1},
		{name: "time", method: "GET", path: "/time", allowed: nobody, status: 200, length: 20, body: []byte("2026-03-01T12:00:05Z")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base, events := startHTTP(t, tt.allowed, content)
			request, err := http.NewRequestWithContext(t.Context(), tt.method, base+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			if tt.ranges != "" {
				request.Header.Set("Range", tt.ranges)
			}
			response, err := http.DefaultClient.Do(request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil {
				t.Fatal(err)
			}
			diff(t, tt.status, response.StatusCode)
			if tt.length >= 0 {
				diff(t, tt.length, response.ContentLength)
			}
			if tt.body != nil && !bytes.Equal(body, tt.body) {
				t.Errorf("body of %d bytes differs from the %d that were asked for", len(body), len(tt.body))
			}
			if strings.HasSuffix(tt.path, ".efi") && tt.status < 300 {
				diff(t, "application/efi", response.Header.Get("Content-Type"))
			}
			if tt.kind == "" {
				if len(events) > 0 {
					t.Errorf("event %+v, want none", <-events)
				}
				return
			}
			e := nextEvent(t, events)
			if e.Kind != tt.kind || e.Peer != netip.MustParseAddr("127.0.0.1") || e.Reason == "" {
				t.Errorf("event %+v, want %s", e, tt.kind)
			}
			if e.Kind == KindServed && (e.Bytes != 100_000 || e.Duration <= 0 || e.Machine != "m1") {
				t.Errorf("event %+v", e)
			}
		})
	}
}

// TestHTTPBootClientGone: a download that ends early is not called served.
func TestHTTPBootClientGone(t *testing.T) {
	base, events := startHTTP(t, everyone, pattern(64<<20))
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(conn, "GET /boot/bloomery-agent.efi HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := io.ReadFull(conn, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if e := nextEvent(t, events); e.Kind != KindAborted || e.Err == nil || e.Bytes >= 64<<20 {
		t.Errorf("event %+v, want %s", e, KindAborted)
	}
}
