package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// oneMachine is a rack with one machine, as most of these tests need.
func oneMachine(rack string) string {
	return "name: " + rack + `
machines:
  - name: m1
    disks: [{bus: nvme, size: 6GiB, serial: E2EDISK1}]
`
}

const customerData = `#cloud-config
write_files:
  - path: /etc/hello
    content: |
      written by cloud-init
`

// TestInstallSurvivesCrashes is the main job with the coordinator killed and the machine's power lost in the middle of
// the image write: both cost time, nothing else. Then the customer logs in, and nobody netboots their machine again.
func TestInstallSurvivesCrashes(t *testing.T) {
	r := newRack(t, oneMachine("e2e-crashes"))
	r.do("image", "add", "debian-12", filepath.Join(r.out, "images", "debian-12"))
	r.do("machine", "inspect", "m1", "--wait")
	if m := r.machine("m1"); m.Status != "MACHINE_STATUS_AVAILABLE" || len(m.Inventory.Disks) == 0 {
		t.Fatalf("after inspect the machine is %s with disks %v, want available with one", m.Status, m.Inventory.Disks)
	}
	userData := filepath.Join(filepath.Dir(r.stateDir), "user-data")
	if err := os.WriteFile(userData, []byte(customerData), 0o600); err != nil {
		t.Fatal(err)
	}
	// A slower disk leaves time to pull plugs in the middle of the write.
	var job jobJSON
	r.ask(&job, "machine", "install", "m1", "--image", "debian-12", "--network", "customer-a", "--disk-serial", "E2EDISK1",
		"--ssh-key", r.key+".pub", "--user-data", userData, "--hostname", "crashed-twice")

	r.eventually(4*time.Minute, "the write to begin", func() (bool, string) { return r.writing(job.ID, 10) })
	before := r.events()
	r.do("lab", "coordinator", "kill", "--state-dir", r.stateDir)
	time.Sleep(2 * time.Second)
	r.do("lab", "coordinator", "restart", "--state-dir", r.stateDir)
	r.keptAll(before)

	r.eventually(4*time.Minute, "the write to go on", func() (bool, string) { return r.writing(job.ID, 40) })
	r.do("lab", "fault", "pull-plug", "--machine", "m1", "--state-dir", r.stateDir)
	r.eventually(10*time.Minute, "the job's end", func() (bool, string) {
		j := r.job(job.ID)
		return j.Status != "JOB_STATUS_RUNNING", fmt.Sprintf("%s at step %d", j.Status, j.StepIndex)
	})
	done := r.job(job.ID)
	if done.Status != "JOB_STATUS_DONE" {
		t.Fatalf("the install ended %s: %s", done.Status, done.Error)
	}
	for _, step := range done.Steps {
		if step.Wipe != nil && step.Attempts != 1 {
			t.Errorf("the wipe was started %d times, want once", step.Attempts)
		}
		if step.WriteImage != nil && step.Attempts < 2 {
			t.Errorf("the image write was started %d times, want it started again after the loss of power", step.Attempts)
		}
	}

	t.Run("login", func(t *testing.T) { r.t = t; r.checkInstalled("crashed-twice") })
	t.Run("isolated", func(t *testing.T) { r.t = t; r.checkIsolated() })
	t.Run("never netbooted", func(t *testing.T) { r.t = t; r.checkNeverNetbooted() })
	t.Run("released", func(t *testing.T) { r.t = t; r.checkReleased() })
	r.t = t
}

// writing tells whether a job's image write has come so far.
func (r *rack) writing(id string, percent float64) (bool, string) {
	j := r.job(id)
	if j.Status != "JOB_STATUS_RUNNING" {
		r.t.Fatalf("the job is %s: %s", j.Status, j.Error)
	}
	for i, step := range j.Steps {
		if step.WriteImage == nil {
			continue
		}
		if j.StepIndex > i {
			r.t.Fatalf("the image write was over before %.0f %% was seen", percent)
		}
		return step.Progress.Percent >= percent, fmt.Sprintf("step %d, %.0f %%", j.StepIndex, step.Progress.Percent)
	}
	return false, "no write step"
}

// keptAll checks that every event that was listed before is still there, unchanged.
func (r *rack) keptAll(before []eventJSON) {
	r.t.Helper()
	after := map[int64]eventJSON{}
	for _, event := range r.events() {
		after[event.Sequence] = event
	}
	for _, event := range before {
		if after[event.Sequence] != event {
			r.t.Errorf("event %d was %+v, is %+v", event.Sequence, event, after[event.Sequence])
		}
	}
	if len(before) == 0 {
		r.t.Error("there was no event before the crash")
	}
}

