package coordinator

import (
	"crypto/x509"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/partition/wipe/certificate"
)

// wipeResult is what an agent says of a wipe.
func wipeResult(t *testing.T, s *bloomeryv1.WipeStep, sanitization string) *structpb.Struct {
	t.Helper()
	at := time.Now().UTC().Format(time.RFC3339Nano)
	level := map[bloomeryv1.WipeLevel]string{1: "signatures", 2: "quick", 3: "erase"}[s.GetLevel()]
	result, err := structpb.NewStruct(map[string]any{
		"level": level, "method": "overwrite", "sanitization": sanitization, "commands": []any{"overwrite"}, "bytes": 8e9, "started": at, "ended": at,
		"disk": map[string]any{"model": "Model X", "serial": "another one's"}, "agent_version": "v1",
	})
	must(t, err)
	return result
}

// A disk's wipes are certified, and decide how it is wiped the next time.
func TestWipesAreCertified(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	sanitization, fails := "none", false
	r.setAct(func(_ *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
		if s.GetWipe() == nil {
			return &bloomeryv1.StepFinished{Ok: true}
		}
		f := &bloomeryv1.StepFinished{Ok: true, Result: wipeResult(t, s.GetWipe(), sanitization)}
		if fails {
			f.Ok, f.Error, f.ErrorReason, f.MachineFaulty = false, "input/output error", "WIPE_FAILED", true
		}
		return f
	})
	installedWith := func(want bloomeryv1.WipeLevel) {
		t.Helper()
		for _, s := range r.end(r.install(op)).GetSteps() {
			if w := s.GetWipe(); w != nil && w.GetLevel() != want {
				t.Errorf("disk %v is wiped at level %v, want %v", w.GetDisk(), w.GetLevel(), want)
			}
		}
	}
	release := func() *bloomeryv1.Job {
		t.Helper()
		response, err := op.machines.ReleaseMachine(t.Context(), connect.NewRequest(&bloomeryv1.ReleaseMachineRequest{Name: "m1"}))
		must(t, err)
		return r.end(response.Msg.GetJob().GetId())
	}
	installedWith(bloomeryv1.WipeLevel_WIPE_LEVEL_QUICK) // nothing is known of it
	sanitization = "clear"
	released, wiped := release(), map[string]bool{}
	for _, s := range released.GetSteps() {
		if w := s.GetWipe(); w != nil {
			wiped[w.GetDisk().GetSerial()] = true
			if w.GetLevel() != bloomeryv1.WipeLevel_WIPE_LEVEL_ERASE || w.GetExtraSeconds() == 0 {
				t.Errorf("a released disk is wiped by %v", w)
			}
		}
	}
	for _, d := range inventoryDisks(machineWithInventory(t, r)) {
		if wiped[d.Serial] != d.fixed() {
			t.Errorf("disk %s, fixed %v, was wiped: %v", d.Serial, d.fixed(), wiped[d.Serial])
		}
	}
	sanitization = "none"
	installedWith(bloomeryv1.WipeLevel_WIPE_LEVEL_SIGNATURES)
	fails = true
	if j := release(); j.GetErrorReason() != "WIPE_FAILED" || r.m1().GetStatus() != faulty {
		t.Errorf("a disk that cannot be wiped: job %s, machine %v", j.GetErrorReason(), r.m1().GetStatus())
	}

	answer, err := op.machines.ListWipeCertificates(t.Context(), connect.NewRequest(&bloomeryv1.ListWipeCertificatesRequest{Name: "m1", PageSize: 2}))
	must(t, err)
	if n := len(answer.Msg.GetCertificates()); n != 2 || answer.Msg.GetNextPageToken() == "" {
		t.Fatalf("%d certificates in the first page, more: %q", n, answer.Msg.GetNextPageToken())
	}
	next, err := op.machines.ListWipeCertificates(t.Context(), connect.NewRequest(&bloomeryv1.ListWipeCertificatesRequest{Name: "m1", PageToken: answer.Msg.GetNextPageToken()}))
	must(t, err)
	all := append(answer.Msg.GetCertificates(), next.Msg.GetCertificates()...)
	if want := 2 + len(wiped) + 1; len(all) != want || all[0].GetSuccessful() {
		t.Fatalf("%d certificates, want %d; the last wipe went well: %v", len(all), want, all[0].GetSuccessful())
	}
	for i, w := range all {
		c, err := certificate.Verify([]byte(w.GetDocument()), []*x509.Certificate{r.c.Authority.Root()})
		must(t, err)
		// Which disk it was is the coordinator's word, not the agent's.
		if c.ID != w.GetId() || c.Machine.Name != "m1" || c.Machine.UUID != testUUID || c.Disk.Serial != w.GetDisk().GetSerial() || c.Disk.Model != "Model X" || c.Successful != (i > 0) {
			t.Errorf("certificate %d is %+v", i, c)
		}
	}
	if got := r.eventTypes()["disk.wiped"]; got != len(all) {
		t.Errorf("%d events disk.wiped, want %d", got, len(all))
	}
	validateStored(t, r)
}

func machineWithInventory(t *testing.T, r *rack) *bloomeryv1.Machine {
	t.Helper()
	op := r.operator()
	response, err := op.machines.GetMachine(t.Context(), connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: "m1"}))
	must(t, err)
	return response.Msg.GetMachine()
}

// A report that makes no certificate is said so, and holds nothing up.
func TestWipeWithoutCertificate(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	r.setAct(func(_ *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
		f := &bloomeryv1.StepFinished{Ok: true}
		if s.GetWipe() != nil {
			f.Result = &structpb.Struct{Fields: map[string]*structpb.Value{"bytes": structpb.NewStringValue("many")}}
		}
		return f
	})
	if j := r.end(r.install(op)); j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Errorf("install: %s %s", j.GetErrorReason(), j.GetError())
	}
	if r.eventTypes()["disk.wipe_uncertified"] != 1 {
		t.Error("nothing was said of it")
	}
}
