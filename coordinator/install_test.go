package coordinator

import (
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/netboot"
)

func TestInstallAndRelease(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	if r.machine.Power() {
		t.Error("the machine is on after its inspection")
	}
	j := r.end(r.install(op))
	if j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Fatalf("install: %s %s", j.GetErrorReason(), j.GetError())
	}
	m := r.m1()
	if m.GetStatus() != running || m.GetImage() != "tiny" || m.GetDiskSerial() != "DISK-B" || len(m.GetCustomerDisks()) != 1 || m.GetNetwork() != "customer-a" || m.GetAddress() != "127.77.0.100/24" || m.GetJobId() != "" {
		t.Errorf("machine after the install: %v", m)
	}
	if r.sw.VLAN("Ethernet1") != 200 {
		t.Errorf("port is in VLAN %d", r.sw.VLAN("Ethernet1"))
	}
	mac := r.learns
	if host, err := (directory{r.c}).Lookup(t.Context(), mac); err != nil || host.Wish != netboot.WishLocalDisk {
		t.Errorf("a running machine that asks is wished %v (%v)", host.Wish, err)
	}
	// Secrets are nowhere that an operator reads.
	response, err := op.jobs.GetJob(t.Context(), connect.NewRequest(&bloomeryv1.GetJobRequest{Id: j.GetId()}))
	must(t, err)
	text, err := protojson.Marshal(response.Msg)
	must(t, err)
	if strings.Contains(string(text), "userData\"") || strings.Contains(string(text), "vendorData\"") || !strings.Contains(string(text), "userDataBytes") {
		t.Errorf("job shows secrets or no sizes: %s", text)
	}
	events, err := r.c.events(t.Context(), store.EventFilter{Limit: 10000})
	must(t, err)
	for _, e := range events {
		data, err := protojson.Marshal(e)
		must(t, err)
		for _, secret := range []string{"hunter2", "top-secret", "phone-home/"} {
			if strings.Contains(string(data), secret) {
				t.Errorf("event shows %q: %s", secret, data)
			}
		}
	}
	validateStored(t, r)
	machine, err := op.machines.GetMachine(t.Context(), connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: "m1"}))
	must(t, err)
	if machine.Msg.GetMachine().GetBmc().GetPassword() != "" {
		t.Error("the BMC's password was returned")
	}

	release, err := op.machines.ReleaseMachine(t.Context(), connect.NewRequest(&bloomeryv1.ReleaseMachineRequest{Name: "m1"}))
	must(t, err)
	if j := r.end(release.Msg.GetJob().GetId()); j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Fatalf("release: %s %s", j.GetErrorReason(), j.GetError())
	}
	m = r.m1()
	if m.GetStatus() != available || m.GetImage() != "" || m.GetDiskSerial() != "" || len(m.GetCustomerDisks()) != 0 || m.GetAddress() != "" || r.sw.VLAN("Ethernet1") != 100 || r.machine.Power() {
		t.Errorf("machine after the release: %v, port in VLAN %d", m, r.sw.VLAN("Ethernet1"))
	}
}

func TestCoordinatorRestartsInTheMiddle(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.setAct(func(_ *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
		if s.GetWriteImage() != nil {
			once.Do(func() { close(reached); <-release })
		}
		return &bloomeryv1.StepFinished{Ok: true}
	})
	id := r.install(op)
	<-reached
	before := r.eventTypes()
	r.halt()
	r.start()
	close(release)
	j := r.end(id)
	if j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Fatalf("install: %s %s", j.GetErrorReason(), j.GetError())
	}
	after := r.eventTypes()
	for kind, n := range before {
		if after[kind] < n {
			t.Errorf("%d events %s of %d are left", after[kind], kind, n)
		}
	}
	if r.ran["wipe"] != 1 || r.ran["write-image"] != 1 {
		t.Errorf("steps were run more than once: %v", r.ran)
	}
}

