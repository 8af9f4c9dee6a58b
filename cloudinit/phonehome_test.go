package cloudinit

import (
	"bytes"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestVendorDataParts reads the message as cloud-init does: settings and a script of their own.
func TestVendorDataParts(t *testing.T) {
	vendor, err := VendorData([]string{"http://10.77.0.1/phone-home/token", "http://10.77.0.2/phone-home/token"}, VendorOptions{RootGrown: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := ValidateUserData(vendor); err != nil {
		t.Errorf("own vendor-data is refused: %v", err)
	}
	message, err := mail.ReadMessage(bytes.NewReader(vendor))
	if err != nil {
		t.Fatal(err)
	}
	_, params, err := mime.ParseMediaType(message.Header.Get("Content-Type"))
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{}
	reader := multipart.NewReader(message.Body, params["boundary"])
	for {
		part, err := reader.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(part)
		if err != nil {
			t.Fatal(err)
		}
		parts[part.Header.Get("Content-Type")+" "+part.FileName()] = string(body)
	}
	script, err := phoneHomeScript([]string{"http://10.77.0.1/phone-home/token", "http://10.77.0.2/phone-home/token"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		`text/cloud-config; charset="utf-8" settings`:             "#cloud-config\ngrowpart:\n    mode: \"off\"\nresize_rootfs: false\n",
		`text/x-shellscript; charset="utf-8" bloomery-phone-home`: script,
	}
	if diff := cmp.Diff(want, parts); diff != "" {
		t.Error(diff)
	}
	if !strings.HasPrefix(script, "#!/usr/bin/env python3\n") || !strings.Contains(script, `URLS = ["http://10.77.0.1/phone-home/token","http://10.77.0.2/phone-home/token"]`) {
		t.Errorf("the script is %s", script)
	}
	if _, err := VendorData(make([]string, maxPhoneHomeURLs+1), VendorOptions{}); err == nil {
		t.Error("too many URLs were accepted")
	}
	if _, err := multipartOf([]mimePart{{"text/plain", "evil", []byte("--==bloomery==--")}}); err == nil {
		t.Error("a part that holds the boundary was accepted")
	}
}

// coordinators are phone-home servers with the answers that they give in turn; the last answer stays.
type coordinators struct {
	mu    sync.Mutex
	calls []string
}

func (c *coordinators) serve(t *testing.T, name string, answers ...int) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.calls = append(c.calls, name+" "+r.Method+" "+r.URL.Path+" "+string(body))
		w.WriteHeader(answers[0])
		if len(answers) > 1 {
			answers = answers[1:]
		}
	}))
	t.Cleanup(server.Close)
	return server.URL + "/phone-home/token"
}

func (c *coordinators) seen() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.calls...)
}

// TestPhoneHomeScript runs the script as cloud-init would.
func TestPhoneHomeScript(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("skipped: it runs the script, which needs python3")
	}
	dead := httptest.NewServer(nil)
	dead.Close()
	for name, tc := range map[string]struct {
		urls       func(t *testing.T, c *coordinators) []string
		want       []string
		background bool
	}{
		"the second takes it": {func(t *testing.T, c *coordinators) []string {
			return []string{dead.URL + "/phone-home/token", c.serve(t, "busy", 503), c.serve(t, "good", 204), c.serve(t, "spare", 204)}
		}, []string{"busy POST /phone-home/token ", "good POST /phone-home/token "}, false},
		"none knows the token": {func(t *testing.T, c *coordinators) []string {
			return []string{c.serve(t, "a", 404), c.serve(t, "b", 404)}
		}, []string{"a POST /phone-home/token ", "b POST /phone-home/token "}, false},
		"no redirection": {func(t *testing.T, c *coordinators) []string {
			return []string{c.serve(t, "a", 302), c.serve(t, "b", 204)}
		}, []string{"a POST /phone-home/token ", "b POST /phone-home/token "}, false},
		"later": {func(t *testing.T, c *coordinators) []string {
			return []string{c.serve(t, "a", 404), c.serve(t, "b", 503, 204)}
		}, []string{"a POST /phone-home/token ", "b POST /phone-home/token ", "b POST /phone-home/token "}, true},
	} {
		t.Run(name, func(t *testing.T) {
			c := &coordinators{}
			script, err := phoneHomeScript(tc.urls(t, c))
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(path)
			cmd.Env = append(os.Environ(), "http_proxy="+dead.URL)
			out, err := cmd.CombinedOutput() // returns only when no child holds the output any more
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if strings.Contains(string(out), "background") != tc.background || strings.Contains(string(out), "token") {
				t.Errorf("the script said %q", out)
			}
			for deadline := time.Now().Add(30 * time.Second); tc.background && len(c.seen()) < len(tc.want) && time.Now().Before(deadline); {
				time.Sleep(20 * time.Millisecond)
			}
			if diff := cmp.Diff(tc.want, c.seen()); diff != "" {
				t.Error(diff)
			}
		})
	}
}
