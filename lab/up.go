package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"bloomery/lab/netns"
	"bloomery/lab/qemu"
)

const (
	// readyTimeout is how long supervisor and coordinator may each take to answer.
	readyTimeout = 60 * time.Second
	// toolTimeout is how long `rack init` and `agent-image assemble` may take.
	toolTimeout = 2 * time.Minute
)

// UpOptions say what to bring up.
type UpOptions struct {
	Config Config
	// StateDir is DefaultStateDir(Config.Name) when empty.
	StateDir string
	// Bloomery and Bloomeryd are the executables; Bloomery must have the command `lab supervise STATEDIR`
	// that calls Supervise.
	Bloomery, Bloomeryd string
	// AgentImageBase is a directory that `bloomery agent-image build` made.
	AgentImageBase string
	// NoCoordinator leaves coordinator, keys and agent image out: switch, BMCs and machines only.
	NoCoordinator bool
	// Progress gets one line for each thing done. nil discards them.
	Progress func(line string)
}

// Up brings a rack up: namespaces, supervisor, keys, agent image, coordinator. The machines stay off. If it
// fails it takes down what it made, but for the logs, whose place the error names.
func Up(ctx context.Context, o UpOptions) (Status, error) {
	o.Config.fill()
	if o.StateDir == "" {
		o.StateDir = DefaultStateDir(o.Config.Name)
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if err := o.check(); err != nil {
		return Status{}, err
	}
	l, err := newLayout(o.StateDir, o.Config)
	if err != nil {
		return Status{}, err
	}
	if err := l.create(o.Config); err != nil {
		return Status{}, err
	}
	if err := o.bringUp(ctx, l); err != nil {
		// The caller's context may be what ended; taking down has time of its own.
		downCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), readyTimeout)
		defer cancel()
		down := Down(downCtx, DownOptions{StateDir: l.dir, Rack: o.Config.Name, KeepLogs: true})
		return Status{}, errors.Join(fmt.Errorf("bringing the rack up: %w (logs are in %s)", err, l.logs()), down)
	}
	return GetStatus(ctx, l.dir)
}

func (o *UpOptions) check() error {
	if err := o.Config.Validate(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("a rack needs network namespaces and taps: run as root")
	}
	if o.Bloomery == "" {
		return errors.New("the bloomery executable is not given")
	}
	if !o.NoCoordinator && (o.Bloomeryd == "" || o.AgentImageBase == "") {
		return errors.New("the bloomeryd executable and the agent image's directory must be given")
	}
	if _, err := exec.LookPath(qemuBinary); err != nil {
		return fmt.Errorf("running machines: %w (Debian package qemu-system-x86)", err)
	}
	if slices.ContainsFunc(o.Config.Machines, func(m Machine) bool { return m.TPM }) {
		if _, err := exec.LookPath(qemu.TPMBinary); err != nil {
			return fmt.Errorf("running machines with a TPM: %w (Debian package swtpm)", err)
		}
	}
	for _, path := range []*string{&o.Bloomery, &o.Bloomeryd, &o.AgentImageBase} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path) // the processes run in the state directory
		if err != nil {
			return err
		}
		if _, err := os.Stat(abs); err != nil {
			return fmt.Errorf("bringing the rack up: %w", err)
		}
		*path = abs
	}
	return nil
}

func (o *UpOptions) bringUp(ctx context.Context, l layout) error {
	c := &o.Config
	c.makeUpPasswords()
	text, err := c.Marshal()
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(l.config(), text, 0o600), os.WriteFile(l.switchPassword(), []byte(c.Switch.Password), 0o600)); err != nil {
		return err
	}
	for _, name := range namespaces(*c) {
		if err := netns.Create(name); err != nil {
			return err
		}
		if err := netns.NoForwarding(name); err != nil {
			return err
		}
	}
	o.Progress("made network namespaces " + strings.Join(namespaces(*c), ", "))
	st := state{Rack: c.Name, Bloomeryd: o.Bloomeryd}
	if err := o.startSupervisor(ctx, l, &st); err != nil {
		return err
	}
	if o.NoCoordinator {
		return nil
	}
	return o.startCoordinators(ctx, l, &st)
}

// startCoordinators makes the rack's keys and agent image and starts the first coordinator; the others join it, one after the other.
func (o *UpOptions) startCoordinators(ctx context.Context, l layout, st *state) error {
	places := o.Config.places()
	create := []string{"rack", "init", "--dir", l.rack(), "--name", o.Config.Name, "--node", places[0].name()}
	assemble := []string{"agent-image", "assemble", "--base", o.AgentImageBase, "--pki", l.rack(), "--out", l.agentImage()}
	for _, p := range places {
		create = append(create, "--socket", l.api(p))
		assemble = append(assemble, "--coordinator", "https://"+apiAddress(p.provisioning()), "--time-url", "http://"+p.provisioning().Addr().String()+"/time")
	}
	for _, address := range places[0].addresses() {
		create = append(create, "--server-address", address)
	}
	if err := o.runTool(ctx, l, create...); err != nil {
		return err
	}
	if err := o.runTool(ctx, l, assemble...); err != nil {
		return err
	}
	for _, p := range places {
		if err := writeCoordinatorConfig(l, p); err != nil {
			return err
		}
		if p.number > 1 {
			if err := o.join(ctx, l, p); err != nil {
				return err
			}
		}
		if err := startCoordinator(ctx, l, p, st); err != nil {
			return err
		}
		o.Progress(fmt.Sprintf("started coordinator %s (bloomeryd, process %d) in namespace %s", p.name(), st.Coordinators[p.name()].PID, p.namespace()))
	}
	if len(places) > 1 {
		return o.waitVoters(ctx, l, len(places))
	}
	return nil
}

