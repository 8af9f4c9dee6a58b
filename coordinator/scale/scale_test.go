package scale

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator"
	"bloomery/coordinator/clustertest"
	"bloomery/internal/figures"
)

// goal is the time within which 99 of 100 reports, and a list of all machines, shall be answered.
const goal = 50 * time.Millisecond

func TestMain(m *testing.M) {
	os.Exit(clustertest.Main(m, func(config *coordinator.Config, deps *coordinator.Deps) {
		deps.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		machines, err := strconv.Atoi(os.Getenv(machinesVariable))
		if err == nil && config.Node == "c1" {
			if err := populate(config, machines); err != nil {
				fmt.Fprintln(os.Stderr, "populate:", err)
				os.Exit(1)
			}
		}
	}))
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// run is one measurement of a rack.
type run struct {
	machines, nodes int
	// every is the interval of each agent's reports; for how long they report.
	every, reportFor time.Duration
	// ramp is how long each higher rate is tried; 0 tries none.
	ramp time.Duration
	// idle is how long coordinators are watched that nobody calls.
	idle time.Duration
	// lists is how often all machines are listed.
	lists int
}

// findings is what a run found.
type findings struct {
	reports         result
	events          float64
	cpu, idle, wait float64 // of one core: while agents report, while none calls, while all wait for a step
	rss             []int64 // bytes, of each coordinator
	lists           []time.Duration
	// limit is the highest rate that met the goal, and what was seen above it.
	limit result
	above string
}

func TestSmallRun(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			f := measure(t, run{machines: 30, nodes: nodes, every: 200 * time.Millisecond, reportFor: time.Second, idle: 200 * time.Millisecond, lists: 2})
			if len(f.reports.errors) > 0 || len(f.reports.took) < 100 {
				t.Errorf("reports: %v", f.reports)
			}
			if f.events == 0 || len(f.rss) != nodes || f.rss[0] == 0 || len(f.lists) != 2 {
				t.Errorf("found %+v", f)
			}
		})
	}
}

func measure(t *testing.T, o run) findings {
	t.Helper()
	t.Setenv(machinesVariable, fmt.Sprint(o.machines))
	r := clustertest.Start(t, clustertest.Options{Nodes: o.nodes, Processes: true})
	var f findings
	f.idle = cpuOf(t, r, func() { time.Sleep(o.idle) })
	t.Logf("%d coordinators, %d jobs that nobody reports on: %.1f %% of a core", o.nodes, o.machines, 100*f.idle)
	agents := agentsOf(t, r)
	reportAll(t.Context(), agents, o.every, o.reportFor/5) // warms up what is compiled, cached and connected
	before := newest(t, r)
	f.cpu = cpuOf(t, r, func() { f.reports = reportAll(t.Context(), agents, o.every, o.reportFor) })
	f.events = float64(newest(t, r)-before) / o.reportFor.Seconds()
	for _, n := range r.Nodes() {
		f.rss = append(f.rss, rssOf(t, n.PID()))
	}
	t.Logf("%v; %.0f events/s; %.0f %% of a core; memory %s", f.reports, f.events, 100*f.cpu, f.memory())
	f.lists = listAll(t, r, o)
	t.Logf("list of %d machines: %v", o.machines, figures.Median(f.lists))
	f.ramp(t, agents, o)
	if err := finishAll(t.Context(), agents); err != nil {
		t.Error(err)
	}
	time.Sleep(2 * o.idle) // the drivers have a thousand steps to begin
	f.wait = cpuOf(t, r, func() {
		if err := pollAll(t.Context(), agents, max(time.Second, o.idle.Truncate(time.Second))); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%d agents that wait for a step: %.1f %% of a core", len(agents), 100*f.wait)
	return f
}

// ramp raises the rate until the goal is missed.
func (f *findings) ramp(t *testing.T, agents []*agent, o run) {
	f.limit = f.reports
	if o.ramp == 0 {
		return
	}
	for rate := 1.25; rate <= 16; rate *= 1.25 {
		found := reportAll(t.Context(), agents, time.Duration(float64(o.every)/rate), o.ramp)
		t.Logf("%v", found)
		if len(found.errors) > 0 || found.quantile(0.99) > goal {
			f.above = found.String()
			return
		}
		f.limit = found
	}
}

func (f *findings) memory() string {
	var all []string
	for _, b := range f.rss {
		all = append(all, fmt.Sprintf("%.0f MB", float64(b)/1e6))
	}
	return strings.Join(all, ", ")
}

// rows are the report's.
func (f *findings) rows(nodes int, peer float64, command string) []figures.Row {
	wanted := func(name string, ours time.Duration, runs int, note string) figures.Row {
		return figures.Row{Name: name, Unit: "ms", Ours: round(ms(ours)), Peer: ms(goal), PeerCommand: "what is wanted: 50 ms", Ratio: round(float64(goal) / float64(ours)), Goal: 1, Runs: runs, Note: note}
	}
	suffix := fmt.Sprintf(", %d coordinator", nodes)
	if nodes > 1 {
		suffix += "s"
	}
	load := fmt.Sprintf("1,000 agents over TLS and HTTP/2, each reporting once a second for 20 s, on the host that also runs the coordinators (%d processes) and their disks: p50 %.1f ms, %.0f reports/s, "+
		"%.0f events/s, %d errors; coordinators together %.0f %% of a core; memory of each %s.", nodes, ms(f.reports.quantile(0.5)), f.reports.rate(), f.events, len(f.reports.errors), 100*f.cpu, f.memory())
	return []figures.Row{
		wanted("report p99"+suffix, f.reports.quantile(0.99), len(f.reports.took), load),
		wanted("list 1000 machines"+suffix, figures.Median(f.lists), len(f.lists), "Median, with inventories, as the RPC answers an operator; answered by the last coordinator to join."),
		{Name: "reports a second" + suffix, Unit: "reports/s", Ours: math.Round(f.limit.rate()), Peer: math.Round(peer), PeerCommand: command, Ratio: round(f.limit.rate() / peer), Goal: 1, Runs: 1,
			Note: fmt.Sprintf("The highest rate tried with p99 below 50 ms and no error; the next step gave %s. The peer writes the same rows, one transaction a report, to one disk, with no network, no TLS and nobody that waits.", f.above)},
		{Name: "idle" + suffix, Unit: "% of a core", Ours: round(100 * f.idle), Peer: 10, PeerCommand: "what is wanted: 10 %", Ratio: round(0.1 / f.idle), Goal: 1, Runs: 1,
			Note: fmt.Sprintf("1,000 jobs under way of which nobody reports; with 1,000 agents that hold a long poll %.1f %%.", 100*f.wait)},
	}
}

func round(f float64) float64 { return math.Round(100*f) / 100 }

// newest is the sequence number of the newest event.
func newest(t *testing.T, r *clustertest.Rack) int64 {
	t.Helper()
	after := int64(0)
	for {
		response, err := r.Client().Events.ListEvents(t.Context(), connect.NewRequest(&bloomeryv1.ListEventsRequest{After: after, PageSize: 1000}))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range response.Msg.GetEvents() {
			after = max(after, e.GetSequence())
		}
		if response.Msg.GetNextAfter() == 0 {
			return after
		}
	}
}

func listAll(t *testing.T, r *clustertest.Rack, o run) (took []time.Duration) {
	t.Helper()
	nodes := r.Nodes()
	client := nodes[len(nodes)-1].Client()
	for range o.lists {
		began := time.Now()
		response, err := client.Machines.ListMachines(t.Context(), connect.NewRequest(&bloomeryv1.ListMachinesRequest{PageSize: 1000}))
		took = append(took, time.Since(began))
		if err != nil || len(response.Msg.GetMachines()) != o.machines {
			t.Fatalf("a list of %d machines: %v", len(response.Msg.GetMachines()), err)
		}
	}
	return took
}

// cpuOf is how much of a core all coordinators use while f runs.
func cpuOf(t *testing.T, r *clustertest.Rack, f func()) float64 {
	t.Helper()
	used := func() (ticks int64) {
		for _, n := range r.Nodes() {
			data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID()))
			if err != nil {
				t.Fatal(err)
			}
			// Fields 14 and 15 (proc_pid_stat(5)) are utime and stime; the second is a name in parentheses.
			fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+2:]))
			for _, field := range fields[11:13] {
				n, err := strconv.ParseInt(field, 10, 64)
				if err != nil {
					t.Fatal(err)
				}
				ticks += n
			}
		}
		return ticks
	}
	began, before := time.Now(), used()
	f()
	const ticksPerSecond = 100 // USER_HZ
	return float64(used()-before) / ticksPerSecond / time.Since(began).Seconds()
}

