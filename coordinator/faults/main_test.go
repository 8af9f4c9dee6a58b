package faults

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roleVariable says what a process of the test binary is: nothing (go test's own), the rack's world, or a coordinator.
const (
	roleVariable = "BLOOMERY_FAULTS_ROLE"
	roleWorld    = "world"
	roleNode     = "node"
)

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case roleNode:
		os.Exit(nodeMain(os.Args[1]))
	case roleWorld:
		if err := enterWorld(); err != nil {
			_, _ = fmt.Fprintln(os.Stderr, "make the rack's world:", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// inWorld runs the calling test in a process with namespaces of its own for processes, mounts and the network: whatever happens
// to it, the kernel ends all that it started, and no mount, interface or namespace is left. It returns true in that process.
func inWorld(t *testing.T) bool {
	t.Helper()
	if os.Getenv(roleVariable) == roleWorld {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: coordinators run in network namespaces of their own")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.count=1", "-test.v=" + fmt.Sprint(testing.Verbose())}
	if deadline, ok := t.Deadline(); ok {
		args = append(args, "-test.timeout="+(time.Until(deadline)-5*time.Second).String())
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleWorld)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if os.Getenv(roundsVariable) != "" {
		cmd.Stdout = os.Stdout // somebody watches the rounds
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // the signal at the parent's death is sent when this thread ends
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		t.Errorf("in the rack's world: %v", err)
	}
	return false
}

// enterWorld makes the new namespaces usable: nothing that is mounted is seen outside, and /proc and /run/netns are the world's own.
func enterWorld() error {
	return errors.Join(
		unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("proc", "/proc", "proc", 0, ""),
		os.MkdirAll("/run/netns", 0o755),
		unix.Mount("tmpfs", "/run/netns", "tmpfs", 0, "size=1m"),
	)
}
