// Package demo runs Bloomery's main job in a virtual rack, from power-on to a customer's login, by the commands that a
// user would type, and reports what it saw.
package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Options say where the demo's parts are.
type Options struct {
	// Bloomery is the path of the bloomery executable; every command of the demo is one call of it.
	Bloomery string
	// AgentImage is the directory that "bloomery agent-image build" made.
	AgentImage string
	// ImageFile is the OS image to install: a raw disk or a directory that "bloomery image convert" made.
	ImageFile string
	// Report is the JSON file that Run writes; see Report.
	Report string
	// StateDir is the virtual rack's directory.
	StateDir string
	// Keep leaves the rack up.
	Keep bool
	// Out gets the story for people, Progress the live progress of jobs.
	Out, Progress io.Writer
}

const (
	machine  = "m1"
	network  = "customer-a"
	image    = "debian-12"
	hostname = "hello-bloomery"
	// The login that the image's cloud-init makes for the customer's key.
	user = "debian"
)

const userData = `#cloud-config
hostname: ` + hostname + `
write_files:
  - path: /etc/motd
    content: |
      Installed by Bloomery.
`

// Run plays the whole demo. The rack is taken down at the end, also after a failure, unless Keep is set.
func Run(ctx context.Context, o Options) (err error) {
	s := &story{Options: o, env: append(os.Environ(), "BLOOMERY_CONFIG="+filepath.Join(o.StateDir, "rack", "config.yaml"))}
	work, err := os.MkdirTemp("", "bloomery-demo-")
	if err != nil {
		return fmt.Errorf("make the demo's folder: %w", err)
	}
	defer os.RemoveAll(work)
	key := filepath.Join(work, "id_ed25519")
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "demo", "-f", key).CombinedOutput(); err != nil {
		return fmt.Errorf("make the customer's SSH key: %w: %s", err, out)
	}
	userDataFile := filepath.Join(work, "user-data.yaml")
	if err := os.WriteFile(userDataFile, []byte(userData), 0o600); err != nil {
		return err
	}

	if !o.Keep {
		defer func() {
			down, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(err, s.run(down, "lab", "down", "--state-dir", o.StateDir))
		}()
	}
	s.say("A rack without hardware: a machine with UEFI firmware and a BMC, an 802.1Q switch, a coordinator.")
	if err := s.run(ctx, "lab", "up", "--state-dir", o.StateDir, "--agent-image", o.AgentImage); err != nil {
		return err
	}
	s.say("The image: cut in frames, compressed, signed with the rack's key.")
	if err := s.run(ctx, "image", "add", image, o.ImageFile); err != nil {
		return err
	}
	s.say("First acquaintance: the machine netboots the agent, is inventoried and checked.")
	if err := s.run(ctx, "machine", "inspect", machine, "--wait"); err != nil {
		return err
	}
	if err := s.run(ctx, "machine", "list"); err != nil {
		return err
	}
	before, err := s.machine(ctx)
	if err != nil {
		return err
	}
	s.say("The main job: from power-on to a customer's login.")
	login, err := s.installAndLogin(ctx, key, userDataFile)
	if err != nil {
		return err
	}
	if err := s.run(ctx, "machine", "show", machine); err != nil {
		return err
	}
	report, err := s.observe(ctx, before, login)
	if err != nil {
		return err
	}
	if err := writeReport(o.Report, report); err != nil {
		return err
	}
	printPhases(o.Out, report.Machines[0])
	s.say("What to try next:")
	fmt.Fprintf(o.Out, `  make demo KEEP=1                       leaves the rack up; then, as root:
  export BLOOMERY_CONFIG=%s
  %s event list --machine %s
  %s machine release %s --wait
  %s lab down
`, filepath.Join(o.StateDir, "rack", "config.yaml"), o.Bloomery, machine, o.Bloomery, machine, o.Bloomery)
	return nil
}

// installAndLogin runs the install while the customer tries to log in from their network, as impatient customers do.
func (s *story) installAndLogin(ctx context.Context, key, userDataFile string) (Login, error) {
	trying, stop := context.WithCancel(ctx)
	defer stop()
	first := make(chan Login, 1)
	go func() { first <- s.firstLogin(trying, key) }()
	err := s.run(ctx, "machine", "install", machine, "--image", image, "--network", network,
		"--ssh-key", key+".pub", "--user-data", userDataFile, "--hostname", hostname, "--wait")
	if err != nil {
		stop()
		<-first
		return Login{}, err
	}
	// The system has phoned home: a customer who still cannot log in never will.
	time.AfterFunc(time.Minute, stop)
	login := <-first
	if !login.OK {
		return login, errors.New("the system runs, but the customer cannot log in")
	}
	s.say("The customer logs in, from the customer's network, with their key.")
	err = s.askCloudInit(ctx, key, &login)
	return login, err
}

// story runs commands and tells what it runs.
type story struct {
	Options
	env []string
}

func (s *story) say(text string) { fmt.Fprintf(s.Out, "\n# %s\n", text) }

// run prints one command as a user would type it, then runs it with its output shown.
func (s *story) run(ctx context.Context, args ...string) error {
	fmt.Fprintln(s.Out, "$ bloomery "+shellWords(args))
	cmd := s.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = s.Out, s.Progress
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("bloomery %s: %w", strings.Join(args[:2], " "), err)
	}
	return nil
}

// ask runs a command for its JSON.
func (s *story) ask(ctx context.Context, into any, args ...string) error {
	var stdout, stderr bytes.Buffer
	cmd := s.command(ctx, append(args, "-o", "json")...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("bloomery %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	if err := json.Unmarshal(stdout.Bytes(), into); err != nil {
		return fmt.Errorf("read the answer of bloomery %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

func (s *story) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.Bloomery, args...)
	cmd.Env = s.env
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

func shellWords(args []string) string {
	quoted := make([]string, len(args))
	for i, arg := range args {
		quoted[i] = arg
		if strings.ContainsAny(arg, " ;'\"$|&") {
			quoted[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
	}
	return strings.Join(quoted, " ")
}
