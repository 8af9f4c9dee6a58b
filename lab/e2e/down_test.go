package e2e

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"bloomery/lab/netns"
)

// TestDownAfterKillingEverything kills every process of a rack and shows that "lab down" leaves nothing of it.
func TestDownAfterKillingEverything(t *testing.T) {
	r := newRack(t, oneMachine("e2e-down"))
	r.do("machine", "power", "m1", "on")
	before := processesOf(r.stateDir)
	if len(before) < 3 {
		t.Fatalf("a rack with a running machine has the processes %v, want supervisor, coordinator and machine", before)
	}
	for _, pid := range before {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && err != syscall.ESRCH {
			t.Fatal(err)
		}
	}
	r.do("lab", "down", "--state-dir", r.stateDir)
	if left := processesOf(r.stateDir); len(left) > 0 {
		t.Errorf("processes %v are left", left)
	}
	for _, part := range []string{"", "-oob", "-customer-a"} {
		if netns.Exists(r.namespace(part)) {
			t.Errorf("network namespace %s is left", r.namespace(part))
		}
	}
	if _, err := os.Stat(r.stateDir); !os.IsNotExist(err) {
		t.Errorf("the state directory is left: %v", err)
	}
	out, err := r.command(context.Background(), "lab", "status", "--state-dir", r.stateDir, "-o", "json").Output()
	if err == nil {
		var status any
		_ = json.Unmarshal(out, &status)
		t.Errorf("lab status still knows a rack: %v", status)
	}
}

// processesOf lists the processes that carry a rack's mark in their environment.
func processesOf(stateDir string) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		environ, err := os.ReadFile(file)
		if err != nil || !strings.Contains(string(environ), "BLOOMERY_LAB="+stateDir) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil && alive(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// alive is false for a process that has ended and was not waited for yet.
func alive(pid int) bool {
	for range 20 {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		if err != nil {
			return false
		}
		if _, rest, ok := strings.Cut(string(stat), ") "); ok && !strings.HasPrefix(rest, "Z") {
			return true
		}
		time.Sleep(50 * time.Millisecond)
	}
	return false
}
