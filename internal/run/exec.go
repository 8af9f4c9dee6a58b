package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"syscall"
	"time"
)

// Limits of an Exec whose fields are zero.
const (
	DefaultTimeout   = 2 * time.Minute
	DefaultMaxOutput = 8 << 20
)

// killGrace is how long a program's grandchildren may hold its pipes open after it was killed.
const killGrace = 2 * time.Second

// Exec runs real programs, each in a process group of its own so that a deadline ends its children as well.
type Exec struct {
	Timeout   time.Duration // for one program, on top of the context's deadline; 0 means DefaultTimeout
	MaxOutput int           // bytes kept of each of stdout and stderr; 0 means DefaultMaxOutput
}

// Run implements Runner.
func (e Exec) Run(ctx context.Context, argv []string, opts ...Option) (Result, error) {
	if len(argv) == 0 || argv[0] == "" {
		return Result{ExitCode: -1}, errors.New("run a program: the argument vector is empty")
	}
	timeout, limit := e.Timeout, e.MaxOutput
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	if limit <= 0 {
		limit = DefaultMaxOutput
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()

	o := Collect(opts)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdin, cmd.Dir = o.Stdin, o.Dir
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/bbin", "HOME=/", "LC_ALL=C"}, o.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = killGrace
	stdout := &capped{limit: limit, full: cancel}
	stderr := &capped{limit: limit}
	cmd.Stdout, cmd.Stderr = stdout, stderr

	err := cmd.Run()
	res := Result{Stdout: stdout.buf.Bytes(), Stderr: stderr.buf.Bytes(), ExitCode: -1}
	if cmd.ProcessState != nil {
		res.ExitCode = cmd.ProcessState.ExitCode()
	}
	var exit *exec.ExitError
	switch {
	case stdout.over:
		return res, fmt.Errorf("run %s: %w of %d bytes", argv[0], ErrOutputTooLarge, limit)
	case err == nil:
		return res, nil
	case ctx.Err() != nil:
		return res, fmt.Errorf("run %s: %w", argv[0], ctx.Err())
	case errors.As(err, &exit) && res.ExitCode >= 0:
		return res, nil
	default:
		return res, fmt.Errorf("run %s: %w", argv[0], err)
	}
}

// capped keeps the first limit bytes and drops the rest; it calls full once when something is dropped.
// The buffer is not embedded: its ReadFrom would let io.Copy go around the limit.
type capped struct {
	buf   bytes.Buffer
	limit int
	over  bool
	full  func()
}

func (c *capped) Write(p []byte) (int, error) {
	room := c.limit - c.buf.Len()
	if len(p) <= room {
		return c.buf.Write(p)
	}
	c.buf.Write(p[:room])
	if !c.over && c.full != nil {
		c.full()
	}
	c.over = true
	return len(p), nil
}
