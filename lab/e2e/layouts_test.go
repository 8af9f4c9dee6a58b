package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"bloomery/partition/layout"
)

// layoutCase is one of the layouts of docs/layouts, on a machine that it is made for.
type layoutCase struct {
	// name is the file's, without .yaml, and ends the rack's.
	name string
	// machine is what rack.yaml says of it, but for its name.
	machine string
	// after is what else has to hold once the system has been found to be as planned. nil: it starts again from its own disks.
	after func(*rack, *layout.Plan)
}

// dailyLayouts are in every test run; those of nightlyLayouts come with the build tag nightly.
func dailyLayouts() []layoutCase {
	return []layoutCase{
		{name: "raid1-lvm", machine: "disks: [{bus: nvme, size: 6GiB, serial: LEFT}, {bus: nvme, size: 6GiB, serial: RIGHT}]", after: eitherDiskGone},
		{name: "luks-tpm2", machine: "{tpm: true, memory: 768, disks: [{bus: nvme, size: 6GiB, serial: SEALED}]}"},
		{name: "single-disk", machine: "disks: [{bus: virtio, size: 6GiB, serial: SINGLE}]"},
	}
}

// layoutResult is a row of out/nightly.json.
type layoutResult struct {
	Layout  string  `json:"layout"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	// Install is how long the install's job took, Starts how often the machine was then started from its own disks and found to agree.
	Install float64 `json:"install_seconds"`
	Starts  int     `json:"starts"`
}

// TestLayouts installs each layout by "machine install --layout", logs in to what starts, and holds findmnt, lsblk and mdadm there against the
// job's plan; then starts it again through its firmware, and does the same.
func TestLayouts(t *testing.T) {
	needRack(t)
	t.Parallel()
	cases := append(dailyLayouts(), nightlyLayouts()...)
	results := make([]layoutResult, len(cases))
	t.Cleanup(func() { reportLayouts(t, results) })
	for i, c := range cases {
		results[i].Layout = c.name
		t.Run(c.name, func(t *testing.T) {
			r := newRack(t, "name: e2e-"+c.name+"\nmachines:\n  - "+machineText(c.machine)+"\n")
			started := time.Now()
			t.Cleanup(func() { results[i].OK, results[i].Seconds = !t.Failed(), time.Since(started).Seconds() })
			r.result = &results[i]
			plan := r.installLayout(c.name)
			r.agrees(plan)
			if c.after != nil {
				c.after(r, plan)
				return
			}
			r.restart(plan, func() {})
		})
	}
}

// machineText is a machine of rack.yaml in flow style, called m1.
func machineText(fields string) string {
	return "{name: m1, " + strings.TrimSuffix(strings.TrimPrefix(fields, "{"), "}") + "}"
}

// installLayout does what an operator does, and returns the plan that the coordinator made.
func (r *rack) installLayout(name string) *layout.Plan {
	r.t.Helper()
	r.do("image", "add", "debian-12-rootfs", filepath.Join(r.out, "images", "debian-12-rootfs"))
	r.do("machine", "inspect", "m1", "--wait")
	begin := time.Now()
	var job jobJSON
	r.ask(&job, "machine", "install", "m1", "--image", "debian-12-rootfs", "--layout", filepath.Join("..", "..", "docs", "layouts", name+".yaml"),
		"--network", "customer-a", "--ssh-key", r.key+".pub", "--hostname", name)
	r.eventually(15*time.Minute, "the job's end", func() (bool, string) {
		j := r.job(job.ID)
		return j.Status != "JOB_STATUS_RUNNING", fmt.Sprintf("%s at step %d of %d", j.Status, j.StepIndex+1, len(j.Steps))
	})
	if done := r.job(job.ID); done.Status != "JOB_STATUS_DONE" {
		r.t.Fatalf("the install ended %s at step %d: %s", done.Status, done.StepIndex+1, done.Error)
	}
	r.result.Install = time.Since(begin).Seconds()
	r.t.Logf("installed in %.0f s", r.result.Install)
	var text json.RawMessage
	r.ask(&text, "job", "plan", job.ID)
	plan, err := layout.DecodePlan(text)
	if err != nil {
		r.t.Fatalf("job plan: %v: %s", err, text)
	}
	return plan
}

// degradedPatience is how long a system waits for more disks before it starts an array that the root does not stand on without them
// (mdadm-last-resort@.timer, 30 s), on a busy host.
const degradedPatience = 2 * time.Minute

// agrees holds the running system against the plan.
func (r *rack) agrees(plan *layout.Plan, pulled ...string) {
	r.t.Helper()
	for deadline := time.Now().Add(degradedPatience); ; time.Sleep(time.Second) {
		said, f := r.look(plan)
		wrong := disagreements(plan, f, pulled...)
		if len(wrong) == 0 {
			return
		}
		if len(pulled) == 0 || time.Now().After(deadline) {
			r.t.Fatalf("%s\nthe system says:\n%s", strings.Join(wrong, "\n"), said)
		}
	}
}

func (r *rack) look(plan *layout.Plan) (string, found) {
	r.t.Helper()
	said, err := r.ssh("m1", lookAt(plan))
	if err != nil {
		r.t.Fatalf("log in: %v: %s", err, said)
	}
	f, err := parseFound(said)
	if err != nil {
		r.t.Fatal(err)
	}
	return said, f
}

// restart takes the machine's power away and wants the system back, started by its firmware from its own disks, and as planned. off is done
// while it is off.
func (r *rack) restart(plan *layout.Plan, off func(), pulled ...string) {
	r.t.Helper()
	r.cycle(off)
	r.agrees(plan, pulled...)
	r.result.Starts++
}

// cycle takes the machine's power away and waits for its system to be back.
func (r *rack) cycle(off func()) {
	r.t.Helper()
	before, err := r.ssh("m1", "sync; cat /proc/sys/kernel/random/boot_id")
	if err != nil {
		r.t.Fatalf("log in: %v: %s", err, before)
	}
	begin := time.Now()
	r.do("lab", "power", "m1", "off", "--state-dir", r.stateDir)
	off()
	r.do("lab", "power", "m1", "on", "--state-dir", r.stateDir)
	r.eventually(5*time.Minute, "the system to be back", func() (bool, string) {
		now, err := r.ssh("m1", "cat /proc/sys/kernel/random/boot_id")
		return err == nil && now != before, fmt.Sprintf("%v: %s", err, now)
	})
	r.t.Logf("the system was back after %.0f s", time.Since(begin).Seconds())
}

// eitherDiskGone pulls one disk of a running mirror, which goes on, and starts it without; puts the disk in again and makes the mirror whole;
// then pulls the other one while the machine is off.
func eitherDiskGone(r *rack, plan *layout.Plan) {
	disk := func(fault, serial string) {
		r.do("lab", "fault", fault, "--machine", "m1", "--serial", serial, "--state-dir", r.stateDir)
	}
	first, second := plan.Disks[0].Serial, plan.Disks[1].Serial
	disk("pull-disk", first)
	r.eventually(time.Minute, "the running system to miss "+first, func() (bool, string) {
		out, err := r.ssh("m1", "sudo touch /var/missing; sync; cat /proc/mdstat")
		return err == nil && strings.ContainsAny(out, "_"), fmt.Sprintf("%v: %s", err, out)
	})
	r.restart(plan, func() {}, first)

	r.cycle(func() { disk("insert-disk", first) })
	said, f := r.look(plan)
	// An array that is only read stays read-only, and a member that came back stays a spare, until something is written to it.
	for _, command := range append(repairs(plan, f), "sudo touch /boot/efi/written; sync") {
		if out, err := r.ssh("m1", command); err != nil {
			r.t.Fatalf("%s: %v: %s\n%s", command, err, out, said)
		}
	}
	r.eventually(8*time.Minute, "the mirror to be whole", func() (bool, string) {
		out, err := r.ssh("m1", "cat /proc/mdstat")
		return err == nil && strings.Contains(out, "[UU]") && !strings.Contains(out, "_]") && !strings.Contains(out, "[_"), fmt.Sprintf("%v: %s", err, out)
	})
	r.agrees(plan)

	r.restart(plan, func() { disk("pull-disk", second) }, second)
}

// repairs are the commands that put members which stand apart back into their arrays.
func repairs(plan *layout.Plan, f found) []string {
	c := comparison{plan: plan, found: f, names: map[layout.Ref]string{}}
	for _, d := range plan.Disks {
		c.disk(d)
	}
	var commands []string
	for _, a := range plan.Arrays {
		c.array(a)
		name := c.names[layout.Ref("md/"+a.Name)]
		for _, member := range c.present(a.Members) {
			in := false
			for _, parent := range f.Parents[name] {
				in = in || parent == member
			}
			if !in {
				commands = append(commands, fmt.Sprintf("sudo mdadm /dev/%s --re-add /dev/%s || sudo mdadm /dev/%s --add /dev/%s", name, member, name, member))
			}
		}
	}
	return commands
}

// reportLayouts writes what became of each layout where BLOOMERY_LAYOUTS_REPORT names a file.
func reportLayouts(t *testing.T, results []layoutResult) {
	path := os.Getenv("BLOOMERY_LAYOUTS_REPORT")
	if path == "" {
		return
	}
	text, err := json.MarshalIndent(map[string]any{"rows": results}, "", "  ")
	if err == nil {
		err = os.WriteFile(path, append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Error(err)
	}
}
