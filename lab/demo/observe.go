package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is out/demo.json: one run as it was observed.
type Report struct {
	Accel      string          `json:"accel"`
	AgentImage AgentImageBytes `json:"agent_image"`
	Machines   []MachineReport `json:"machines"`
}

// AgentImageBytes are the sizes of what machines boot.
type AgentImageBytes struct {
	UKI       int64 `json:"uki_bytes"`
	Initramfs int64 `json:"initramfs_bytes"`
	Kernel    int64 `json:"kernel_bytes"`
}

// MachineReport is what happened to one machine.
type MachineReport struct {
	Name          string  `json:"name"`
	Status        string  `json:"status"`
	Image         string  `json:"image"`
	DiskSerial    string  `json:"disk_serial"`
	NetworkBefore string  `json:"network_before"`
	NetworkAfter  string  `json:"network_after"`
	SSH           Login   `json:"ssh"`
	CloudInit     string  `json:"cloud_init"`
	Events        int     `json:"events"`
	PowerOnLogin  float64 `json:"power_on_to_login_seconds"`
	Phases        []Phase `json:"phases"`
}

// Login is what the customer's SSH session answered.
type Login struct {
	OK        bool   `json:"ok"`
	Hostname  string `json:"hostname"`
	OSRelease string `json:"os_release"`

	at        time.Time
	cloudInit string
}

// Phase is a part of the time from power-on to login; MBPerSecond is set for the write only.
type Phase struct {
	Name        string  `json:"name"`
	Seconds     float64 `json:"seconds"`
	MBPerSecond float64 `json:"mb_per_second,omitempty"`
}

// What the demo reads of the command line's JSON.
type (
	machineJSON struct {
		Name, Status, Network, Image, Address string
		DiskSerial                            string `json:"disk_serial"`
	}
	stepJSON struct {
		StartedAt  time.Time `json:"started_at"`
		FinishedAt time.Time `json:"finished_at"`
		Result     map[string]any
		// Exactly one of these is present; its key is the step's type.
		Netboot     *struct{} `json:"netboot"`
		Inspect     *struct{} `json:"inspect"`
		CheckDisks  *struct{} `json:"check_disks"`
		Wipe        *struct{} `json:"wipe"`
		WriteImage  *struct{} `json:"write_image"`
		GrowRoot    *struct{} `json:"grow_root"`
		CloudInit   *struct{} `json:"cloud_init"`
		BootEntry   *struct{} `json:"boot_entry"`
		Handover    *struct{} `json:"handover"`
		MovePort    *struct{} `json:"move_port"`
		AwaitSystem *struct{} `json:"await_system"`
	}
	jobJSON struct {
		ID    string
		Kind  string
		Steps []stepJSON
	}
	eventJSON struct {
		Time    time.Time
		Type    string
		JobID   string `json:"job_id"`
		Message string
	}
)

func (s *story) machine(ctx context.Context) (machineJSON, error) {
	var m machineJSON
	return m, s.ask(ctx, &m, "machine", "show", machine)
}

// probe is what the customer types after logging in.
const probe = `hostname; . /etc/os-release; echo "$PRETTY_NAME"`

func (s *story) sshArgs(key, command string) []string {
	return []string{"lab", "ssh", machine, "--state-dir", s.StateDir, "--user", user, "--identity", key, "--", command}
}

// firstLogin tries to log in until it succeeds or the context ends; what the session answers is not OK then.
func (s *story) firstLogin(ctx context.Context, key string) Login {
	for {
		out, err := s.command(ctx, s.sshArgs(key, probe)...).Output()
		if lines := strings.Split(strings.TrimSpace(string(out)), "\n"); err == nil && len(lines) == 2 {
			return Login{OK: true, Hostname: lines[0], OSRelease: lines[1], at: time.Now()}
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return Login{}
		}
	}
}

// askCloudInit logs in again and asks what the first boot came to.
func (s *story) askCloudInit(ctx context.Context, key string, login *Login) error {
	args := s.sshArgs(key, "hostname; cloud-init status --wait | tail -n 1; df -h / | tail -n 1")
	fmt.Fprintln(s.Out, "$ bloomery "+shellWords(args))
	out, err := s.command(ctx, args...).Output()
	if err != nil {
		return fmt.Errorf("ask cloud-init how it went: %w", err)
	}
	fmt.Fprint(s.Out, string(out))
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 3 {
		return fmt.Errorf("the login answered %d lines, want host name, cloud-init's status and the root filesystem: %q", len(lines), out)
	}
	login.cloudInit = strings.TrimSpace(strings.TrimPrefix(lines[1], "status:"))
	return nil
}

