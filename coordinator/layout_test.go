package coordinator

import (
	"archive/tar"
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/images"
	"bloomery/partition/layout"
)

const testPassword = "correct horse battery"

// encrypted is a layout over both disks with a volume that a passphrase and a key file open.
const encrypted = `
format: bloomery.layout/v1
disks:
  - name: system
    select: {serial: DISK-B}
    partitions:
      - {label: efi, type: esp, size: 512MiB}
      - {label: boot, size: 512MiB}
      - {label: root, size: rest}
  - name: data
    select: {serial: DISK-A}
    partitions:
      - {label: data, size: rest}
luks:
  - {name: root, device: part/system/root, unlock: [key-file, passphrase], secret: disk}
filesystems:
  - {device: part/system/efi, format: vfat, mount_point: /boot/efi}
  - {device: part/system/boot, format: ext4, mount_point: /boot}
  - {device: luks/root, format: ext4, mount_point: /}
  - {device: part/data/data, format: ext4, mount_point: /srv}
`

// addRootfs stores a rootfs image that can stand on encrypted volumes.
func (r *rack) addRootfs(name string) {
	r.t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for _, file := range []string{"vmlinuz", "initrd.img"} {
		must(r.t, w.WriteHeader(&tar.Header{Name: file, Mode: 0o644, Size: 4}))
		_, err := w.Write([]byte("file"))
		must(r.t, err)
	}
	must(r.t, w.Close())
	dir := filepath.Join(r.t.TempDir(), name)
	_, err := images.ImportRootfs(r.t.Context(), &archive, images.ImportOptions{Name: name, Out: dir, Key: &r.imageKey, Boot: images.Boot{
		Kexec: true, Kernel: "/vmlinuz", Initrd: "/initrd.img", Cmdline: "ro", RootStacks: []string{images.StackLUKS},
	}})
	must(r.t, err)
	manifest, err := os.ReadFile(filepath.Join(dir, images.ManifestFile))
	must(r.t, err)
	signature, err := os.ReadFile(filepath.Join(dir, images.SignatureFile))
	must(r.t, err)
	up, err := r.images.Begin(r.t.Context(), name, manifest, signature)
	must(r.t, err)
	data, err := os.Open(filepath.Join(dir, images.DataFile))
	must(r.t, err)
	_, err = io.Copy(up, data)
	must(r.t, errors.Join(err, data.Close()))
	must(r.t, up.Commit())
}

func layoutSpec() *bloomeryv1.InstallSpec {
	return &bloomeryv1.InstallSpec{
		Image: "rootfs", Network: "customer-a", Layout: []byte(encrypted), Secrets: map[string][]byte{"disk": []byte(testPassword)},
		UserData: []byte("#cloud-config\npassword: hunter2\n"),
	}
}

// layoutRack has an inspected machine and a rootfs image that is in the catalogue.
func layoutRack(t *testing.T) (*rack, operator) {
	t.Helper()
	r := newRack(t)
	r.addRootfs("rootfs")
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	return r, op
}

func (r *rack) installLayout(op operator) string {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		response, err := op.machines.InstallMachine(r.life, connect.NewRequest(&bloomeryv1.InstallMachineRequest{Name: "m1", Spec: layoutSpec()}))
		if connect.CodeOf(err) == connect.CodeUnavailable && time.Now().Before(deadline) {
			continue // the image is not in the catalogue yet
		}
		must(r.t, err)
		return response.Msg.GetJob().GetId()
	}
}

func (r *rack) secrets(id string) map[string][]byte {
	r.t.Helper()
	var p store.JobPlan
	must(r.t, r.c.Store.View(r.life, func(s *store.Reader) (err error) { p, err = s.JobTarget(id); return err }))
	return p.Secrets
}

