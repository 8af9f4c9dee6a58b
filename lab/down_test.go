package lab

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDownDamaged takes down folders whose state says nothing or lies, with a process that only its environment gives away.
func TestDownDamaged(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("it looks into the network namespaces: needs root")
	}
	for _, c := range []struct{ name, state, rack string }{
		{"no state", "", ""},
		{"cut state", `{"rack": `, "\x00\xff:::"},
		{"state of a process that is another now", `{"supervisor":{"pid":1,"start":1},"coordinators":{"c1":{"pid":1073741824,"start":5}}}`, "name: damaged"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "damaged")
			l := layout{dir}
			if err := l.create(Default(1)); err != nil {
				t.Fatal(err)
			}
			for path, text := range map[string]string{l.state(): c.state, l.config(): c.rack} {
				if text != "" {
					if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			ended, bystander := dummy(t, dir), dummy(t, dir+"-other")
			for range 2 { // the second finds nothing and is no error
				if err := Down(t.Context(), DownOptions{StateDir: dir, Rack: "damaged-test"}); err != nil {
					t.Fatal(err)
				}
			}
			if ended.alive() {
				t.Error("a process of the rack is left")
			}
			if !bystander.alive() {
				t.Error("a process of another rack was killed")
			}
			if _, err := os.Lstat(dir); !os.IsNotExist(err) {
				t.Errorf("its folder is left: %v", err)
			}
		})
	}
}

// TestDownRefuses keeps Down away from folders that are no rack's.
func TestDownRefuses(t *testing.T) {
	dir := t.TempDir()
	letter := filepath.Join(dir, "letter")
	if err := os.WriteFile(letter, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []DownOptions{{StateDir: dir}, {}, {StateDir: "/"}} {
		if err := Down(t.Context(), o); err == nil {
			t.Errorf("Down(%+v) is no error", o)
		}
	}
	if _, err := os.Stat(letter); err != nil {
		t.Error(err)
	}
}

// dummy starts a process that waits and carries the mark of the rack in dir.
func dummy(t *testing.T, dir string) process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "LAB_TEST_WAIT=1", envMarker+"="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reaped := make(chan struct{})
	go func() { defer close(reaped); _ = cmd.Wait() }()
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-reaped })
	p, err := identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	found, err := markedProcesses(dir)
	if err != nil || len(found) != 1 || found[0] != p {
		t.Fatalf("marked processes: %v, %v; want %v", found, err, p)
	}
	return p
}

// TestKeepLogs leaves the logs and lets the next Up use the folder.
func TestKeepLogs(t *testing.T) {
	l := layout{filepath.Join(t.TempDir(), "kept")}
	if err := l.create(Default(1)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.log("console-m1"), []byte("booted"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := l.remove(true); err != nil {
		t.Fatal(err)
	}
	if got := lastLines(l.log("console-m1")); !strings.Contains(got, "booted") {
		t.Errorf("log: %q", got)
	}
	if err := l.create(Default(1)); err != nil {
		t.Error(err)
	}
}