// observe puts the report together from what the coordinator has recorded and the login has shown.
func (s *story) observe(ctx context.Context, before machineJSON, login Login) (*Report, error) {
	after, err := s.machine(ctx)
	if err != nil {
		return nil, err
	}
	var jobs struct{ Jobs []jobJSON }
	if err := s.ask(ctx, &jobs, "job", "list", "--machine", machine, "--limit", "1"); err != nil {
		return nil, err
	}
	if len(jobs.Jobs) == 0 {
		return nil, fmt.Errorf("the coordinator knows no job of %s", machine)
	}
	var install jobJSON
	if err := s.ask(ctx, &install, "job", "show", jobs.Jobs[0].ID); err != nil {
		return nil, err
	}
	var events struct{ Events []eventJSON }
	if err := s.ask(ctx, &events, "event", "list", "--machine", machine); err != nil {
		return nil, err
	}
	var lab struct{ Accel string }
	if err := s.ask(ctx, &lab, "lab", "status", "--state-dir", s.StateDir); err != nil {
		return nil, err
	}
	report := &Report{Accel: lab.Accel}
	for name, into := range map[string]*int64{"bloomery-agent.efi": &report.AgentImage.UKI, "initramfs.cpio.zst": &report.AgentImage.Initramfs, "vmlinuz": &report.AgentImage.Kernel} {
		info, err := os.Stat(filepath.Join(s.StateDir, "agent-image", name))
		if err != nil {
			return nil, fmt.Errorf("measure the agent image: %w", err)
		}
		*into = info.Size()
	}
	phases, start := phasesOf(install, events.Events, login.at)
	report.Machines = []MachineReport{{
		Name: after.Name, Status: strings.ToLower(strings.TrimPrefix(after.Status, "MACHINE_STATUS_")), Image: after.Image,
		DiskSerial: after.DiskSerial, NetworkBefore: before.Network, NetworkAfter: after.Network,
		SSH: login, CloudInit: login.cloudInit, Events: len(events.Events),
		PowerOnLogin: login.at.Sub(start).Seconds(), Phases: phases,
	}}
	return report, nil
}

// phasesOf cuts the time from power-on where the job's steps, the events of its boot and the login say. The first login
// comes before the system phones home, which is what makes the machine running.
func phasesOf(job jobJSON, events []eventJSON, login time.Time) ([]Phase, time.Time) {
	var phases []Phase
	var start, at time.Time
	add := func(name string, until time.Time) {
		if until.IsZero() || at.IsZero() || until.Before(at) {
			return
		}
		phases = append(phases, Phase{Name: name, Seconds: until.Sub(at).Seconds()})
		at = until
	}
	// The first event of a type since the job's machine was powered on.
	first := func(kind string) time.Time {
		for _, event := range events {
			if event.Type == kind && !event.Time.Before(start) {
				return event.Time
			}
		}
		return time.Time{}
	}
	for _, step := range job.Steps {
		switch {
		case step.Netboot != nil:
			start, at = step.StartedAt, step.StartedAt
			add("power on", first("power.on"))
			add("firmware", first("netboot.served"))
			add("agent up and enrolled", step.FinishedAt)
		case step.Inspect != nil:
			add("inspect", step.FinishedAt)
		case step.CheckDisks != nil:
			add("checks", step.FinishedAt)
		case step.Wipe != nil:
			add("wipe", step.FinishedAt)
		case step.WriteImage != nil:
			add("write image", step.FinishedAt)
			if rate, ok := step.Result["mb_per_second"].(float64); ok && len(phases) > 0 {
				phases[len(phases)-1].MBPerSecond = rate
			}
		case step.GrowRoot != nil:
			add("grow root", step.FinishedAt)
		case step.CloudInit != nil:
			add("cloud-init seed", step.FinishedAt)
		case step.BootEntry != nil:
			add("boot entry", step.FinishedAt)
		case step.Handover != nil:
			add("handover", step.FinishedAt)
		case step.MovePort != nil:
			add("move port", step.FinishedAt)
		case step.AwaitSystem != nil:
			add("OS up, SSH login", login)
			add("phone-home", step.FinishedAt)
		}
	}
	return phases, start
}

func writeReport(path string, report *Report) error {
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func printPhases(w io.Writer, m MachineReport) {
	tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w)
	fmt.Fprintln(tab, "phase\tseconds\t")
	for _, phase := range m.Phases {
		note := ""
		if phase.MBPerSecond > 0 {
			note = fmt.Sprintf("  %.0f MB/s", phase.MBPerSecond)
		}
		fmt.Fprintf(tab, "%s\t%.1f\t%s\n", phase.Name, phase.Seconds, note)
	}
	fmt.Fprintf(tab, "power-on to login\t%.1f\t\n", m.PowerOnLogin)
	tab.Flush()
}