// rssOf is a process's memory in bytes.
func rssOf(t *testing.T, pid int) int64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(text)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// sqlitePeer is how many transactions a second SQLite's own program makes of what a report writes.
func sqlitePeer(ctx context.Context, dir string) (perSecond float64, command string, err error) {
	const transactions, runs = 2000, 5
	var script strings.Builder
	script.WriteString("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;\n" +
		"CREATE TABLE steps (id TEXT PRIMARY KEY, body BLOB); CREATE TABLE reports (machine TEXT PRIMARY KEY, acknowledged INTEGER);" +
		"CREATE TABLE events (sequence INTEGER PRIMARY KEY AUTOINCREMENT, machine TEXT, message TEXT, key TEXT UNIQUE);\n")
	for i := range transactions {
		m := i % 1000
		fmt.Fprintf(&script, "BEGIN; INSERT INTO steps VALUES ('s%d', '%s') ON CONFLICT DO UPDATE SET body = excluded.body; INSERT INTO reports VALUES ('m%d', %d) ON CONFLICT DO UPDATE SET acknowledged = excluded.acknowledged;",
			m, strings.Repeat("x", 300), m, i)
		if i%5 == 0 {
			fmt.Fprintf(&script, " INSERT INTO events (machine, message, key) VALUES ('m%d', 'step check-disks: 10 %%', 'm%d/%d');", m, m, i)
		}
		script.WriteString(" COMMIT;\n")
	}
	input := filepath.Join(dir, "reports.sql")
	if err := os.WriteFile(input, []byte(script.String()), 0o600); err != nil {
		return 0, "", err
	}
	var took []time.Duration
	for i := range runs {
		cmd := exec.CommandContext(ctx, "sqlite3", filepath.Join(dir, fmt.Sprintf("%d.db", i)), ".read "+input)
		began := time.Now()
		if said, err := cmd.CombinedOutput(); err != nil {
			return 0, "", fmt.Errorf("run sqlite3: %w: %s", err, said)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	return transactions / took[runs/2].Seconds(), "sqlite3 FILE.db '.read reports.sql' (WAL, synchronous=FULL, one transaction a report)", nil
}