func TestInstallWithLayout(t *testing.T) {
	r, op := layoutRack(t)
	id := r.installLayout(op)
	if j := r.end(id); j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Fatalf("install: %s %s", j.GetErrorReason(), j.GetError())
	}
	m := r.m1()
	if m.GetStatus() != running || m.GetImage() != "rootfs" || diskNames(m.GetCustomerDisks()) != "DISK-B, DISK-A" {
		t.Errorf("machine after the install: %v", m)
	}

	// Steps that work on the disks come with the plan and what opens it, the others with nothing.
	got, err := op.jobs.GetJobPlan(t.Context(), connect.NewRequest(&bloomeryv1.GetJobPlanRequest{Id: id}))
	must(t, err)
	plan, err := layout.DecodePlan(got.Msg.GetPlan())
	must(t, err)
	if len(plan.Disks) != 2 || len(plan.LUKS) != 1 {
		t.Errorf("plan: %+v", plan)
	}
	with, without := []string{"apply-layout", "unpack-image", "configure-system", "cloud-init", "handover"}, []string{"inspect", "wipe", "boot-entry"}
	r.mu.Lock()
	key := r.targets["apply-layout"].GetSecrets()["luks/root"]
	for _, kind := range with {
		target := r.targets[kind]
		if !bytes.Equal(target.GetPlan(), got.Msg.GetPlan()) || string(target.GetSecrets()["disk"]) != testPassword || len(target.GetSecrets()) != 2 {
			t.Errorf("%s came with %d bytes of plan and %d secrets", kind, len(target.GetPlan()), len(target.GetSecrets()))
		}
		if !bytes.Equal(target.GetSecrets()["luks/root"], key) || len(key) != generatedKey {
			t.Errorf("%s came with another key than the one before, or one of %d bytes", kind, len(key))
		}
	}
	for _, kind := range without {
		if target, ran := r.targets[kind]; !ran || target != nil {
			t.Errorf("%s ran: %v, and came with %d bytes of plan", kind, ran, len(target.GetPlan()))
		}
	}
	r.mu.Unlock()
	if left := r.secrets(id); left != nil {
		t.Errorf("%d secrets are kept after the job's end", len(left))
	}

	// Operators see none of it.
	job, err := op.jobs.GetJob(t.Context(), connect.NewRequest(&bloomeryv1.GetJobRequest{Id: id}))
	must(t, err)
	events, err := r.c.events(t.Context(), store.EventFilter{Limit: 10000})
	must(t, err)
	shown := []proto.Message{job.Msg, got.Msg, m}
	for _, e := range events {
		shown = append(shown, e)
	}
	for _, message := range shown {
		text, err := protojson.Marshal(message)
		must(t, err)
		encoded, err := protojson.Marshal(&bloomeryv1.LayoutTarget{Plan: []byte(testPassword), Secrets: map[string][]byte{"k": key}})
		must(t, err)
		for _, secret := range append(strings.Split(string(encoded), `"`), testPassword, "hunter2") {
			if len(secret) > 20 && strings.Contains(string(text), secret) {
				t.Errorf("%T shows %q", message, secret)
			}
		}
	}
	validateStored(t, r)

	release, err := op.machines.ReleaseMachine(t.Context(), connect.NewRequest(&bloomeryv1.ReleaseMachineRequest{Name: "m1"}))
	must(t, err)
	var wiped []string
	for _, s := range release.Msg.GetJob().GetSteps() {
		if w := s.GetWipe(); w != nil {
			wiped = append(wiped, w.GetDisk().GetSerial())
		}
	}
	if diff := cmp.Diff([]string{"DISK-B", "DISK-A"}, wiped); diff != "" {
		t.Error(diff)
	}
}

func TestSecretsGoWithTheJob(t *testing.T) {
	for name, tc := range map[string]struct {
		act    func(op operator, id string, s *bloomeryv1.Step) *bloomeryv1.StepFinished
		status bloomeryv1.JobStatus
	}{
		"failed": {func(_ operator, _ string, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
			return &bloomeryv1.StepFinished{Ok: s.GetUnpackImage() == nil, Error: "no", ErrorReason: "NO"}
		}, bloomeryv1.JobStatus_JOB_STATUS_FAILED},
		"cancelled": {func(op operator, id string, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
			if s.GetApplyLayout() != nil {
				if _, err := op.jobs.CancelJob(t.Context(), connect.NewRequest(&bloomeryv1.CancelJobRequest{Id: id})); err != nil {
					t.Error(err)
				}
			}
			return &bloomeryv1.StepFinished{Ok: true}
		}, bloomeryv1.JobStatus_JOB_STATUS_CANCELLED},
	} {
		t.Run(name, func(t *testing.T) {
			r, op := layoutRack(t)
			var mu sync.Mutex
			mu.Lock()
			id := ""
			r.setAct(func(_ *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
				mu.Lock()
				defer mu.Unlock()
				return tc.act(op, id, s)
			})
			id = r.installLayout(op)
			if len(r.secrets(id)) != 2 {
				t.Errorf("%d secrets are kept while the job runs, want 2", len(r.secrets(id)))
			}
			mu.Unlock()
			if j := r.end(id); j.GetStatus() != tc.status {
				t.Fatalf("install ended %v: %s", j.GetStatus(), j.GetError())
			}
			if left := r.secrets(id); left != nil {
				t.Errorf("%d secrets are kept after the job's end", len(left))
			}
			// What was begun may hold the customer's data: the record says so until it is wiped.
			if m := r.m1(); m.GetStatus() != available || diskNames(m.GetCustomerDisks()) != "DISK-B, DISK-A" {
				t.Errorf("machine: %v", m)
			}
		})
	}
}

