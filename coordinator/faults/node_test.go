package faults

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"bloomery/coordinator"
	"bloomery/coordinator/faults/history"
	"bloomery/lab/netns"
)

// restartAfter is how long the supervisor waits before it starts a coordinator that ended by itself, as systemd does (RestartSec=).
const restartAfter = time.Second

// timing makes jobs of seconds out of jobs of minutes.
func timing() coordinator.Timing {
	return coordinator.Timing{
		Boot: 10 * time.Second, Await: 30 * time.Second, Quiet: 2 * time.Second, Lost: 8 * time.Second, Job: 2 * time.Minute,
		Tick: 200 * time.Millisecond, Lease: 2 * time.Second, Retry: 100 * time.Millisecond,
	}
}

// nodeMain is a coordinator's process. Each line on its standard input lets its clock jump to that far from the true time; its log
// goes to its standard output with the host's monotonic clock.
func nodeMain(configFile string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Int64(slog.TimeKey, int64(monotonic()))
		}
		return a
	}}))
	config, err := coordinator.LoadConfig(configFile)
	if err == nil {
		var offset atomic.Int64
		config.Timing = timing()
		// Without its monotonic part, so that nothing that measures by this clock escapes a jump.
		config.Now = func() time.Time { return time.Now().Round(0).Add(time.Duration(offset.Load())) }
		go func() {
			lines := bufio.NewScanner(os.Stdin)
			for lines.Scan() {
				if d, err := time.ParseDuration(lines.Text()); err == nil {
					offset.Store(int64(d))
				}
			}
		}()
		err = coordinator.Run(ctx, config, log)
	}
	if err != nil {
		log.Error("coordinator failed", "error", err)
		return 1
	}
	return 0
}

// node is a coordinator as the world sees it.
type node struct {
	w             *world
	name          string
	address       netip.Addr
	dir, config   string
	log           *os.File
	supervision   sync.WaitGroup
	mu            sync.Mutex
	process       *os.Process
	stdin         io.WriteCloser
	ended         chan struct{}
	wanted        bool
	endedByItself int
}

func (n *node) url() string { return "https://" + netip.AddrPortFrom(n.address, apiPort).String() }

// start starts the coordinator's process and keeps it running until kill or stop.
func (n *node) start() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted = true
	return n.startLocked()
}

func (n *node) startLocked() error {
	cmd := exec.Command("/proc/self/exe", n.config)
	cmd.Env = append(os.Environ(), roleVariable+"="+roleNode)
	cmd.Stderr = n.log
	var err error
	if n.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := netns.Do(n.name, cmd.Start); err != nil {
		return fmt.Errorf("start coordinator %s: %w", n.name, err)
	}
	ended := make(chan struct{})
	n.process, n.ended = cmd.Process, ended
	n.supervision.Go(func() {
		n.read(out)
		err := cmd.Wait()
		close(ended)
		n.afterEnd(err)
	})
	return nil
}

// afterEnd starts a process again that nobody had asked to end.
func (n *node) afterEnd(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.wanted {
		return
	}
	n.endedByItself++
	n.w.t.Logf("coordinator %s ended by itself: %v", n.name, err)
	n.mu.Unlock()
	time.Sleep(restartAfter)
	n.mu.Lock()
	if n.wanted {
		if err := n.startLocked(); err != nil {
			n.w.t.Errorf("restart coordinator %s: %v", n.name, err)
		}
	}
}

// read follows the coordinator's log until its process ends.
func (n *node) read(out io.Reader) {
	lines := bufio.NewReader(out)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			_, _ = n.log.Write(line) // for people; the history has what the check needs
			n.hear(line)
		}
		if err != nil {
			return
		}
	}
}

func (n *node) hear(line []byte) {
	var said struct {
		Time  int64  `json:"time"`
		Msg   string `json:"msg"`
		Job   string `json:"job"`
		Epoch int64  `json:"epoch"`
	}
	if json.Unmarshal(line, &said) == nil && said.Msg == "job taken" {
		n.w.record.addAt(history.Entry{At: time.Duration(said.Time), Kind: history.JobTaken, Node: n.name, Job: said.Job, Epoch: said.Epoch})
	}
}

// end ends the process by a signal and waits until it is gone.
func (n *node) end(s syscall.Signal) error {
	n.mu.Lock()
	n.wanted = false
	process, ended := n.process, n.ended
	n.mu.Unlock()
	if process == nil {
		return nil
	}
	if err := process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("signal coordinator %s: %w", n.name, err)
	}
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		return errors.Join(fmt.Errorf("coordinator %s did not end on %s", n.name, s), process.Kill())
	}
	n.supervision.Wait()
	return nil
}

func (n *node) signal(s syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.process.Signal(s)
}

// setClock lets the coordinator's clock jump to that far from the true time.
func (n *node) setClock(offset time.Duration) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	_, err := fmt.Fprintln(n.stdin, offset)
	return err
}

// ballast is the file that fills the coordinator's disk.
func (n *node) ballast() string { return filepath.Join(n.dir, "ballast") }

// fillDisk leaves no byte on the coordinator's disk.
func (n *node) fillDisk() error {
	f, err := os.Create(n.ballast())
	if err != nil {
		return err
	}
	zeros := make([]byte, 256<<10)
	for size := len(zeros); size > 0 && err == nil; {
		if _, err = f.Write(zeros[:size]); errors.Is(err, syscall.ENOSPC) {
			size, err = size/2, nil
		}
	}
	return errors.Join(err, f.Close())
}
