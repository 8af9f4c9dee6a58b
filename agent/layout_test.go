package agent

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	pb "bloomery/api/bloomery/v1"
	"bloomery/images"
	"bloomery/partition/apply"
	"bloomery/partition/layout"
)

const testPassphrase = "correct horse battery"

// testPlan is a plan for both disks of the fake machine, with a volume that a passphrase opens.
func testPlan(t *testing.T) *layout.Plan {
	t.Helper()
	l, err := layout.Parse([]byte(`
format: bloomery.layout/v1
disks:
  - name: system
    select: {serial: S1}
    partitions:
      - {label: efi, type: esp, size: 512MiB}
      - {label: root, size: rest}
  - name: data
    select: {serial: S2}
    partitions:
      - {label: data, size: rest}
luks:
  - {name: data, device: part/data/data, unlock: [passphrase], secret: disk}
filesystems:
  - {device: part/system/efi, format: vfat, mount_point: /boot/efi}
  - {device: part/system/root, format: ext4, mount_point: /}
  - {device: luks/data, format: ext4, mount_point: /srv}
`))
	if err != nil {
		t.Fatal(err)
	}
	disks := []layout.Disk{
		{Name: "vda", Serial: "S1", Transport: "virtio", SizeBytes: 4 << 30, LogicalSector: 512, PhysicalSector: 512},
		{Name: "vdb", Serial: "S2", Transport: "virtio", SizeBytes: 4 << 30, LogicalSector: 512, PhysicalSector: 512},
	}
	plan, err := layout.MakePlan(l, disks, layout.Target{UEFI: true, Seed: "job"})
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

func testTarget(t *testing.T) *pb.LayoutTarget {
	t.Helper()
	data, err := testPlan(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	return &pb.LayoutTarget{Plan: data, Secrets: map[string][]byte{"disk": []byte(testPassphrase)}}
}

func applyStep(serials ...string) *pb.Step {
	spec := &pb.ApplyLayoutStep{}
	for _, serial := range serials {
		spec.Disks = append(spec.Disks, &pb.DiskRef{Serial: serial})
	}
	return &pb.Step{Id: "apply", Spec: &pb.Step_ApplyLayout{ApplyLayout: spec}}
}

// rootfsStore serves a rootfs image of one file.
func rootfsStore(t *testing.T, c *fakeCoordinator, m *fakeMachine) *pb.UnpackImageStep {
	t.Helper()
	public, private, err := images.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "vmlinuz", Mode: 0o644}), w.Close()); err != nil {
		t.Fatal(err)
	}
	store := t.TempDir()
	manifest, err := images.ImportRootfs(t.Context(), &archive, images.ImportOptions{Name: "rootfs", Out: filepath.Join(store, "rootfs"), Key: &private})
	if err != nil {
		t.Fatal(err)
	}
	c.mux.Handle("/images/", http.StripPrefix("/images/", http.FileServer(http.Dir(store))))
	m.key = public
	return &pb.UnpackImageStep{Image: "rootfs", ManifestSha256: manifest.SHA256().String()}
}

