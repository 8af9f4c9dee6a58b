package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bloomery/lab"
)

// rack is a virtual rack of one test and the command line that drives it.
type rack struct {
	t        *testing.T
	name     string
	out      string // where make puts what it builds
	stateDir string
	key      string // customer's private SSH key
	// result is where a layout's test notes what it saw.
	result *layoutResult
}

// needRack skips where a rack cannot stand: without root, or before "make image" has built what it runs.
func needRack(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("skipped: -short asks for unit tests only")
	}
	if os.Getuid() != 0 {
		t.Skip("skipped: network namespaces and taps need root")
	}
	out := os.Getenv("BLOOMERY_OUT")
	if out == "" {
		t.Skip("skipped: BLOOMERY_OUT does not name the folder of what make image built; use make test")
	}
	for _, name := range []string{"bin/bloomery", "bin/bloomeryd", "agent-image/manifest.json", "images/debian-12", "images/debian-12-rootfs"} {
		if _, err := os.Stat(filepath.Join(out, name)); err != nil {
			t.Fatalf("make image has not built %s: %v", name, err)
		}
	}
	return out
}

// newRack brings a rack up from a description and takes it down when the test ends. The test runs beside others, so that racks' names must
// differ, and keeps one of its machines on at a time.
func newRack(t *testing.T, description string) *rack {
	t.Helper()
	r := &rack{t: t, out: needRack(t)}
	t.Parallel()
	config, err := lab.ParseConfig([]byte(description))
	if err != nil {
		t.Fatal(err)
	}
	r.name = config.Name
	takeTurn(t, 1, 1)
	// Not t.TempDir(): its long name would not leave room for unix sockets.
	dir, err := os.MkdirTemp("", "ble2e")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r.stateDir = filepath.Join(dir, "lab")
	r.key = filepath.Join(dir, "id")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", r.key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v: %s", err, out)
	}
	file := filepath.Join(dir, "rack.yaml")
	if err := os.WriteFile(file, []byte(description), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			r.showLogs()
		}
		if out, err := r.try("lab", "down", "--state-dir", r.stateDir); err != nil {
			t.Errorf("lab down: %v: %s", err, out)
		}
	})
	r.do("lab", "up", "--state-dir", r.stateDir, "--file", file, "--agent-image", filepath.Join(r.out, "agent-image"))
	return r
}

// command is one call of bloomery as this rack's operator.
func (r *rack) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(r.out, "bin", "bloomery"), args...)
	cmd.Env = append(os.Environ(), "BLOOMERY_CONFIG="+filepath.Join(r.stateDir, "rack", "config.yaml"))
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// try runs a command and returns both its outputs.
func (r *rack) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := r.command(ctx, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// do runs a command that must succeed.
func (r *rack) do(args ...string) string {
	r.t.Helper()
	started := time.Now()
	out, err := r.try(args...)
	if err != nil {
		r.t.Fatalf("bloomery %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	r.t.Logf("bloomery %s (%.1f s)", strings.Join(args, " "), time.Since(started).Seconds())
	return out
}

// refused runs a command that must fail and say each of the words.
func (r *rack) refused(words []string, args ...string) {
	r.t.Helper()
	out, err := r.try(args...)
	if err == nil {
		r.t.Errorf("bloomery %s was done, want it refused:\n%s", strings.Join(args, " "), out)
		return
	}
	for _, word := range words {
		if !strings.Contains(out, word) {
			r.t.Errorf("bloomery %s: want %q in the error: %s", strings.Join(args, " "), word, out)
		}
	}
}

// ask decodes a command's JSON.
func (r *rack) ask(into any, args ...string) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var stderr bytes.Buffer
	cmd := r.command(ctx, append(args, "-o", "json")...)
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("bloomery %s: %v: %s", strings.Join(args, " "), err, stderr.String())
	}
	if err := json.Unmarshal(out, into); err != nil {
		r.t.Fatalf("bloomery %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

type machineJSON struct {
	Name, Status, Network, Image, Address string
	DiskSerial                            string `json:"disk_serial"`
	FaultCode                             string `json:"fault_code"`
	Macs                                  []string
	Inventory                             struct {
		Disks []struct {
			Serial    string
			SizeBytes float64 `json:"size_bytes"`
		}
	}
}

type stepJSON struct {
	ID         string
	Status     string
	Attempts   int
	Progress   struct{ Percent float64 }
	Result     map[string]any
	WriteImage *struct{} `json:"write_image"`
	Wipe       *struct{} `json:"wipe"`
}

type jobJSON struct {
	ID, Status, Error string
	ErrorReason       string `json:"error_reason"`
	StepIndex         int    `json:"step_index"`
	Steps             []stepJSON
}

type eventJSON struct {
	// Protobuf's JSON writes 64-bit numbers as strings.
	Sequence int64 `json:",string"`
	Type     string
	Severity string
	Machine  string
	JobID    string `json:"job_id"`
	Message  string
}

func (r *rack) machine(name string) machineJSON {
	r.t.Helper()
	var m machineJSON
	r.ask(&m, "machine", "show", name)
	return m
}

func (r *rack) job(id string) jobJSON {
	r.t.Helper()
	var j jobJSON
	r.ask(&j, "job", "show", id)
	return j
}

func (r *rack) events(args ...string) []eventJSON {
	r.t.Helper()
	var answer struct{ Events []eventJSON }
	r.ask(&answer, append([]string{"event", "list"}, args...)...)
	return answer.Events
}

// switchPort is one port as the switch itself describes it.
type switchPort struct {
	Name    string
	VLAN    struct{ Access int }
	Learned []struct{ MAC string }
}

func (r *rack) switchPort(name string) switchPort {
	r.t.Helper()
	var status struct {
		Supervisor struct {
			Switch struct{ Ports []switchPort }
		}
	}
	r.ask(&status, "lab", "status", "--state-dir", r.stateDir)
	for _, port := range status.Supervisor.Switch.Ports {
		if port.Name == name {
			return port
		}
	}
	r.t.Fatalf("the switch has no port %s: %+v", name, status)
	return switchPort{}
}

// port is the VLAN that a switch port is in.
func (r *rack) port(name string) int {
	r.t.Helper()
	return r.switchPort(name).VLAN.Access
}

// ssh runs a command on an installed machine, as its customer.
func (r *rack) ssh(machine, command string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	out, err := r.command(ctx, "lab", "ssh", machine, "--state-dir", r.stateDir, "--user", "debian", "--identity", r.key, "--", command).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// eventually polls a condition and fails with what it said last.
func (r *rack) eventually(patience time.Duration, what string, condition func() (bool, string)) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		ok, seen := condition()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("waited %s for %s; last seen: %s", patience, what, seen)
		}
		time.Sleep(300 * time.Millisecond)
	}
}

// showLogs prints the ends of the rack's logs and consoles: what a person would look at first.
func (r *rack) showLogs() {
	for _, pattern := range []string{"log/*", "m/*/console.log"} {
		files, _ := filepath.Glob(filepath.Join(r.stateDir, pattern))
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			if len(text) > 4000 {
				text = text[len(text)-4000:]
			}
			fmt.Printf("--- %s\n%s\n", file, text)
		}
	}
}
