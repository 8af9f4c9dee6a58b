package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

const (
	// connectTimeout is how long QEMU may take to connect to QMP; loading it from a cold disk takes seconds.
	connectTimeout = 30 * time.Second
	commandTimeout = 5 * time.Second
	// quitTimeout is how long QEMU may take to leave by itself after the guest stopped.
	quitTimeout = 5 * time.Second
)

// Exit says why a machine stopped.
type Exit int

// The ways a machine stops.
const (
	// ExitKilled: somebody took the power away, or QEMU died.
	ExitKilled Exit = iota
	// ExitReset: the guest reset itself.
	ExitReset
	// ExitOff: the guest switched itself off.
	ExitOff
)

// String names the exit for logs.
func (e Exit) String() string {
	return [...]string{"killed", "reset by the guest", "switched off by the guest"}[e]
}

// Options are how a machine's process is started.
type Options struct {
	// Binary is qemu-system-x86_64.
	Binary string
	Args   []string
	Env    []string
	// Output gets QEMU's own messages.
	Output *os.File
	// QMP is the listener on Spec.QMP.
	QMP net.Listener
	// Launch starts the command: the parent-death signal is sent when the starting thread ends, so it
	// must be one that stays.
	Launch func(*exec.Cmd) error
}

// Process is a running QEMU.
type Process struct {
	cmd  *exec.Cmd
	qmp  *qmp
	done chan struct{}

	mu   sync.Mutex
	exit Exit
}

// Start starts QEMU and returns when it has connected to QMP and runs its guest.
func Start(ctx context.Context, o Options) (*Process, error) {
	p := &Process{cmd: exec.Command(o.Binary, o.Args...), done: make(chan struct{})}
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = o.Env, o.Output, o.Output
	p.cmd.SysProcAttr = sysProcAttr()
	if err := drain(o.QMP); err != nil {
		return nil, err
	}
	if err := o.Launch(p.cmd); err != nil {
		return nil, fmt.Errorf("starting QEMU: %w", err)
	}
	go p.wait()
	conn, err := p.accept(ctx, o.QMP)
	if err != nil {
		p.Kill()
		return nil, err
	}
	p.qmp = newQMP(conn, p.event)
	if _, err := p.command(ctx, "qmp_capabilities", nil); err != nil {
		p.Kill()
		return nil, fmt.Errorf("starting QEMU: %w", err)
	}
	return p, nil
}

// drain throws away connections of an earlier QEMU that nobody accepted.
func drain(l net.Listener) error {
	d, ok := l.(interface{ SetDeadline(time.Time) error })
	if !ok {
		return fmt.Errorf("starting QEMU: the QMP listener (%T) knows no deadlines", l)
	}
	for {
		if err := d.SetDeadline(time.Now().Add(time.Millisecond)); err != nil {
			return fmt.Errorf("starting QEMU: %w", err)
		}
		c, err := l.Accept()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return d.SetDeadline(time.Time{})
		}
		if err != nil {
			return fmt.Errorf("starting QEMU: %w", err)
		}
		c.Close()
	}
}

// accept waits for QEMU's connection, for its death, or for the time to be over.
func (p *Process) accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	type accepted struct {
		conn net.Conn
		err  error
	}
	got := make(chan accepted, 1)
	go func() {
		conn, err := l.Accept()
		got <- accepted{conn, err}
	}()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	unblock := func() {
		l.(interface{ SetDeadline(time.Time) error }).SetDeadline(time.Unix(1, 0)) // drain checked the type
		if a := <-got; a.conn != nil {
			a.conn.Close()
		}
	}
	select {
	case a := <-got:
		if a.err != nil {
			return nil, fmt.Errorf("starting QEMU: waiting for QMP: %w", a.err)
		}
		return a.conn, nil
	case <-p.done:
		unblock()
		return nil, fmt.Errorf("starting QEMU: it ended at once (%s); see its log", p.cmd.ProcessState)
	case <-ctx.Done():
		unblock()
		return nil, fmt.Errorf("starting QEMU: waiting for QMP: %w", ctx.Err())
	}
}

