package sdnotify

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestSend(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Send("READY=1"); err != nil {
		t.Errorf("without systemd: %v", err)
	}
	dir, err := os.MkdirTemp("", "sd") // a test's own folder has too long a name for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{filepath.Join(dir, "notify"), "@bloomery-test-" + filepath.Base(dir)} {
		t.Setenv("NOTIFY_SOCKET", name)
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		if err := Send("READY=1"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		buffer := make([]byte, 64)
		n, err := l.Read(buffer)
		if err != nil || string(buffer[:n]) != "READY=1" {
			t.Errorf("%s: got %q %v", name, buffer[:n], err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := Send("READY=1"); err == nil || !strings.Contains(err.Error(), "READY=1") {
		t.Errorf("nobody listens: %v", err)
	}
}
