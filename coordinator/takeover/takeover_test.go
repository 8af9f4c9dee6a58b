package takeover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator"
	"bloomery/coordinator/clustertest"
)

// switchVariable tells coordinators' processes of the switch.
const switchVariable = "BLOOMERY_TAKEOVER_SWITCH"

const (
	lease = 900 * time.Millisecond
	// patience bounds each wait; only failures reach it.
	patience = 40 * time.Second
	// window is how long the actions of a job take here, within which its owner is stopped.
	window = 400 * time.Millisecond
)

func TestMain(m *testing.M) {
	os.Exit(clustertest.Main(m, func(config *coordinator.Config, _ *coordinator.Deps) {
		config.Networks = []coordinator.Network{{Name: coordinator.ProvisioningNetwork, VLAN: provisioningVLAN}, {Name: "customer-a", VLAN: customerVLAN}}
		config.Timing.Lease, config.Timing.Boot, config.Timing.Tick, config.Timing.Retry = lease, time.Minute, 100*time.Millisecond, 50*time.Millisecond
		var s coordinator.Switch
		if err := json.Unmarshal([]byte(os.Getenv(switchVariable)), &s); err != nil {
			fmt.Fprintln(os.Stderr, "the switch:", err)
			os.Exit(1)
		}
		config.Switches = []coordinator.Switch{s}
	}))
}

// TestStoppedOwnerActsNoMore stops the coordinator that drives a job, at a moment of its actions, for longer than its lease, and lets it go on
// while or after another one has taken the job. Whatever the moment, BMC and switch see each action once.
func TestStoppedOwnerActsNoMore(t *testing.T) {
	rounds := 15
	if testing.Short() {
		rounds = 3
	}
	w := newWorld(t)
	for round := range rounds {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			delay := window * time.Duration(round) / time.Duration(rounds)
			w.round(t, round, delay, round%2 == 0)
		})
	}
}

type world struct {
	rack *clustertest.Rack
	top  *top
}

func newWorld(t *testing.T) *world {
	w := &world{top: newTop(t)}
	s, err := json.Marshal(coordinator.Switch{Name: tor, Driver: "gnmi", Address: w.top.address, CA: w.top.ca, Username: username, PasswordFile: w.top.passwordFile()})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(switchVariable, string(s))
	w.rack = clustertest.Start(t, clustertest.Options{Nodes: 3, Processes: true})
	return w
}

// round is one job with one stop. early lets the owner go on as soon as another has taken the job, else when that has done everything.
func (w *world) round(t *testing.T, i int, delay time.Duration, early bool) {
	name, mac := fmt.Sprintf("m%d", i), net.HardwareAddr{0x52, 0x54, 0, 0, 1, byte(i)}
	m := &machine{}
	w.top.plug(t, name, mac)
	job := w.start(t, name, mac, m.plug(t))

	owner, epoch := w.owner(t, job, 0)
	time.Sleep(delay)
	owner.Pause()
	stopped := time.Now()
	defer func() {
		if owner != nil {
			owner.Resume()
		}
	}()
	before := m.actions()
	successor, next := w.owner(t, job, epoch)
	took := time.Since(stopped)
	if successor == owner {
		t.Fatalf("%s was stopped and took the job again", owner.Name)
	}
	resume := func() {
		owner.Resume()
		owner = nil
	}
	if early {
		time.Sleep(rand.N(window))
		resume()
	}
	// The machine is switched on so that the switch hears it, off, and into the agent.
	want := []string{"on", "off", "boot:network", "on"}
	until(t, "the machine is on", func() error {
		if got := m.actions(); len(got) < len(want) || !m.On() {
			return fmt.Errorf("the BMC was told %v", got)
		}
		return nil
	})
	if owner != nil {
		resume()
	}
	time.Sleep(lease / 2) // time for whatever the owner still wants to do
	w.cancel(t, job)
	if diff := cmp.Diff(append(want, "off"), m.actions()); diff != "" {
		t.Errorf("stopped after %v and %v, the BMC was told (-want +got):\n%s", delay, before, diff)
	}
	if diff := cmp.Diff([]string{"200 to 100"}, w.top.of(name)); diff != "" {
		t.Errorf("stopped after %v and %v, the switch was told (-want +got):\n%s", delay, before, diff)
	}
	t.Logf("stopped after %v and %v, taken over by %s after %v, epoch %d after %d", delay, before, successor.Name, took.Round(time.Millisecond), next, epoch)
}

// start records a machine and asks for its inspection.
func (w *world) start(t *testing.T, name string, mac net.HardwareAddr, controller string) (job string) {
	t.Helper()
	until(t, "create a machine", func() error {
		_, err := w.client().Machines.CreateMachine(t.Context(), connect.NewRequest(&bloomeryv1.CreateMachineRequest{Machine: &bloomeryv1.Machine{
			Name: name, Macs: []string{mac.String()}, Bmc: &bloomeryv1.BMC{Address: controller, Username: username, Password: password},
			SwitchPort: &bloomeryv1.SwitchPort{Switch: tor, Port: name},
		}}))
		if connect.CodeOf(err) == connect.CodeAlreadyExists {
			return nil
		}
		return err
	})
	until(t, "ask for an inspection", func() error {
		response, err := w.client().Machines.InspectMachine(t.Context(), connect.NewRequest(&bloomeryv1.InspectMachineRequest{Name: name, RequestId: "inspect-" + name}))
		if err == nil {
			job = response.Msg.GetJob().GetId()
		}
		return err
	})
	return job
}

// client reaches any coordinator: the others may be stopped.
func (w *world) client() clustertest.Client {
	nodes := w.rack.Nodes()
	return nodes[rand.IntN(len(nodes))].Client()
}

func (w *world) cancel(t *testing.T, job string) {
	t.Helper()
	until(t, "cancel the job", func() error {
		_, err := w.client().Jobs.CancelJob(t.Context(), connect.NewRequest(&bloomeryv1.CancelJobRequest{Id: job}))
		if connect.CodeOf(err) == connect.CodeFailedPrecondition {
			return nil // an earlier try has done it
		}
		return err
	})
	until(t, "the job ends", func() error {
		response, err := w.client().Jobs.GetJob(t.Context(), connect.NewRequest(&bloomeryv1.GetJobRequest{Id: job}))
		if err != nil {
			return err
		}
		if status := response.Msg.GetJob().GetStatus(); status != bloomeryv1.JobStatus_JOB_STATUS_CANCELLED {
			return fmt.Errorf("the job is %v: %s", status, response.Msg.GetJob().GetError())
		}
		return nil
	})
}

// owner waits for a coordinator that says that it took a job with an epoch above another.
func (w *world) owner(t *testing.T, job string, above int64) (found *clustertest.Node, epoch int64) {
	t.Helper()
	taken := regexp.MustCompile(`msg="job taken".* job=` + regexp.QuoteMeta(job) + ` epoch=(\d+)`)
	until(t, "a coordinator takes the job", func() error {
		for _, n := range w.rack.Nodes() {
			log, err := os.ReadFile(n.Config.Data + ".log")
			if err != nil {
				return err
			}
			for _, match := range taken.FindAllSubmatch(log, -1) {
				e, err := strconv.ParseInt(string(match[1]), 10, 64)
				if err != nil {
					return err
				}
				if e > max(above, epoch) {
					found, epoch = n, e
				}
			}
		}
		if found == nil {
			return errors.New("nobody has")
		}
		return nil
	})
	return found, epoch
}

// until tries again until it succeeds.
func until(t *testing.T, what string, try func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-time.After(3 * time.Millisecond):
		}
	}
}
