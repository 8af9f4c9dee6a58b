package clustertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"bloomery/coordinator"
)

// childEnv names the configuration file in the environment of a test binary that is to be a coordinator.
const childEnv = "BLOOMERY_TEST_COORDINATOR"

// Main is TestMain for tests with Processes: it runs the tests, or in a child the coordinator. customise changes the child's
// configuration and hands; it may be nil.
func Main(m *testing.M, customise func(config *coordinator.Config, deps *coordinator.Deps)) int {
	path := os.Getenv(childEnv)
	if path == "" {
		return m.Run()
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := child(ctx, path, customise); err != nil {
		fmt.Fprintln(os.Stderr, "coordinator:", err)
		return 1
	}
	return 0
}

func child(ctx context.Context, path string, customise func(*coordinator.Config, *coordinator.Deps)) error {
	config, err := coordinator.LoadConfig(path)
	if err != nil {
		return err
	}
	deps := coordinator.Deps{Logger: slog.New(slog.NewTextHandler(os.Stderr, nil)).With("node", config.Node)}
	config.Ready = func() error { return os.WriteFile(readyFile(config.Data), nil, 0o600) }
	if customise != nil {
		customise(&config, &deps)
	}
	return coordinator.RunWith(ctx, config, deps)
}

func readyFile(data string) string { return filepath.Join(data, "ready") }

// process is a coordinator in a process of its own.
type process struct {
	cmd  *exec.Cmd
	done chan error
}

func startProcess(n *Node) (life, error) {
	path := n.Config.Data + ".yaml"
	text, err := yaml.Marshal(configFile(n.Config))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, err
	}
	if err := os.Remove(readyFile(n.Config.Data)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	log, err := os.OpenFile(n.Config.Data+".log", os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer func() { _ = log.Close() }()
	executable, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(executable)
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	cmd.Stdout, cmd.Stderr = log, log
	// A test that is killed takes its coordinators with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{cmd: cmd, done: make(chan error, 1)}
	go func() { p.done <- cmd.Wait() }()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		select {
		case err := <-p.done:
			return nil, fmt.Errorf("coordinator %s: %w: %s", n.Name, err, n.LogTail())
		default:
		}
		if _, err := os.Stat(readyFile(n.Config.Data)); err == nil {
			return p, nil
		}
	}
	return nil, errors.Join(fmt.Errorf("coordinator %s does not start: %s", n.Name, n.LogTail()), p.kill())
}

// PID is the process of a coordinator that runs as one; 0 otherwise.
func (n *Node) PID() int {
	if p, ok := n.life.(*process); ok {
		return p.cmd.Process.Pid
	}
	return 0
}

// LogTail is the end of what a coordinator's process has logged.
func (n *Node) LogTail() string {
	data, err := os.ReadFile(n.Config.Data + ".log")
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimSpace(data), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-20):], []byte("\n")))
}

func configFile(c coordinator.Config) map[string]any {
	var networks []map[string]any
	for _, n := range c.Networks {
		networks = append(networks, map[string]any{"name": n.Name, "vlan": n.VLAN})
	}
	return map[string]any{"data": c.Data, "pki": c.PKI, "node": c.Node, "cluster": map[string]string{"address": c.Cluster.String()},
		"listen": map[string]any{"api": c.Listen.API}, "networks": networks}
}

func (p *process) stop() error {
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-p.done:
		return err
	case <-time.After(patience):
		return errors.Join(errors.New("it does not stop"), p.kill())
	}
}

func (p *process) kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

func (p *process) pause(on bool) error {
	if on {
		return p.cmd.Process.Signal(syscall.SIGSTOP)
	}
	return p.cmd.Process.Signal(syscall.SIGCONT)
}