func TestInstallWithLayout(t *testing.T) {
	kernel := &pb.HandoverStep{Kernel: "/vmlinuz", Initrd: "/initrd.img", CommandLine: "ro"}
	unpack := &pb.Step{Id: "unpack"}
	c := newFakeCoordinator(t,
		applyStep("S1", "S2"),
		unpack,
		&pb.Step{Id: "configure", Spec: &pb.Step_ConfigureSystem{ConfigureSystem: &pb.ConfigureSystemStep{Kernel: "/vmlinuz", Initrd: "/initrd.img", CommandLine: "ro"}}},
		&pb.Step{Id: "seed", Spec: &pb.Step_CloudInit{CloudInit: &pb.CloudInitStep{UserData: []byte("#cloud-config\n")}}},
		&pb.Step{Id: "entry", Spec: &pb.Step_BootEntry{BootEntry: &pb.BootEntryStep{Disk: &pb.DiskRef{Serial: "S1"}, EspPartition: 1, KeepOthers: true}}},
		&pb.Step{Id: "handover", Spec: &pb.Step_Handover{Handover: kernel}},
	)
	m := newFakeMachine()
	unpack.Spec = &pb.Step_UnpackImage{UnpackImage: rootfsStore(t, c, m)}
	c.target = testTarget(t)
	startAgent(t, c, m)
	select {
	case <-m.kexeced:
	case <-time.After(15 * time.Second):
		t.Error("the installed kernel was not started")
	}
	for _, id := range []string{"apply", "unpack", "configure", "seed", "entry", "handover"} {
		if ends := c.ends(id); len(ends) != 1 || !ends[0].Ok {
			t.Fatalf("step %s ended as %v", id, ends)
		}
	}
	m.mu.Lock()
	var did []string
	for _, what := range m.did {
		switch what {
		case "mount", "drivers", "network", "kexec":
		default:
			did = append(did, what)
		}
	}
	m.mu.Unlock()
	if diff := cmp.Diff([]string{"apply /dev/vda", "apply /dev/vdb", "apply", "unpack", "configure", "seed", "boot entry /dev/vda 1 keep true", "load"}, did); diff != "" {
		t.Error(diff)
	}
	if want := (installedKernel{"/boot/vmlinuz", "/boot/initrd.img", "root=UUID=x ro"}); m.loaded != want {
		t.Errorf("loaded %+v, want %+v", m.loaded, want)
	}
	if string(m.layout.target.secrets["disk"]) != testPassphrase {
		t.Error("the plan's installer did not get the passphrase")
	}
	if unpacked := c.ends("unpack")[0].Result.AsMap(); unpacked["entries"] != 3.0 || unpacked["restart_reason"] != nil {
		t.Errorf("unpacked: %v", unpacked)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range c.reports {
		if strings.Contains(r.String(), testPassphrase) {
			t.Errorf("the passphrase is in a report: %v", r)
		}
	}
}

func TestLayoutFailures(t *testing.T) {
	configure := &pb.Step{Id: "apply", Spec: &pb.Step_ConfigureSystem{ConfigureSystem: &pb.ConfigureSystemStep{}}}
	differs := apply.Report{Objects: []apply.Object{{Kind: "array", Ref: "md/root", Differences: []apply.Difference{{Field: "level", Planned: "1", Found: "0"}}}}}
	for _, c := range []struct {
		name   string
		step   *pb.Step
		target func(*pb.LayoutTarget) *pb.LayoutTarget
		change func(*fakeMachine)
		reason string
		faulty bool
	}{
		{"no plan", applyStep("S1", "S2"), func(*pb.LayoutTarget) *pb.LayoutTarget { return nil }, nil, "PLAN_INVALID", false},
		{"not a plan", applyStep("S1", "S2"), func(*pb.LayoutTarget) *pb.LayoutTarget { return &pb.LayoutTarget{Plan: []byte("{}")} }, nil, "PLAN_INVALID", false},
		{"a plan of other disks", applyStep("S1"), nil, nil, "PLAN_INVALID", false},
		{"a disk that is gone", applyStep("S1", "S2"), nil, func(m *fakeMachine) { m.disks = m.disks[:1] }, "DISK_NOT_FOUND", false},
		{"a tool fails", applyStep("S1", "S2"), nil, func(m *fakeMachine) { m.layout.err = map[string]error{"apply": errors.New("no")} }, "LAYOUT_FAILED", false},
		{"a disk fails", applyStep("S1", "S2"), nil, func(m *fakeMachine) {
			m.layout.err = map[string]error{"apply": fmt.Errorf("write: %w", syscall.EIO)}
		}, "DISK_WRITE", true},
		{"not as planned", applyStep("S1", "S2"), nil, func(m *fakeMachine) { m.layout.report = differs }, "LAYOUT_FAILED", false},
		{"configure fails", configure, nil, func(m *fakeMachine) { m.layout.err = map[string]error{"configure": errors.New("no")} }, "CONFIGURE_FAILED", false},
		{"damaged image", applyStep("S1", "S2"), nil, func(m *fakeMachine) { m.damage = errImageDamaged }, "AGENT_IMAGE_CORRUPT", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			coordinator, m := newFakeCoordinator(t, c.step), newFakeMachine()
			coordinator.target = testTarget(t)
			if c.target != nil {
				coordinator.target = c.target(coordinator.target)
			}
			if c.change != nil {
				c.change(m)
			}
			startAgent(t, coordinator, m)
			eventually(t, "step ended", func() bool { return len(coordinator.ends("apply")) == 1 })
			end := coordinator.ends("apply")[0]
			if end.Ok || end.ErrorReason != c.reason || end.MachineFaulty != c.faulty {
				t.Errorf("ended as %v, want %s, faulty %v", end, c.reason, c.faulty)
			}
		})
	}
}

// What an interrupted attempt unpacked is removed first, and the result says so.
func TestUnpackAgain(t *testing.T) {
	for _, c := range []struct {
		name     string
		attempts int32
		left     bool
		says     string
	}{{"second attempt", 2, true, "attempt 2"}, {"files of unknown origin", 1, true, "not empty"}, {"first attempt", 1, false, ""}} {
		t.Run(c.name, func(t *testing.T) {
			step := &pb.Step{Id: "unpack", Attempts: c.attempts}
			coordinator, m := newFakeCoordinator(t, step), newFakeMachine()
			step.Spec = &pb.Step_UnpackImage{UnpackImage: rootfsStore(t, coordinator, m)}
			m.layout.left, coordinator.target = c.left, testTarget(t)
			startAgent(t, coordinator, m)
			eventually(t, "step ended", func() bool { return len(coordinator.ends("unpack")) == 1 })
			end := coordinator.ends("unpack")[0]
			reason, _ := end.Result.AsMap()["restart_reason"].(string)
			if !end.Ok || !strings.Contains(reason, c.says) || (reason == "") != (c.says == "") {
				t.Errorf("ended as %v, want a restart because of %q", end, c.says)
			}
			if renewed := m.count("renew"); (renewed == 1) != c.left || m.count("unpack") != 1 {
				t.Errorf("made anew %d times, unpacked %d times", renewed, m.count("unpack"))
			}
		})
	}
}

// A machine that was restarted after its system was configured starts through the firmware.
func TestHandoverOfALayoutAfterARestart(t *testing.T) {
	c, m := newFakeCoordinator(t, &pb.Step{Id: "a", Spec: &pb.Step_Handover{Handover: &pb.HandoverStep{Kernel: "/vmlinuz"}}}), newFakeMachine()
	c.target = testTarget(t)
	startAgent(t, c, m)
	select {
	case <-m.rebooted:
	case <-time.After(15 * time.Second):
		t.Error("the machine was not restarted")
	}
	if result := c.ends("a")[0].Result.AsMap(); result["method"] != "firmware" || !strings.Contains(result["why"].(string), "restarted since") {
		t.Errorf("result: %v", result)
	}
}
