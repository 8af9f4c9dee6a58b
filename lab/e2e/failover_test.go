package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/internal/pki"
)

// Three coordinators and one machine.
const threeCoordinators = `
name: e2e-leader
coordinators: 3
machines:
  - name: m1
    disks: [{bus: nvme, size: 6GiB, serial: E2EDISK1}]
`

// failoverReport is out/e2e.json: what a coordinator's death cost.
type failoverReport struct {
	Leader string `json:"leader"`
	// Watch is for how long after the kill a watch of the job heard no progress, at most; Before the same in the write before it.
	Watch  float64 `json:"progress_gap_seconds"`
	Before float64 `json:"progress_gap_before_seconds"`
	// Leaderless is from the kill to the rack's word that another leads.
	Leaderless float64 `json:"kill_to_new_leader_seconds"`
	Install    float64 `json:"install_seconds"`
}

// TestInstallSurvivesLeaderLoss is the main job in a rack of three whose leading coordinator is killed in the middle of the image write and stays
// dead to the end of the install. The image was added at another one, and the dead one catches up when it is back.
func TestInstallSurvivesLeaderLoss(t *testing.T) {
	r := newRack(t, threeCoordinators)
	leader := r.leader()
	other := "c1"
	if leader == "c1" {
		other = "c2"
	}
	r.doAt(other, "image", "add", "debian-12", filepath.Join(r.out, "images", "debian-12"))
	r.eventually(time.Minute, "all coordinators to have the image", func() (bool, string) {
		copies := r.imageCopies("debian-12")
		return len(copies) == 3, strings.Join(copies, " ")
	})
	r.do("machine", "inspect", "m1", "--wait")
	started := time.Now()
	var job jobJSON
	r.ask(&job, "machine", "install", "m1", "--image", "debian-12", "--network", "customer-a", "--disk-serial", "E2EDISK1",
		"--ssh-key", r.key+".pub", "--hostname", "without-a-leader")
	watch := r.watch(job.ID)
	r.eventually(4*time.Minute, "the write to begin", func() (bool, string) { return r.writing(job.ID, 5) })
	writing := time.Now()
	r.eventually(time.Minute, "the write to go on", func() (bool, string) { return r.writing(job.ID, 15) })
	before := r.events()
	killed := time.Now()
	r.do("lab", "coordinator", "kill", leader, "--state-dir", r.stateDir)
	report := failoverReport{Leader: leader, Before: watch.longest(writing, killed).Seconds()}
	r.eventually(time.Minute, "another leader", func() (bool, string) {
		now := r.leader()
		return now != "" && now != leader, now
	})
	report.Leaderless = time.Since(killed).Seconds()
	r.keptAll(before)
	r.eventually(10*time.Minute, "the job's end", func() (bool, string) {
		j := r.job(job.ID)
		return j.Status != "JOB_STATUS_RUNNING", fmt.Sprintf("%s at step %d", j.Status, j.StepIndex)
	})
	report.Install = time.Since(started).Seconds()
	done := r.job(job.ID)
	if done.Status != "JOB_STATUS_DONE" {
		t.Fatalf("the install ended %s: %s", done.Status, done.Error)
	}
	for _, step := range done.Steps {
		if (step.Wipe != nil || step.WriteImage != nil) && step.Attempts != 1 {
			t.Errorf("step %s was started %d times: a coordinator's death must not be seen by the agent's work", step.ID, step.Attempts)
		}
	}
	watch.stop()
	report.Watch = watch.longest(killed.Add(-time.Second), killed.Add(30*time.Second)).Seconds()
	r.record(report)
	r.keptAll(before)
	t.Run("login", func(t *testing.T) { r.t = t; r.checkSecrets(); r.checkPhonedHome(job.ID) })
	r.t = t

	r.do("lab", "coordinator", "restart", leader, "--state-dir", r.stateDir)
	r.eventually(time.Minute, leader+" to catch up", func() (bool, string) {
		for _, n := range r.rackStatus().Nodes {
			if n.Name == leader {
				return n.Reachable && n.Role == "NODE_ROLE_VOTER" && n.LogLag == "0", fmt.Sprintf("%+v", n)
			}
		}
		return false, "it is not in the status"
	})
	if out, err := r.at(leader, "job", "show", job.ID); err != nil || !strings.Contains(out, "done") {
		t.Errorf("%s does not know the job that was done without it: %v: %s", leader, err, out)
	}
}

type rackStatusJSON struct {
	Leader string
	Nodes  []struct {
		Name, Role string
		Reachable  bool
		LogLag     string `json:"log_lag"`
	}
}

// rackStatus is empty when nobody answers. Without a majority, as in an election or at a coordinator that has just started, the command
// fails and says all the same what can be seen.
func (r *rack) rackStatus() rackStatusJSON {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var status rackStatusJSON
	out, err := r.command(ctx, "rack", "status", "-o", "json").Output()
	if jsonErr := json.Unmarshal(out, &status); jsonErr != nil {
		r.t.Logf("rack status: %v: %v", err, jsonErr)
		return rackStatusJSON{}
	}
	return status
}

// leader is the leading coordinator's name, empty while there is none.
func (r *rack) leader() string { return r.rackStatus().Leader }