func TestMachineLosesPowerInTheMiddle(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	reached := make(chan struct{})
	var once sync.Once
	var second *bloomeryv1.Step
	r.setAct(func(_ *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
		first := false
		if s.GetWriteImage() != nil {
			once.Do(func() { first = true; close(reached) })
			if !first {
				second = s
			}
		}
		if first {
			return nil
		}
		return &bloomeryv1.StepFinished{Ok: true}
	})
	id := r.install(op)
	<-reached
	must(t, r.machine.PowerOff(t.Context()))
	j := r.end(id)
	if j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Fatalf("install: %s %s", j.GetErrorReason(), j.GetError())
	}
	if second.GetAttempts() != 2 || second.GetProgress().GetResumeFrame() != 7 {
		t.Errorf("second attempt is %d with resume frame %d, want 2 and 7", second.GetAttempts(), second.GetProgress().GetResumeFrame())
	}
	if r.ran["wipe"] != 1 {
		t.Errorf("the disk was wiped %d times", r.ran["wipe"])
	}
	if n := r.eventTypes()["machine.reboot"]; n != 1 {
		t.Errorf("%d events machine.reboot, want 1", n)
	}
}

func TestPortGuardFailsTheJob(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	r.setAct(func(_ *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
		if s.GetHandover() != nil {
			r.sw.AddPort("Ethernet1", 100, []byte{0x52, 0x54, 0, 0, 0, 0x77})
		}
		return &bloomeryv1.StepFinished{Ok: true}
	})
	j := r.end(r.install(op))
	if j.GetErrorReason() != "PORT_GUARD" || !strings.Contains(j.GetError(), "52:54:00:00:00:77") {
		t.Errorf("install: %v %s %s", j.GetStatus(), j.GetErrorReason(), j.GetError())
	}
	if r.sw.VLAN("Ethernet1") != 100 {
		t.Errorf("the port was moved to VLAN %d", r.sw.VLAN("Ethernet1"))
	}
	if m := r.m1(); m.GetStatus() != available || m.GetImage() != "" || m.GetDiskSerial() != "DISK-B" {
		t.Errorf("machine: %v", m)
	}
}

func TestBrokenDiskCondemnsTheMachine(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.setAct(func(_ *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
		if s.GetCheckDisks() != nil {
			result, err := structpb.NewStruct(map[string]any{"verdict": "fail", "results": []any{map[string]any{"verdict": "fail"}, map[string]any{"verdict": "pass"}}})
			if err != nil {
				t.Error(err)
			}
			return &bloomeryv1.StepFinished{Error: "disk DISK-A reports critical warnings", ErrorReason: "DISK_FAILING", MachineFaulty: true, Result: result}
		}
		return &bloomeryv1.StepFinished{Ok: true}
	})
	response, err := op.machines.InspectMachine(t.Context(), connect.NewRequest(&bloomeryv1.InspectMachineRequest{Name: "m1", RequestId: "r1"}))
	must(t, err)
	again, err := op.machines.InspectMachine(t.Context(), connect.NewRequest(&bloomeryv1.InspectMachineRequest{Name: "m1", RequestId: "r1"}))
	must(t, err)
	if response.Msg.GetJob().GetId() != again.Msg.GetJob().GetId() {
		t.Error("a repeated request made another job")
	}
	if j := r.end(response.Msg.GetJob().GetId()); j.GetErrorReason() != "DISK_FAILING" {
		t.Errorf("job: %v", j)
	}
	if m := r.m1(); m.GetStatus() != faulty || m.GetFaultCode() != "DISK_FAILING" {
		t.Errorf("machine: %v", m)
	}
	verdicts, err := r.c.events(t.Context(), store.EventFilter{TypePrefix: "check.verdict", Limit: 10})
	must(t, err)
	if len(verdicts) != 1 || verdicts[0].GetSeverity() != bloomeryv1.Severity_SEVERITY_ERROR || verdicts[0].GetData().AsMap()["failed"] != 1.0 || verdicts[0].GetMachine() != "m1" {
		t.Errorf("verdicts: %v", verdicts)
	}
}

func TestCancel(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	reached, release := make(chan struct{}), make(chan struct{})
	r.setAct(func(_ *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
		if s.GetWipe() != nil {
			close(reached)
			<-release
		}
		return &bloomeryv1.StepFinished{Ok: true}
	})
	id := r.install(op)
	<-reached
	_, err := op.jobs.CancelJob(t.Context(), connect.NewRequest(&bloomeryv1.CancelJobRequest{Id: id}))
	must(t, err)
	time.Sleep(100 * time.Millisecond)
	close(release)
	j := r.end(id)
	if j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_CANCELLED || r.ran["wipe"] != 1 || r.ran["write-image"] != 0 {
		t.Errorf("job: %v, steps %v", j.GetStatus(), r.ran)
	}
	if m := r.m1(); m.GetStatus() != available {
		t.Errorf("machine is %v", m.GetStatus())
	}
}
