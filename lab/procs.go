package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// killTimeout is how long a killed process may take to leave /proc; one in the kernel's hands needs a moment.
const killTimeout = 10 * time.Second

// process identifies a process for good: pids are used again, pids with their start times are not.
type process struct {
	PID int `json:"pid"`
	// Start is in clock ticks since boot (proc_pid_stat(5), field 22).
	Start uint64 `json:"start"`
}

// identify reads a process's start time.
func identify(pid int) (process, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	start, state, err := parseStat(stat)
	if err != nil {
		return process{}, fmt.Errorf("process %d: %w", pid, err)
	}
	if state == 'Z' {
		return process{}, fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	return process{pid, start}, nil
}

// parseStat finds state and start time behind the command's name, which may hold anything.
func parseStat(stat []byte) (start uint64, state byte, err error) {
	i := bytes.LastIndexByte(stat, ')')
	if i < 0 {
		return 0, 0, errors.New("its stat file has no command")
	}
	const startField = 22 - 3 // counted from the state, which is field 3
	fields := strings.Fields(string(stat[i+1:]))
	if len(fields) <= startField {
		return 0, 0, errors.New("its stat file is too short")
	}
	start, err = strconv.ParseUint(fields[startField], 10, 64)
	return start, fields[0][0], err
}

// alive says whether that very process still runs.
func (p process) alive() bool {
	if p.PID <= 1 {
		return false
	}
	now, err := identify(p.PID)
	return err == nil && now == p
}

// signal sends a signal to that very process, by a file descriptor that cannot come to mean another.
func (p process) signal(sig syscall.Signal) error {
	if p.PID <= 1 {
		return nil
	}
	handle, err := os.FindProcess(p.PID)
	if err != nil {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	defer handle.Release()
	if !p.alive() {
		return nil
	}
	if err := handle.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("process %d: %w", p.PID, err)
	}
	return nil
}

// wait returns when the process is gone.
func (p process) wait(ctx context.Context) error {
	for p.alive() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for process %d to end: %w", p.PID, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return nil
}

// kill ends the process and waits until it is gone.
func (p process) kill(ctx context.Context) error {
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	return p.wait(ctx)
}

// markedProcesses are all whose environment carries the state directory, but for the caller and its ancestors.
func markedProcesses(stateDir string) ([]process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("looking for the rack's processes: %w", err)
	}
	spared := ancestors()
	marker := []byte(envMarker + "=" + stateDir)
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || slices.Contains(spared, pid) {
			continue
		}
		p, err := identify(pid)
		if err != nil {
			continue // gone meanwhile
		}
		env, err := os.ReadFile(filepath.Join("/proc", e.Name(), "environ"))
		if err != nil || !slices.ContainsFunc(bytes.Split(env, []byte{0}), func(v []byte) bool { return bytes.Equal(v, marker) }) {
			continue
		}
		found = append(found, p)
	}
	return found, nil
}

// ancestors are this process and those it came from.
func ancestors() []int {
	var pids []int
	for pid := os.Getpid(); pid > 1 && len(pids) < 64; {
		pids = append(pids, pid)
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			break
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 {
			break
		}
		if pid, err = strconv.Atoi(fields[1]); err != nil {
			break
		}
	}
	return pids
}

// killMarked kills the rack's processes, again until none is left: a dying supervisor may just start one.
func killMarked(ctx context.Context, stateDir string) (killed int, err error) {
	for range 10 {
		found, err := markedProcesses(stateDir)
		if err != nil || len(found) == 0 {
			return killed, err
		}
		for _, p := range found {
			if err := p.kill(ctx); err != nil {
				return killed, err
			}
			killed++
		}
	}
	return killed, fmt.Errorf("processes of the rack in %s keep coming back", stateDir)
}
