package agent

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bloomery/images"
)

func goodConfig(t testing.TB) map[string]any {
	t.Helper()
	public, _, err := images.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	text, err := public.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	return map[string]any{
		"coordinators": []string{"https://10.66.0.1:8443"}, "time_urls": []string{"http://10.66.0.1:80/time"},
		"ca": testCA(t), "image_key": string(text), "build_date": "2026-01-02T15:04:05Z",
	}
}

func testCA(t testing.TB) string {
	t.Helper()
	_, ca := newCertificate(t, nil, nil, &x509.Certificate{IsCA: true, BasicConstraintsValid: true})
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}))
}

func TestParseConfig(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(map[string]any)
		want   string
	}{
		{"good", func(map[string]any) {}, ""},
		{"unknown field", func(m map[string]any) { m["coordinator"] = "x" }, "coordinator"},
		{"no coordinator", func(m map[string]any) { delete(m, "coordinators") }, "coordinators"},
		{"plain HTTP", func(m map[string]any) { m["coordinators"] = []string{"http://a:1"} }, "coordinators[0]"},
		{"no time", func(m map[string]any) { delete(m, "time_urls") }, ""},
		{"time by HTTPS", func(m map[string]any) { m["time_urls"] = []string{"https://a"} }, "time_urls[0]"},
		{"no CA", func(m map[string]any) { m["ca"] = "" }, "ca"},
		{"no key", func(m map[string]any) { m["image_key"] = "RWQ" }, "image_key"},
		{"no date", func(m map[string]any) { delete(m, "build_date") }, "build_date"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := goodConfig(t)
			c.change(m)
			data, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			_, err = ParseConfig(data)
			if (err == nil) != (c.want == "") || (err != nil && !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func FuzzParseConfig(f *testing.F) {
	data, err := json.Marshal(goodConfig(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"ca": "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err == nil && (len(c.Coordinators) == 0 || c.CA == nil || c.BuildDate.IsZero()) {
			t.Fatal("accepted an incomplete configuration")
		}
	})
}

func TestCheckFiles(t *testing.T) {
	root := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkFiles(t.Context(), root, false); !errors.Is(err, errImageDamaged) {
		t.Errorf("without a list: %v", err)
	}
	write("bin/a", "hello")
	write("bin/empty", "")
	write(checksumsPath, fmt.Sprintf("%x  /bin/a\n%x  /bin/empty\n", sha256.Sum256([]byte("hello")), sha256.Sum256(nil)))
	check := func(want string, deep bool) {
		t.Helper()
		err := checkFiles(t.Context(), root, deep)
		if (err == nil) != (want == "") || (err != nil && (!errors.Is(err, errImageDamaged) || !strings.Contains(err.Error(), want))) {
			t.Errorf("deep %v: got %v, want %q", deep, err, want)
		}
	}
	check("", false)
	check("", true)
	write("bin/a", "hellO")
	check("", false)
	check("/bin/a", true)
	write("bin/a", "")
	check("/bin/a", false)
}

func FuzzParseSums(f *testing.F) {
	f.Add([]byte(strings.Repeat("ab", 32) + "  /bin/a\n"))
	f.Add([]byte(strings.Repeat("ab", 32) + "  /bin/../a"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parseSums(data)
		for _, file := range list {
			if err == nil && (!filepath.IsAbs(file.path) || strings.Contains(file.path, "/../")) {
				t.Fatalf("accepted path %q", file.path)
			}
		}
	})
}

func TestSetClock(t *testing.T) {
	answer := func(text string, status int) *httptest.Server {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(text))
		}))
		t.Cleanup(s.Close)
		return s
	}
	future := time.Now().Add(48 * time.Hour).UTC().Truncate(time.Second)
	good := answer(future.Format(time.RFC3339)+"\n", 200)
	same := answer(time.Now().UTC().Format(time.RFC3339), 200)
	bad := answer("soon", 200)
	broken := answer(future.Format(time.RFC3339), 500)
	earliest := time.Now().Add(-time.Hour)
	for _, c := range []struct {
		name  string
		urls  []string
		moved bool
	}{
		{"good", []string{good.URL}, true},
		{"second answers", []string{bad.URL, broken.URL, good.URL}, true},
		{"clock is right", []string{same.URL}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var set time.Time
			moved, err := setClock(t.Context(), http.DefaultClient, c.urls, earliest, func(hint, _ time.Time) error { set = hint; return nil })
			if err != nil || (moved > 47*time.Hour) != c.moved || set.Equal(future) != c.moved {
				t.Errorf("moved by %v to %v, %v", moved, set, err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := setClock(ctx, http.DefaultClient, []string{bad.URL}, time.Now().Add(time.Hour), func(_, _ time.Time) error { return nil }); err == nil {
		t.Error("a clock before the image's date was accepted")
	}
}

func TestCheckMemory(t *testing.T) {
	for text, ok := range map[string]bool{"MemTotal:  440000 kB\n": true, "MemTotal:  200000 kB\n": false, "MemFree: 1 kB\n": false, "MemTotal: x kB\n": false, "": false} {
		if err := checkMemory([]byte(text)); (err == nil) != ok {
			t.Errorf("checkMemory(%q) = %v", text, err)
		}
	}
}