func (p *Process) wait() {
	_ = p.cmd.Wait() // its state says it all; a killed QEMU is no failure
	close(p.done)
}

// event learns from SHUTDOWN why the guest stopped and lets QEMU go, which waits paused.
func (p *Process) event(name string, data json.RawMessage) {
	if name != "SHUTDOWN" {
		return
	}
	var d struct {
		Guest  bool   `json:"guest"`
		Reason string `json:"reason"`
	}
	if err := json.Unmarshal(data, &d); err != nil {
		return
	}
	var exit Exit
	switch {
	case d.Guest && d.Reason == "guest-reset":
		exit = ExitReset
	case d.Guest && d.Reason == "guest-shutdown":
		exit = ExitOff
	default:
		return // our own quit, which must not hide what came before it
	}
	p.mu.Lock()
	p.exit = exit
	p.mu.Unlock()
	go p.quit() // events come on the reader's goroutine, which must go on to read the answer
}

func (p *Process) quit() {
	ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
	defer cancel()
	_, _ = p.qmp.command(ctx, "quit", nil) // whatever it says, it is killed if it stays
	select {
	case <-p.done:
	case <-ctx.Done():
		p.Kill()
	}
}

// Kill takes the power away and waits until QEMU is gone.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill() // fails only if it has ended
	<-p.done
	if p.qmp != nil {
		<-p.qmp.done
	}
}

// Done is closed when QEMU has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says why it ended; only meaningful after Done.
func (p *Process) Exit() Exit {
	if p.qmp != nil {
		<-p.qmp.done // the event may still be in the socket when the process is gone
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// PID is QEMU's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

func (p *Process) command(ctx context.Context, name string, args any) (json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	return p.qmp.command(ctx, name, args)
}

// ShutdownButton presses the power button (ACPI); whether the guest obeys is its business.
func (p *Process) ShutdownButton(ctx context.Context) error {
	_, err := p.command(ctx, "system_powerdown", nil)
	return err
}

// SetLink plugs the i-th NIC's cable in or out.
func (p *Process) SetLink(ctx context.Context, i int, up bool) error {
	_, err := p.command(ctx, "set_link", map[string]any{"name": NetdevID(i), "up": up})
	return err
}

// SetSMARTWarning sets the bits of the Critical Warning field of an NVMe disk's SMART log (NVMe 1.4
// figure 194: 0x01 spare low, 0x02 temperature, 0x04 reliability, 0x08 read-only, 0x10 volatile memory).
func (p *Process) SetSMARTWarning(ctx context.Context, disk int, bits uint8) error {
	_, err := p.command(ctx, "qom-set", map[string]any{"path": "/machine/peripheral/" + DiskID(disk), "property": "smart_critical_warning", "value": bits})
	return err
}

// Throttle bounds a disk's rate in bytes per second; 0 takes the bound away.
func (p *Process) Throttle(ctx context.Context, disk int, bytesPerSecond int64) error {
	_, err := p.command(ctx, "block_set_io_throttle", map[string]any{
		"device": driveID(disk), "bps": bytesPerSecond, "bps_rd": 0, "bps_wr": 0, "iops": 0, "iops_rd": 0, "iops_wr": 0,
	})
	return err
}

// PullDisk takes a disk's medium away at once: whatever the guest reads or writes from then on fails, as of a disk that has died. The guest
// goes on seeing a device until it is started again.
func (p *Process) PullDisk(ctx context.Context, disk int) error {
	said, err := p.command(ctx, "human-monitor-command", map[string]any{"command-line": "drive_del " + driveID(disk)})
	if err != nil {
		return err
	}
	var text string
	if err := json.Unmarshal(said, &text); err != nil {
		return fmt.Errorf("QMP drive_del: %w", err)
	}
	if text = strings.TrimSpace(text); text != "" { // the human monitor has no other word for an error
		return fmt.Errorf("QMP drive_del: %s", text)
	}
	return nil
}
