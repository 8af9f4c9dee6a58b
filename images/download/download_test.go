package download

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func content(n int) []byte {
	data := make([]byte, n)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(data)
	return data
}

func sumOf(data []byte) Checksum {
	sum := sha256.Sum256(data)
	return Checksum{"sha256", sum[:]}
}

// server serves the data, each request as the next of the answers says; the last one goes on for ever.
func server(t *testing.T, answers ...http.HandlerFunc) (string, *int) {
	t.Helper()
	requests := 0
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := answers[min(requests, len(answers)-1)]
		requests++
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/image.qcow2", &requests
}

func whole(data []byte) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	}
}

// broken sends a part of what was asked for and hangs up.
func broken(data []byte, n int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:n])
		panic(http.ErrAbortHandler)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func TestGet(t *testing.T) {
	data, other := content(3<<20), content(2<<20+1)
	for _, test := range []struct {
		name    string
		answers []http.HandlerFunc
		left    []byte // of an earlier call
		max     int64
		want    string // of the error; empty: the data
	}{
		{name: "whole", answers: []http.HandlerFunc{whole(data)}},
		{name: "gone on with", answers: []http.HandlerFunc{whole(data)}, left: data[:1<<20]},
		{name: "all is there", answers: []http.HandlerFunc{whole(data)}, left: data},
		{name: "left of another file", answers: []http.HandlerFunc{whole(data)}, left: other},
		{name: "cut", answers: []http.HandlerFunc{broken(data, 1<<20), whole(data)}},
		{name: "server error", answers: []http.HandlerFunc{status(503), whole(data)}},
		{name: "no ranges", left: data[:100], answers: []http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(data) }}},
		{name: "another range", left: data[:100], want: "asked for bytes from 100 on", answers: []http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", "bytes 0-99/3145728")
			w.WriteHeader(http.StatusPartialContent)
		}}},
		{name: "wrong bytes", answers: []http.HandlerFunc{whole(other)}, want: "the checksum is another one"},
		{name: "not there", answers: []http.HandlerFunc{status(404)}, want: "404 Not Found"},
		{name: "always an error", answers: []http.HandlerFunc{status(500)}, want: "given up after 5 tries"},
		{name: "too large", answers: []http.HandlerFunc{whole(data)}, max: 1 << 20, want: "more than the limit of 1048576"},
		{name: "too large unsaid", max: 1 << 20, want: "goes on at byte 1048576", answers: []http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
			for range 3 {
				_, _ = w.Write(data[:1<<20])
				w.(http.Flusher).Flush()
			}
		}}},
		{name: "stalled", want: "sent nothing for 200ms", answers: []http.HandlerFunc{func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			url, _ := server(t, test.answers...)
			o := Options{URL: url, Folder: t.TempDir(), Checksum: sumOf(data), MaxSize: 8 << 20, Idle: 200 * time.Millisecond, Pause: time.Millisecond}
			if test.max > 0 {
				o.MaxSize = test.max
			}
			if test.left != nil {
				name := sha256.Sum256([]byte(o.URL + "\n" + o.Checksum.String()))
				if err := os.WriteFile(filepath.Join(o.Folder, hex.EncodeToString(name[:16])), test.left, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			path, err := Get(t.Context(), o)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("want %q, got %v", test.want, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
				t.Errorf("got %d bytes that are not those of the server, %v", len(got), err)
			}
		})
	}
}

func TestGetIsInterrupted(t *testing.T) {
	data := content(4 << 20)
	begun := make(chan struct{})
	url, requests := server(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:1<<20])
		w.(http.Flusher).Flush()
		close(begun)
		<-r.Context().Done()
	}, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Range") == "" {
			t.Error("the second call begins anew")
		}
		whole(data)(w, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	o := Options{URL: url, Folder: t.TempDir(), Checksum: sumOf(data), MaxSize: 8 << 20}
	go func() {
		<-begun
		// Somebody else who wants the same file is told.
		if _, err := Get(ctx, o); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Errorf("a second fetch of the same: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
		cancel()
	}()
	if _, err := Get(ctx, o); !errors.Is(err, context.Canceled) {
		t.Fatalf("interrupted: %v", err)
	}
	if _, err := Get(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if *requests != 2 {
		t.Errorf("%d requests", *requests)
	}
}

func TestRedirects(t *testing.T) {
	data := content(1000)
	plain, _ := server(t, whole(data))
	secure := httptest.NewTLSServer(http.RedirectHandler(plain+"?token=secret", http.StatusFound))
	defer secure.Close()
	o := Options{URL: secure.URL + "/x", Folder: t.TempDir(), Checksum: sumOf(data), MaxSize: 1 << 20, Client: secure.Client()}
	_, err := Get(t.Context(), o)
	if err == nil || !strings.Contains(err.Error(), "redirected from https to http://") {
		t.Errorf("a redirect away from https: %v", err)
	}
	if err != nil && strings.Contains(err.Error(), "secret") {
		t.Errorf("the error shows the query: %v", err)
	}
}

func TestFetchSums(t *testing.T) {
	sum := strings.Repeat("ab", 32)
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "%s *noble.img\n%s  other.img\n", sum, strings.Repeat("cd", 32))
	}))
	defer s.Close()
	got, err := FetchSums(t.Context(), s.Client(), s.URL+"/SHA256SUMS", "http://mirror.example/noble.img?x=y")
	if err != nil || hex.EncodeToString(got.Sum) != sum {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := FetchSums(t.Context(), nil, "http://mirror.example/SHA256SUMS", "http://mirror.example/noble.img"); err == nil || !strings.Contains(err.Error(), "over https only") {
		t.Errorf("a list over plain HTTP: %v", err)
	}
}

func TestParseSums(t *testing.T) {
	a, b, long := strings.Repeat("ab", 32), strings.Repeat("cd", 32), strings.Repeat("ef", 64)
	for _, test := range []struct{ name, list, want string }{
		{"text", a + "  f\n", "sha256 " + a},
		{"binary", b + "  g\n" + a + " *f\n", "sha256 " + a},
		{"tagged", "SHA256 (f) = " + a + "\n", "sha256 " + a},
		{"rocky", "# f: 123 bytes\nSHA256 (f) = " + a + "\nSHA512 (f) = " + long + "\n", "sha512 " + long},
		{"signed", "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n" + a + "  f\n-----BEGIN PGP SIGNATURE-----\nabc\n", "sha256 " + a},
		{"dot", a + "  ./f\n", "sha256 " + a},
		{"carriage return", a + "  f\r\n", "sha256 " + a},
		{"none", a + "  g\n", "has none for f"},
		{"empty", "", "has none for f"},
		{"two", a + "  f\n" + b + "  f\n", "has two for f"},
		{"short", "abcd  f\n", "has none for f"},
		{"long line", strings.Repeat("x", maxSumsLine+1), "token too long"},
	} {
		got, err := ParseSums(strings.NewReader(test.list), "f")
		if err != nil {
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("%s: want %q, got %v", test.name, test.want, err)
			}
		} else if got.String() != test.want {
			t.Errorf("%s: want %q, got %s", test.name, test.want, got)
		}
	}
}

func FuzzParseSums(f *testing.F) {
	f.Add(strings.Repeat("ab", 32)+"  f\n", "f")
	f.Add("SHA256 (f) = "+strings.Repeat("ab", 32), "f")
	f.Fuzz(func(t *testing.T, list, name string) {
		sum, err := ParseSums(strings.NewReader(list), name)
		if err == nil && len(sum.Sum) != 32 && len(sum.Sum) != 64 {
			t.Errorf("a checksum of %d bytes", len(sum.Sum))
		}
	})
}