func (r *rack) checkInstalled(hostname string) {
	m := r.machine("m1")
	if m.Status != "MACHINE_STATUS_RUNNING" || m.Network != "customer-a" || m.Image != "debian-12" || m.DiskSerial != "E2EDISK1" {
		r.t.Errorf("the machine is %+v", m)
	}
	if vlan := r.port("Ethernet1"); vlan != 200 {
		r.t.Errorf("the machine's port is in VLAN %d, want 200", vlan)
	}
	out, err := r.ssh("m1", "hostname; cat /etc/hello; df --output=size -B1M / | tail -n 1; . /etc/os-release; echo $ID $VERSION_ID; cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		r.t.Fatalf("log in: %v: %s", err, out)
	}
	lines := strings.Split(out, "\n")
	if len(lines) != 5 {
		r.t.Fatalf("the login answered %q", out)
	}
	if lines[0] != hostname {
		r.t.Errorf("hostname is %q, want %q", lines[0], hostname)
	}
	if lines[1] != "written by cloud-init" {
		r.t.Errorf("user-data wrote %q", lines[1])
	}
	var mebibytes int
	if _, err := fmt.Sscan(lines[2], &mebibytes); err != nil || mebibytes < 5000 {
		r.t.Errorf("the root filesystem has %s MiB of a 6 GiB disk", lines[2])
	}
	if lines[3] != "debian 12" {
		r.t.Errorf("the system is %q, want debian 12", lines[3])
	}
}

// checkIsolated shows that the machine has left the provisioning network.
func (r *rack) checkIsolated() {
	address, _, _ := strings.Cut(r.machine("m1").Address, "/")
	if err := r.inNamespace("-customer-a", "dial", "any", address+":22"); err != nil {
		r.t.Errorf("the customer cannot reach SSH at %s: %v", address, err)
	}
	if err := r.inNamespace("", "dial", "prov0", address+":22"); err == nil {
		r.t.Errorf("SSH at %s can be reached from the provisioning network", address)
	}
}

// checkNeverNetbooted lets the firmware ask for the agent on a customer's machine and shows that it gets nothing.
func (r *rack) checkNeverNetbooted() {
	// The reset below is a loss of power: SSH's new host keys must be on the disk by then.
	bootID, err := r.ssh("m1", "sync; cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		r.t.Fatalf("log in: %v", err)
	}
	seen := r.events()
	last := seen[len(seen)-1].Sequence
	// The port goes back to the provisioning VLAN behind the coordinator's back, and the BMC is told to netboot: all that
	// a mistake or an attacker could do from outside.
	r.setPortVLAN("Ethernet1", 100)
	r.bmcNetboot("m1")
	r.eventually(2*time.Minute, "the refusal of a netboot", func() (bool, string) {
		refused := r.events("--type", "netboot.refused", "--after", fmt.Sprint(last))
		return len(refused) > 0, fmt.Sprintf("%d refusals", len(refused))
	})
	if served := r.events("--type", "netboot.served", "--after", fmt.Sprint(last)); len(served) > 0 {
		r.t.Errorf("a running machine was served the agent: %+v", served)
	}
	if m := r.machine("m1"); m.Status != "MACHINE_STATUS_RUNNING" {
		r.t.Errorf("the machine is %s, want running", m.Status)
	}
	r.setPortVLAN("Ethernet1", 200)
	// The firmware tries HTTP over IPv4 and IPv6 to its own limits, over four minutes, before it goes on to the disk.
	r.eventually(10*time.Minute, "the customer's system to be back", func() (bool, string) {
		out, err := r.ssh("m1", "cat /proc/sys/kernel/random/boot_id; cat /etc/hello")
		return err == nil && !strings.Contains(out, bootID) && strings.Contains(out, "written by cloud-init"), fmt.Sprintf("%v: %s", err, out)
	})
}

// checkReleased takes the machine back: wiped, off, in the provisioning network, available.
func (r *rack) checkReleased() {
	r.do("machine", "release", "m1", "--wait")
	m := r.machine("m1")
	if m.Status != "MACHINE_STATUS_AVAILABLE" || m.Image != "" || m.Address != "" || m.Network != "provisioning" {
		r.t.Errorf("after release the machine is %+v", m)
	}
	disk, err := os.Open(filepath.Join(r.stateDir, "m", "m1", "disk0.raw"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer disk.Close()
	head := make([]byte, 1<<20)
	if _, err := disk.ReadAt(head, 0); err != nil {
		r.t.Fatal(err)
	}
	for i, b := range head {
		if b != 0 {
			r.t.Fatalf("byte %d of the released disk is %#x, want zero", i, b)
		}
	}
}
