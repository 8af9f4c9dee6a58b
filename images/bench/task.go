package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// task is one side's work in one run, done by a process of its own so that its CPU time and memory are its own.
type task struct {
	// Do is the name of a function below, or "shell" for Command.
	Do      string `json:"do"`
	Command string `json:"command,omitempty"`
	// File and Out are what is read and written, also in the environment of Command; URL is the server, Name the image there, Key the public key's file.
	File string `json:"file,omitempty"`
	Out  string `json:"out,omitempty"`
	URL  string `json:"url,omitempty"`
	Name string `json:"name,omitempty"`
	Key  string `json:"key,omitempty"`
}

// usage is what a task took.
type usage struct {
	Seconds float64 `json:"seconds"`
	// CPU is user and system time in seconds.
	CPU float64 `json:"cpu"`
	// Peak is the most memory in MiB that the process, or the largest process of a command, had resident.
	Peak float64 `json:"peak"`
}

// start does a task in a new process.
func (t task) start(ctx context.Context) (used usage, err error) {
	self, err := os.Executable()
	if err != nil {
		return used, err
	}
	description, err := json.Marshal(t)
	if err != nil {
		return used, err
	}
	cmd := exec.CommandContext(ctx, self, "--task", string(description))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a cancelled pipeline ends as a whole
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		return used, fmt.Errorf("task %s: %w: %s", description, err, bytes.TrimSpace(said.Bytes()))
	}
	if err := json.Unmarshal(out.Bytes(), &used); err != nil {
		return used, fmt.Errorf("task %s said %q: %w", description, out.Bytes(), err)
	}
	return used, nil
}

// doTask is the new process's side of start.
func doTask(ctx context.Context, description string) (used usage, err error) {
	var t task
	if err := json.Unmarshal([]byte(description), &t); err != nil {
		return used, fmt.Errorf("reading the task: %w", err)
	}
	work := map[string]func(context.Context, task) error{
		"shell": shell, "write": writeOurs, "import": importOurs, "go": writeGo, "network": onlyNetwork, "decompress": onlyDecompress, "disk": onlyDisk,
	}[t.Do]
	if work == nil {
		return used, fmt.Errorf("task %q is not known", t.Do)
	}
	start := time.Now()
	if err := work(ctx, t); err != nil {
		return used, err
	}
	used.Seconds = time.Since(start).Seconds()
	var self, children syscall.Rusage
	if err := errors.Join(syscall.Getrusage(syscall.RUSAGE_SELF, &self), syscall.Getrusage(syscall.RUSAGE_CHILDREN, &children)); err != nil {
		return used, err
	}
	for _, r := range []syscall.Rusage{self, children} {
		used.CPU += time.Duration(r.Utime.Nano() + r.Stime.Nano()).Seconds()
	}
	if t.Do == "shell" {
		used.Peak = float64(children.Maxrss) / 1024
		return used, nil
	}
	used.Peak, err = peakMemory()
	return used, err
}

// peakMemory is this process's in MiB. (Its Maxrss would include that of the process that started it.)
func peakMemory() (float64, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			return float64(kib) / 1024, err
		}
	}
	return 0, errors.New("/proc/self/status has no VmHWM")
}

func shell(ctx context.Context, t task) error {
	cmd := exec.CommandContext(ctx, "bash", "-o", "pipefail", "-c", t.Command)
	cmd.Env = append(os.Environ(), "FILE="+t.File, "OUT="+t.Out, "URL="+t.URL)
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("running %s: %w: %s", t.Command, err, bytes.TrimSpace(said))
	}
	return nil
}