func (r *rack) imageCopies(name string) []string {
	r.t.Helper()
	var answer struct {
		Images []struct {
			Name   string
			Copies []string
		}
	}
	r.ask(&answer, "image", "list")
	for _, image := range answer.Images {
		if image.Name == name {
			return image.Copies
		}
	}
	return nil
}

// at runs a command at one coordinator only.
func (r *rack) at(coordinator string, args ...string) (string, error) {
	r.t.Helper()
	whole, err := os.ReadFile(filepath.Join(r.stateDir, "rack", "config.yaml"))
	if err != nil {
		r.t.Fatal(err)
	}
	socket := "api" + strings.TrimPrefix(strings.TrimPrefix(coordinator, "c"), "1") + ".sock"
	var lines []string
	for _, line := range strings.Split(string(whole), "\n") {
		if !strings.Contains(line, "unix:") || strings.HasSuffix(line, "/"+socket) {
			lines = append(lines, line)
		}
	}
	path := filepath.Join(r.stateDir, "rack", coordinator+".yaml")
	if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		r.t.Fatal(err)
	}
	return r.try(append([]string{"--config", path}, args...)...)
}

func (r *rack) doAt(coordinator string, args ...string) {
	r.t.Helper()
	if out, err := r.at(coordinator, args...); err != nil {
		r.t.Fatalf("bloomery %s at %s: %v\n%s", strings.Join(args, " "), coordinator, err, out)
	}
}

// watching follows a job by WatchJob, at another coordinator whenever a stream ends, and notes when its progress was heard to move.
type watching struct {
	cancel context.CancelFunc
	ended  chan struct{}
	mu     sync.Mutex
	moved  []time.Time
}

func (r *rack) watch(id string) *watching {
	r.t.Helper()
	keys := filepath.Join(r.stateDir, "rack")
	cert, key := pki.OperatorFiles(keys, "admin")
	config, err := pki.ClientTLS(filepath.Join(keys, pki.CACert), cert, key)
	if err != nil {
		r.t.Fatal(err)
	}
	config.ServerName = pki.ServerName
	ctx, cancel := context.WithCancel(context.Background())
	w := &watching{cancel: cancel, ended: make(chan struct{})}
	go func() {
		defer close(w.ended)
		for turn := 0; ctx.Err() == nil; turn++ {
			socket := filepath.Join(r.stateDir, []string{"api.sock", "api2.sock", "api3.sock"}[turn%3])
			transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: config.Clone(), DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", socket)
			}}
			w.follow(ctx, bloomeryv1connect.NewJobServiceClient(&http.Client{Transport: transport}, "https://coordinator"), id)
			transport.CloseIdleConnections()
			time.Sleep(20 * time.Millisecond)
		}
	}()
	r.t.Cleanup(w.stop)
	return w
}

// follow reads one stream to its end, whatever that is.
func (w *watching) follow(ctx context.Context, client bloomeryv1connect.JobServiceClient, id string) {
	stream, err := client.WatchJob(ctx, connect.NewRequest(&bloomeryv1.WatchJobRequest{Id: id}))
	if err != nil {
		return
	}
	defer stream.Close()
	last := ""
	for stream.Receive() {
		now := ""
		for _, s := range stream.Msg().GetJob().GetSteps() {
			now += fmt.Sprint(s.GetStatus(), s.GetProgress().GetDoneBytes(), " ")
		}
		if now == last {
			continue
		}
		last = now
		w.mu.Lock()
		w.moved = append(w.moved, time.Now())
		w.mu.Unlock()
	}
}

func (w *watching) stop() {
	w.cancel()
	<-w.ended
}

// longest is the longest silence that began in a span of time.
func (w *watching) longest(from, to time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	var gap time.Duration
	for i := 1; i < len(w.moved); i++ {
		if w.moved[i].After(from) && w.moved[i-1].Before(to) {
			gap = max(gap, w.moved[i].Sub(w.moved[i-1]))
		}
	}
	return gap
}

// record writes what was measured for people.
func (r *rack) record(report failoverReport) {
	r.t.Helper()
	text, err := json.MarshalIndent(report, "", "  ")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Logf("a leader's death cost: %s", text)
	if err := os.WriteFile(filepath.Join(r.out, "e2e.json"), append(text, '\n'), 0o644); err != nil {
		r.t.Error(err)
	}
}

// checkPhonedHome wants the evidence of the installed system, once.
func (r *rack) checkPhonedHome(job string) {
	r.t.Helper()
	if calls := r.events("--type", "system.phoned_home", "--job", job); len(calls) != 1 {
		r.t.Errorf("%d phone-home calls were taken, want one", len(calls))
	}
}

// checkSecrets sees that the phone-home token is root's alone on the installed system.
func (r *rack) checkSecrets() {
	r.t.Helper()
	// The brackets keep the search from finding itself, in sudo's log and among the processes.
	out, err := r.ssh("m1", "hostname; sudo find /var/lib/cloud /var/log /run -xdev -type f -perm /044 -exec grep -l 'phone-hom[e]/' {} + ; echo found; pgrep -af 'phone-hom[e]/' || true")
	if err != nil || out != "without-a-leader\nfound" {
		r.t.Errorf("host name, files with the token that others can read, processes that show it: %v: %q", err, out)
	}
}
