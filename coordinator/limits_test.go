package coordinator

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

func TestKeyedLimit(t *testing.T) {
	l := newKeyedLimit[int](rate.Limit(0), 2)
	for i, want := range []bool{true, true, false} {
		if got := l.allow(1); got != want {
			t.Errorf("ask %d: %v", i, got)
		}
	}
	if !l.left(2) || !l.allow(2) {
		t.Error("one key's flood hurts another")
	}
	for key := 10; key < 10+limitedKeys; key++ {
		l.allow(1) // keeps it recent
		l.allow(key)
	}
	if n := len(l.entries); n != limitedKeys || l.recent.Len() != n {
		t.Errorf("%d keys are kept, want %d", n, limitedKeys)
	}
	if l.allow(1) {
		t.Error("a key that is in use was forgotten")
	}
	if !l.left(10) {
		t.Error("the oldest key was kept")
	}
}

func TestLimitKey(t *testing.T) {
	for in, want := range map[string]string{"10.0.0.1": "10.0.0.1", "2001:db8::1": "2001:db8::", "2001:db8:0:1::1": "2001:db8:0:1::"} {
		if got := limitKey(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("%s is limited as %s, want %s", in, got, want)
		}
	}
	if got := limitKey(netip.Addr{}); got.IsValid() {
		t.Errorf("a unix socket is limited as %s", got)
	}
}

// TestRateLimits floods the coordinator as a stranger, with wrong tokens and as an operator.
func TestRateLimits(t *testing.T) {
	r := newRack(t)
	stranger := &http.Client{Transport: r.transport(nil)}
	op := r.operator()
	r.c.limits.stranger = newKeyedLimit[netip.Addr](rate.Limit(0.001), 5)
	r.c.limits.caller = newKeyedLimit[string](rate.Limit(0.001), 5)
	flood := func(client *http.Client, path string) map[int]int {
		codes := map[int]int{}
		for range 8 {
			response, err := client.Post("https://"+r.api+path, "application/json", strings.NewReader("{}"))
			must(t, err)
			codes[response.StatusCode]++
			must(t, response.Body.Close())
		}
		return codes
	}
	const procedure = "/bloomery.v1.AccessService/WhoAmI"
	if codes := flood(op.http, procedure); codes[http.StatusOK] != 5 || codes[http.StatusTooManyRequests] != 3 {
		t.Errorf("an operator's calls: %v", codes)
	}
	if codes := flood(op.http, "/images/tiny/manifest.json"); codes[http.StatusTooManyRequests] != 8 {
		t.Errorf("an operator's plain requests: %v", codes)
	}
	if codes := flood(stranger, procedure); codes[http.StatusUnauthorized] != 5 || codes[http.StatusTooManyRequests] != 3 {
		t.Errorf("a stranger's calls: %v", codes)
	}
	r.c.limits.stranger = newKeyedLimit[netip.Addr](rate.Limit(0.001), 5)
	wrong := &http.Client{Transport: bearer{tokenPrefix + strings.Repeat("A", 43), r.transport(nil)}}
	if codes := flood(wrong, procedure); codes[http.StatusUnauthorized] != 5 || codes[http.StatusTooManyRequests] != 3 {
		t.Errorf("calls with a wrong token: %v", codes)
	}
	if codes := flood(stranger, "/healthz"); codes[http.StatusTooManyRequests] != 8 {
		t.Errorf("health checks of a stranger that has used its share: %v", codes)
	}
	r.c.limits.address = newKeyedLimit[netip.Addr](rate.Limit(0.001), 2)
	if codes := flood(op.http, procedure); codes[http.StatusTooManyRequests] != 8 {
		t.Errorf("calls from an address that has used its share: %v", codes)
	}
}

// TestBodyLimits sends too much to every call and to what is no call.
func TestBodyLimits(t *testing.T) {
	r := newRack(t)
	admin := r.operator().http
	large := `{"name":"` + strings.Repeat("a", maxImageMessage+1) + `"}`
	for procedure, m := range procedures(t) {
		if m.IsStreamingServer() || m.IsStreamingClient() || r.c.permissions[procedure].peer != pki.RoleOperator {
			continue
		}
		response, err := admin.Post("https://"+r.api+procedure, "application/json", strings.NewReader(large))
		if err != nil {
			continue // The connection was ended while the body was under way.
		}
		text, err := io.ReadAll(io.LimitReader(response.Body, 500))
		must(t, errors.Join(err, response.Body.Close()))
		if !strings.Contains(string(text), "resource_exhausted") {
			t.Errorf("%s with a body of %d bytes: %d %s", procedure, len(large), response.StatusCode, text)
		}
	}
	if who, err := r.access(admin).WhoAmI(t.Context(), connect.NewRequest(&bloomeryv1.WhoAmIRequest{})); err != nil || proto.Size(who.Msg) == 0 {
		t.Errorf("a call after all that: %v", err)
	}
}

