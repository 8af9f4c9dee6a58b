package coordinator

import (
	"os"
	"path/filepath"
	"testing"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/coordinator/store/storetest"
)

// TestEarlierDatabaseGoesOn starts a coordinator on what the first release left in the middle of an install.
func TestEarlierDatabaseGoesOn(t *testing.T) {
	r := newRack(t)
	r.halt()
	must(t, os.RemoveAll(filepath.Join(r.dir, "dqlite")))
	must(t, os.Remove(filepath.Join(r.dir, "secret.key")))
	storetest.Unpack(t, "store/testdata/schema-1/data.tar.zst", r.dir)
	r.start()
	m := r.m1()
	if m.GetStatus() != installing || m.GetJobId() == "" {
		t.Fatalf("m1 is %v with job %q", m.GetStatus(), m.GetJobId())
	}
	j := r.end(m.GetJobId())
	if j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Fatalf("the install that was under way: %s %s", j.GetErrorReason(), j.GetError())
	}
	if r.ran["wipe"] != 0 || r.ran["write-image"] != 1 {
		t.Errorf("steps that ran after the upgrade: %v, want the image written and no second wipe", r.ran)
	}
	if m := r.m1(); m.GetStatus() != running || m.GetImage() != "tiny" {
		t.Errorf("m1: %v", m)
	}
	events, err := r.c.events(t.Context(), store.EventFilter{Limit: 10000})
	must(t, err)
	for i, e := range events {
		if e.GetSequence() != int64(i+1) {
			t.Fatalf("event %d has sequence %d", i+1, e.GetSequence())
		}
	}
	// The order that made the job is still known.
	op := r.operator()
	again, err := op.machines.InstallMachine(t.Context(), connect.NewRequest(&bloomeryv1.InstallMachineRequest{Name: "m1", RequestId: "order-4711",
		Spec: &bloomeryv1.InstallSpec{Image: "tiny", Network: "customer-a"}}))
	must(t, err)
	if again.Msg.GetJob().GetId() != j.GetId() {
		t.Errorf("the repeated order made job %s, want %s", again.Msg.GetJob().GetId(), j.GetId())
	}
}
