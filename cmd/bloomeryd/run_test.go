package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bloomery/images"
	"bloomery/internal/pki"
)

// call runs the program and returns its exit code and what it wrote.
func call(ctx context.Context, stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(ctx, args, process{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs, level: slog.LevelInfo})
	return code, out.String(), errs.String()
}

// newKeys makes a rack's keys and a configuration that uses them.
func newKeys(t *testing.T, dir string) (config string) {
	t.Helper()
	keys := filepath.Join(dir, "pki")
	if err := pki.InitRack(keys, pki.InitOptions{Name: "r1", ServerAddresses: []string{"127.0.0.1"}, OperatorName: "anna"}); err != nil {
		t.Fatal(err)
	}
	if _, err := images.GenerateKeyFiles(filepath.Join(keys, "image.key"), filepath.Join(keys, "image.pub")); err != nil {
		t.Fatal(err)
	}
	return writeConfig(t, dir, dir)
}

// writeConfig makes the configuration of a coordinator that serves the API on a unix socket.
func writeConfig(t *testing.T, dir, data string) string {
	t.Helper()
	path := filepath.Join(dir, "bloomeryd.yaml")
	text := fmt.Sprintf("data: %s\nlisten:\n  api: [\"unix:%s\"]\nnetworks:\n  - {name: provisioning, vlan: 100}\n", data, filepath.Join(data, "s"))
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCommandLine(t *testing.T) {
	dir := t.TempDir()
	config := newKeys(t, dir)
	for name, tc := range map[string]struct {
		args []string
		code int
		says string
	}{
		"help":                 {[]string{"--help"}, exitDone, "Examples:"},
		"version":              {[]string{"--version"}, exitDone, "bloomeryd "},
		"unknown command":      {[]string{"chek"}, exitUsage, `unknown command "chek"`},
		"log format":           {[]string{"--log", "xml"}, exitUsage, "use text or json"},
		"unknown flag":         {[]string{"--nothing"}, exitUsage, "--help"},
		"argument":             {[]string{"--config", config, "more"}, exitUsage, `"more"`},
		"no configuration":     {[]string{"--config", filepath.Join(dir, "none")}, exitFailed, "read the configuration"},
		"check":                {[]string{"check", "--config", config}, exitDone, "network provisioning is VLAN 100"},
		"check help":           {[]string{"check", "--help"}, exitDone, "bloomeryd check --config /etc"},
		"check argument":       {[]string{"check", "x"}, exitUsage, "usage: bloomeryd check"},
		"check wrong flag":     {[]string{"check", "--no"}, exitUsage, "usage: bloomeryd check"},
		"check without a rack": {[]string{"check", "--config", writeConfig(t, t.TempDir(), filepath.Join(dir, "other"))}, exitFailed, "rack init"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := call(t.Context(), "", tc.args...)
			if code != tc.code || !strings.Contains(out+errs, tc.says) {
				t.Errorf("exit %d, want %d and %q in:\n%s%s", code, tc.code, tc.says, out, errs)
			}
		})
	}
	for _, c := range commands() {
		code, out, _ := call(t.Context(), "", c.name, "--help")
		if code != exitDone || !strings.Contains(out, "Examples:\n  bloomeryd "+c.name) || !strings.Contains(usage(t), "bloomeryd "+c.name) {
			t.Errorf("help of %s: exit %d:\n%s", c.name, code, out)
		}
	}
}

func usage(t *testing.T) string {
	t.Helper()
	_, out, _ := call(t.Context(), "", "--help")
	return out
}

// TestServesAndTellsSystemd runs a coordinator as its unit does.
func TestServesAndTellsSystemd(t *testing.T) {
	dir, err := os.MkdirTemp("", "bd") // a test's own folder has too long a name for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	config := newKeys(t, dir)
	notify := filepath.Join(dir, "notify")
	t.Setenv("NOTIFY_SOCKET", notify)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	ended := make(chan string, 1)
	go func() {
		code, _, errs := call(ctx, "", "--config", config)
		ended <- fmt.Sprintf("exit %d\n%s", code, errs)
		_ = l.Close()
	}()
	buffer := make([]byte, 64)
	n, err := l.Read(buffer)
	if err != nil || string(buffer[:n]) != "READY=1" {
		t.Fatalf("systemd was told %q (%v); %s", buffer[:n], err, <-ended)
	}
	if conn, err := net.Dial("unix", filepath.Join(dir, "s")); err != nil {
		t.Errorf("it said that it was ready: %v", err)
	} else if err := conn.Close(); err != nil {
		t.Error(err)
	}
	stop()
	if text := <-ended; !strings.HasPrefix(text, "exit 0") {
		t.Error(text)
	}
}

func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{"text": `msg=hello machine=m1`, "json": `"msg":"hello","machine":"m1"}`} {
		var out bytes.Buffer
		newLogger(&out, format, slog.LevelInfo).Info("hello", "machine", "m1")
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s: %s", format, out.String())
		}
	}
}