// TestSlowClients stalls in the middle of a body and while an answer comes, over HTTP/1.1 and HTTP/2.
func TestSlowClients(t *testing.T) {
	const stall = 100 * time.Millisecond
	read := make(chan error, 10)
	wrote := make(chan error, 10)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			_, err := io.Copy(io.Discard, r.Body)
			read <- err
			return
		}
		var err error
		for block := make([]byte, 64<<10); err == nil; {
			_, err = w.Write(block)
		}
		wrote <- err
	})
	for _, http2 := range []bool{false, true} {
		t.Run(fmt.Sprintf("HTTP/2 %v", http2), func(t *testing.T) {
			s := httptest.NewUnstartedServer(paced(handler, stall, time.Minute))
			s.EnableHTTP2 = http2
			s.StartTLS()
			defer s.Close()
			client := s.Client()
			body, feed := io.Pipe()
			go func() { _, _ = feed.Write([]byte("begun")) }()
			request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL, body)
			must(t, err)
			go func() {
				if response, err := client.Do(request); err == nil {
					_ = response.Body.Close()
				}
			}()
			expect(t, "reading", read)
			_ = feed.Close()
			response, err := client.Get(s.URL)
			must(t, err)
			expect(t, "writing", wrote)
			must(t, response.Body.Close())
		})
	}
}

func expect(t *testing.T, what string, ended <-chan error) {
	t.Helper()
	select {
	case err := <-ended:
		if err == nil {
			t.Errorf("%s ended well", what)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("%s goes on", what)
	}
}

// TestSilentStream keeps a stream without a message for longer than a stall, which is no stall.
func TestSilentStream(t *testing.T) {
	const stall = 50 * time.Millisecond
	s := httptest.NewUnstartedServer(paced(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		for range 3 {
			_, _ = io.WriteString(w, "line\n")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(4 * stall):
			}
		}
	}), stall, time.Minute))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	for _, proto := range []string{"h2", "http/1.1"} {
		client := s.Client()
		if proto != "h2" {
			config := client.Transport.(*http.Transport).TLSClientConfig.Clone()
			config.NextProtos = []string{proto}
			client = &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
		}
		response, err := client.Post(s.URL, "text/plain", strings.NewReader("x"))
		must(t, err)
		lines := 0
		for scanner := bufio.NewScanner(response.Body); scanner.Scan(); {
			lines++
		}
		must(t, response.Body.Close())
		if lines != 3 {
			t.Errorf("%s: %d lines came, want 3", response.Proto, lines)
		}
	}
}

func TestCappedListener(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	l := capped(inner, 3, 2)
	defer func() { must(t, l.Close()) }()
	accepted := make(chan net.Conn, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func(from string) net.Conn {
		conn, err := fromAddress(from)(t.Context(), "tcp", inner.Addr().String())
		must(t, err)
		return conn
	}
	refused := func(conn net.Conn) bool {
		must(t, conn.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err := conn.Read(make([]byte, 1))
		return errors.Is(err, io.EOF)
	}
	first := dial("127.0.0.2")
	held := <-accepted
	dial("127.0.0.2")
	<-accepted
	if !refused(dial("127.0.0.2")) {
		t.Error("a third connection of one address was accepted")
	}
	dial("127.0.0.3")
	<-accepted
	if !refused(dial("127.0.0.4")) {
		t.Error("a fourth connection was accepted")
	}
	must(t, errors.Join(held.Close(), first.Close()))
	_ = held.Close() // Twice frees one place only.
	dial("127.0.0.4")
	<-accepted
	if !refused(dial("127.0.0.5")) {
		t.Error("one place was freed twice")
	}
}

// TestStrangersChangeNothing makes every call without a certificate: no table but that of events has changed.
func TestStrangersChangeNothing(t *testing.T) {
	r := newRack(t)
	r.createMachine(r.operator())
	stranger := &http.Client{Transport: r.transport(nil)}
	before := r.digest()
	for procedure, m := range procedures(t) {
		code := tryCall(t, stranger, r.api, procedure, m.IsStreamingServer() || m.IsStreamingClient())
		want := "unauthenticated"
		if r.c.permissions[procedure].peer == pki.RoleNone {
			want = ""
		}
		if want != "" && code != want {
			t.Errorf("%s: %q", procedure, code)
		}
	}
	if d := cmp.Diff(before, r.digest()); d != "" {
		t.Errorf("a table changed:\n%s", d)
	}
	for kind, n := range r.eventTypes() {
		if strings.HasPrefix(kind, "audit.") && n != 1 {
			t.Errorf("%d events %s", n, kind)
		}
	}
	if _, err := (&tls.Dialer{Config: &tls.Config{MaxVersion: tls.VersionTLS12, InsecureSkipVerify: true}}).DialContext(context.Background(), "tcp", r.api); err == nil {
		t.Error("TLS 1.2 was accepted")
	}
}

// digest is a hash of each table that calls change: not events, and not what coordinators write by themselves.
func (r *rack) digest() map[string]string {
	r.t.Helper()
	var all map[string]string
	must(r.t, r.c.Store.Snapshot(r.t.Context(), func(s *store.Snapshot) error {
		all = map[string]string{}
		for _, table := range s.Tables {
			if slices.Contains([]string{"events", "duties", "sessions", "node_certificates", "images", "image_copies"}, table.Name) {
				continue
			}
			hash := sha256.New()
			if err := s.Rows(table, func(row []any) error {
				_, err := fmt.Fprintf(hash, "%v\n", row)
				return err
			}); err != nil {
				return err
			}
			all[table.Name] = hex.EncodeToString(hash.Sum(nil))
		}
		return nil
	}))
	return all
}