// waitVoters returns when all coordinators vote, so that one of them may be lost.
func (o *UpOptions) waitVoters(ctx context.Context, l layout, want int) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		var status struct{ Nodes []struct{ Role string } }
		voters := 0
		text, err := o.quietTool(ctx, l, "", "rack", "status", "-o", "json")
		if err == nil {
			err = json.Unmarshal(text, &status)
		}
		for _, n := range status.Nodes {
			if n.Role == "NODE_ROLE_VOTER" {
				voters++
			}
		}
		if err == nil && voters == want {
			o.Progress(fmt.Sprintf("all %d coordinators vote", want))
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d coordinators to vote, %d do: %w", want, voters, errors.Join(ctx.Err(), err))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// join lets a further coordinator into the rack as an operator does: a token is made at the rack and used up on the new machine.
func (o *UpOptions) join(ctx context.Context, l layout, p place) error {
	token, err := o.tool(ctx, l, "", "rack", "token", "create", "--node", p.name())
	if err != nil {
		return err
	}
	if err := os.WriteFile(l.joinToken(p), token, 0o600); err != nil {
		return fmt.Errorf("joining coordinator %s: %w", p.name(), err)
	}
	join := []string{"rack", "join", "--token-file", l.joinToken(p), "--coordinator-config", l.coordinatorConfig(p), "--bloomeryd", o.Bloomeryd}
	if _, err := o.tool(ctx, l, p.namespace(), join...); err != nil {
		return err
	}
	return os.Remove(l.joinToken(p))
}

// namespaces are those that a rack needs.
func namespaces(c Config) []string {
	names := []string{oobNamespace(c.Name)}
	for _, p := range c.places() {
		names = append(names, p.namespace())
	}
	for _, n := range c.customers() {
		names = append(names, customerNamespace(c.Name, n.Name))
	}
	return names
}

// makeUpPasswords fills in what was left empty. A BMC's has 20 bytes at most; rand.Text has 26.
func (c *Config) makeUpPasswords() {
	if c.Switch.Password == "" {
		c.Switch.Password = rand.Text()
	}
	for i := range c.Machines {
		if c.Machines[i].BMC.Password == "" {
			c.Machines[i].BMC.Password = rand.Text()[:16]
		}
	}
}

// environment is the caller's with the rack's marker, by which Down finds every process.
func environment(l layout, rack string) []string {
	return append(os.Environ(), envMarker+"="+l.dir, envRack+"="+rack)
}

// daemon starts a program in a session of its own with its output in a log.
func daemon(l layout, rack, logName, program string, args ...string) (*exec.Cmd, error) {
	log, err := os.OpenFile(l.log(logName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(program, args...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.Dir = environment(l, rack), log, log, l.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }() // so that it is no zombie while this process lives; it outlives this process
	return cmd, nil
}

func (o *UpOptions) startSupervisor(ctx context.Context, l layout, st *state) error {
	cmd, err := daemon(l, st.Rack, "supervisor", o.Bloomery, "lab", "supervise", l.dir)
	if err != nil {
		return fmt.Errorf("starting the supervisor: %w", err)
	}
	if st.Supervisor, err = identify(cmd.Process.Pid); err != nil {
		return fmt.Errorf("starting the supervisor: %w; its log says: %s", err, lastLines(l.log("supervisor")))
	}
	if err := l.save(*st); err != nil {
		return err
	}
	if err := waitSocket(ctx, l.control(), st.Supervisor); err != nil {
		return fmt.Errorf("starting the supervisor: %w; its log says: %s", err, lastLines(l.log("supervisor")))
	}
	o.Progress(fmt.Sprintf("started switch %s and %d machines' BMCs (supervisor, process %d)", o.Config.Switch.Name, len(o.Config.Machines), st.Supervisor.PID))
	return nil
}

// runTool runs a bloomery command to its end.
func (o *UpOptions) runTool(ctx context.Context, l layout, args ...string) error {
	_, err := o.tool(ctx, l, "", args...)
	return err
}

// tool runs a bloomery command as the rack's operator, in a namespace unless that is empty, and returns what it printed.
func (o *UpOptions) tool(ctx context.Context, l layout, namespace string, args ...string) ([]byte, error) {
	o.Progress("bloomery " + strings.Join(args, " "))
	return o.quietTool(ctx, l, namespace, args...)
}

func (o *UpOptions) quietTool(ctx context.Context, l layout, namespace string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, o.Bloomery, args...)
	cmd.Env = append(environment(l, o.Config.Name), "BLOOMERY_CONFIG="+l.clientConfig())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := cmd.Start
	if namespace != "" {
		start = func() error { return netns.Do(namespace, cmd.Start) }
	}
	err := start()
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return nil, fmt.Errorf("bloomery %s: %w: %s", strings.Join(args[:2], " "), err, tail(stderr.Bytes()))
	}
	return stdout.Bytes(), nil
}

// waitSocket returns when the unix socket accepts; it gives up early if the process has died.
func waitSocket(ctx context.Context, path string, p process) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", path)
		if err == nil {
			return conn.Close()
		}
		if !p.alive() {
			return fmt.Errorf("process %d ended before %s accepted connections", p.PID, filepath.Base(path))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", path, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// lastLines is the end of a log for an error message.
func lastLines(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return tail(text)
}

func tail(text []byte) string {
	const most = 2000
	return strings.TrimSpace(string(text[max(0, len(text)-most):]))
}

// Supervise is the body of the hidden command `bloomery lab supervise STATEDIR`.
func Supervise(ctx context.Context, stateDir string, log *slog.Logger) error {
	_, c, err := openRack(stateDir)
	if err != nil {
		return err
	}
	return Run(ctx, c, stateDir, log)
}
