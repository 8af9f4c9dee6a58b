package agent

import (
	"testing"
	"time"

	pb "bloomery/api/bloomery/v1"
)

// TestSeedPartition gives an opaque system its seed, and refuses a label that no system looks for.
func TestSeedPartition(t *testing.T) {
	disk := &pb.DiskRef{Serial: "S1"}
	step := func(id, label string) *pb.Step {
		return &pb.Step{Id: id, Spec: &pb.Step_SeedPartition{SeedPartition: &pb.SeedPartitionStep{Disk: disk, Label: label, ImageBytes: 8 << 30,
			MetaData: []byte("instance-id: i\nlocal-hostname: h\n"), UserData: []byte("#cloud-config\n{}\n")}}}
	}
	c := newFakeCoordinator(t, step("a", "config-2"), step("b", "cdrom"), &pb.Step{Id: "c", Spec: &pb.Step_Handover{Handover: &pb.HandoverStep{}}})
	m := newFakeMachine()
	startAgent(t, c, m)
	select {
	case <-m.rebooted:
	case <-time.After(15 * time.Second):
		t.Fatal("the machine was not restarted")
	}
	if ends := c.ends("a"); len(ends) != 1 || !ends[0].Ok {
		t.Errorf("the seed ended as %v", ends)
	}
	if ends := c.ends("b"); len(ends) != 1 || ends[0].ErrorReason != reasonSeed {
		t.Errorf("an unknown label ended as %v", ends)
	}
	want := "seed partition /dev/vda config-2 2 files behind 8589934592"
	if m.count(want) != 1 {
		t.Errorf("the machine did not do %q", want)
	}
	if a, b := stepGUID("a"), stepGUID("b"); a == b || len(a) != 36 || a != stepGUID("a") {
		t.Errorf("GUIDs %s and %s", a, b)
	}
}