func TestPlanInstallChangesNothing(t *testing.T) {
	r, op := layoutRack(t)
	before, revision := r.eventTypes(), r.m1().GetRevision()
	plan := func(spec *bloomeryv1.InstallSpec) *bloomeryv1.PlanInstallResponse {
		t.Helper()
		response, err := op.machines.PlanInstall(t.Context(), connect.NewRequest(&bloomeryv1.PlanInstallRequest{Name: "m1", Spec: spec}))
		must(t, err)
		return response.Msg
	}
	planned := plan(layoutSpec())
	if p, err := layout.DecodePlan(planned.GetPlan()); err != nil || len(p.Disks) != 2 {
		t.Errorf("plan: %v, %v", p, err)
	}
	for _, s := range planned.GetSteps() {
		if ci := s.GetCloudInit(); ci != nil && (ci.GetUserData() != nil || ci.GetVendorData() != nil || ci.GetUserDataBytes() == 0) {
			t.Errorf("cloud-init shows what it must not: %v", ci)
		}
	}
	if disk := plan(&bloomeryv1.InstallSpec{Image: "tiny", Network: "customer-a"}); len(disk.GetPlan()) != 0 || len(disk.GetSteps()) == 0 {
		t.Errorf("plan of a disk image: %v", disk)
	}
	wrong := layoutSpec()
	wrong.Secrets = nil
	_, err := op.machines.PlanInstall(t.Context(), connect.NewRequest(&bloomeryv1.PlanInstallRequest{Name: "m1", Spec: wrong}))
	if connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("without its secret: %v", err)
	}
	if diff := cmp.Diff(before, r.eventTypes()); diff != "" || r.m1().GetRevision() != revision {
		t.Errorf("something changed: revision %d, was %d; events %s", r.m1().GetRevision(), revision, diff)
	}
	jobs, err := op.jobs.ListJobs(t.Context(), connect.NewRequest(&bloomeryv1.ListJobsRequest{}))
	must(t, err)
	if len(jobs.Msg.GetJobs()) != 1 {
		t.Errorf("%d jobs, want the inspection", len(jobs.Msg.GetJobs()))
	}
	inspection := jobs.Msg.GetJobs()[0].GetId()
	if _, err := op.jobs.GetJobPlan(t.Context(), connect.NewRequest(&bloomeryv1.GetJobPlanRequest{Id: inspection})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("the plan of an inspection: %v", err)
	}
	if _, err := op.jobs.GetJobPlan(t.Context(), connect.NewRequest(&bloomeryv1.GetJobPlanRequest{Id: "none"})); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("the plan of no job: %v", err)
	}
}

// Another boot of the machine, or another machine, gets no plan and no secret.
func TestTargetIsTheJobsAgentsOnly(t *testing.T) {
	r, op := layoutRack(t)
	reached, release := make(chan *agent), make(chan struct{})
	r.setAct(func(a *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
		if s.GetApplyLayout() != nil {
			reached <- a
			<-release
		}
		return &bloomeryv1.StepFinished{Ok: true}
	})
	id := r.installLayout(op)
	a := <-reached
	stranger := *a
	stranger.bootID = strings.Repeat("0", 32)
	if got, err := stranger.poll(t.Context()); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("another boot gets %v, %v", got, err)
	}
	stranger = *a
	stranger.show(nil)
	if got, err := stranger.poll(t.Context()); connect.CodeOf(err) != connect.CodePermissionDenied && connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("without a certificate: %v, %v", got, err)
	}
	csr, err := x509.ParseCertificateRequest(a.enrolRequest().GetCsr())
	must(t, err)
	chain, _, err := r.auth.SignAgent(csr, "m2", time.Now())
	must(t, err)
	stranger.show(&tls.Certificate{Certificate: chain, PrivateKey: a.key})
	if got, err := stranger.poll(t.Context()); err == nil {
		t.Errorf("another machine gets %v", got)
	}
	again, err := a.poll(t.Context())
	must(t, err)
	if string(again.Msg.GetTarget().GetSecrets()["disk"]) != testPassword {
		t.Error("the agent that asks again does not get the same")
	}
	close(release)
	r.end(id)
}

func TestPlanInstallRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		spec    func(*bloomeryv1.InstallSpec)
		machine func(*bloomeryv1.Machine)
		// want are "field REASON" of all refusals.
		want []string
	}{
		"good":                     {},
		"disk image with a layout": {spec: func(s *bloomeryv1.InstallSpec) { s.Image = "debian-12" }, want: []string{"spec.layout NEEDS_ROOTFS"}},
		"disk image with a secret": {spec: func(s *bloomeryv1.InstallSpec) { s.Image, s.Layout = "debian-12", nil }, want: []string{"spec.secrets NOT_USED"}},
		"no such image":            {spec: func(s *bloomeryv1.InstallSpec) { s.Image = "x" }, want: []string{"spec.image IMAGE_NOT_FOUND"}},
		"disk beside a layout":     {spec: func(s *bloomeryv1.InstallSpec) { s.Disk = &bloomeryv1.DiskRef{Serial: "DISK-A"} }, want: []string{"spec.disk LAYOUT_CHOOSES"}},
		"two names of a disk": {spec: func(s *bloomeryv1.InstallSpec) {
			s.Layout, s.Disk = nil, &bloomeryv1.DiskRef{Serial: "DISK-A", Wwn: "eui.1"}
		}, want: []string{"spec.disk TWO_NAMES"}},
		"not a layout": {spec: func(s *bloomeryv1.InstallSpec) { s.Layout = []byte("\t") }, want: []string{"spec.layout SYNTAX"}},
		"no inventory": {machine: func(m *bloomeryv1.Machine) { m.Inventory = nil }, want: []string{"spec.layout DISK_NOT_FOUND"}},
		"BIOS": {machine: func(m *bloomeryv1.Machine) {
			m.Inventory.Fields["bios"].GetStructValue().Fields["uefi"] = structpb.NewBoolValue(false)
		}, want: []string{"spec.image NEEDS_UEFI"}},
		"a disk that is not there": {spec: replace("DISK-A", "DISK-Z"), want: []string{"spec.layout.disks[1].select.serial DISK_NOT_FOUND"}},
		"no secret":                {spec: func(s *bloomeryv1.InstallSpec) { s.Secrets = nil }, want: []string{"spec.secrets[disk] REQUIRED"}},
		"short secret and a strange": {spec: func(s *bloomeryv1.InstallSpec) {
			s.Secrets = map[string][]byte{"disk": []byte("x"), "luks/root": []byte("own key")}
		}, want: []string{"spec.secrets NOT_USED", "spec.secrets[disk] LENGTH"}},
		"secret with a line end":   {spec: func(s *bloomeryv1.InstallSpec) { s.Secrets["disk"] = []byte("correct horse\n") }, want: []string{"spec.secrets[disk] NOT_TYPEABLE"}},
		"TPM on a machine without": {spec: replace("[key-file, passphrase]", "[tpm2, passphrase]"), want: []string{"spec.layout.luks[0].unlock[0] TPM2_MISSING"}},
	} {
		t.Run(name, func(t *testing.T) {
			spec, m, f := layoutSpec(), stepMachine(t), stepFacts()
			spec.Image = "debian-12-rootfs"
			for i := range f.Images {
				if f.Images[i].Name == spec.Image {
					f.Images[i].RootStacks = []string{images.StackLUKS, images.StackTPM2}
				}
			}
			if tc.spec != nil {
				tc.spec(spec)
			}
			if tc.machine != nil {
				tc.machine(m)
			}
			plan, err := planInstall(m, spec, f)
			var got []string
			var one *Refusal
			var all Refusals
			if errors.As(err, &one) {
				all = Refusals{one}
			} else if err != nil && !errors.As(err, &all) {
				t.Fatal(err)
			}
			for _, r := range all {
				got = append(got, r.Field+" "+r.Reason)
				if strings.Contains(r.Message, "correct horse") || strings.Contains(r.Message, "own key") {
					t.Errorf("a refusal tells a secret: %s", r.Message)
				}
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%v\n%s", err, diff)
			}
			if (plan != nil) != (len(tc.want) == 0) {
				t.Errorf("plan %v beside %v", plan, err)
			}
		})
	}
}

func replace(from, to string) func(*bloomeryv1.InstallSpec) {
	return func(s *bloomeryv1.InstallSpec) { s.Layout = bytes.ReplaceAll(s.Layout, []byte(from), []byte(to)) }
}

// A rootfs image without a layout goes onto the smallest disk that holds it, or the one that was asked for.
func TestDefaultLayout(t *testing.T) {
	for _, tc := range []struct {
		disk *bloomeryv1.DiskRef
		want string
	}{{nil, "DISK-B"}, {&bloomeryv1.DiskRef{Serial: "DISK-A"}, "DISK-A"}, {&bloomeryv1.DiskRef{Wwn: "eui.1"}, "DISK-A"}} {
		plan, err := planInstall(stepMachine(t), &bloomeryv1.InstallSpec{Image: "debian-12-rootfs", Disk: tc.disk}, stepFacts())
		must(t, err)
		if len(plan.Disks) != 1 || plan.Disks[0].Serial != tc.want {
			t.Errorf("asked for %v: %+v, want %s", tc.disk, plan.Disks, tc.want)
		}
	}
}
