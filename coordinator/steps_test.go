package coordinator

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
	"bloomery/partition/layout"
)

func stepMachine(t *testing.T) *bloomeryv1.Machine {
	t.Helper()
	return &bloomeryv1.Machine{
		Name: "m1", Status: available, Macs: []string{testMAC}, Network: ProvisioningNetwork,
		SwitchPort: &bloomeryv1.SwitchPort{Switch: "tor1", Port: "Ethernet1"}, Inventory: fakeInventory(t),
	}
}

func stepFacts() Facts {
	return Facts{
		JobID: "j1", AwaitTimeout: 10 * time.Minute, Address: netip.MustParsePrefix("10.77.0.100/24"), PhoneHomeURLs: []string{"http://10.77.0.1/phone-home/TOKEN", "http://10.77.0.2/phone-home/TOKEN"},
		Images: []ImageFacts{{Name: "debian-12", SizeBytes: 2 << 30, ManifestSHA256: "ab", RootPartition: 2, ESPPartition: 1,
			Kexec: true, Kernel: "/vmlinuz", Initrd: "/initrd.img", CommandLine: "root=/dev/vda2 ro"}, {Name: "large", SizeBytes: 1 << 40},
			{Name: "windows", SizeBytes: 8 << 30, ManifestSHA256: "ef", ESPPartition: 1, SeedLabel: "config-2"},
			{Name: "debian-12-rootfs", Kind: images.KindRootfs, SizeBytes: 1 << 30, ManifestSHA256: "cd", Kexec: true, Kernel: "/vmlinuz", Initrd: "/initrd.img", CommandLine: "ro quiet"}},
		Networks: []Network{{Name: ProvisioningNetwork}, {Name: "customer-a", Prefix: netip.MustParsePrefix("10.77.0.0/24"), Gateway: netip.MustParseAddr("10.77.0.1")}},
	}
}

func TestStepsGolden(t *testing.T) {
	released := stepMachine(t)
	released.Network = "customer-a"
	setCustomerDisks(released, []*bloomeryv1.DiskRef{{Serial: "DISK-A"}, {Serial: "DISK-B"}, {Serial: "PULLED"}})
	dirty := stepMachine(t)
	setCustomerDisks(dirty, []*bloomeryv1.DiskRef{{Serial: "DISK-A"}})
	install := Request{bloomeryv1.JobKind_JOB_KIND_INSTALL, &bloomeryv1.InstallSpec{Image: "debian-12", Network: "customer-a"}}
	rootfs := Request{bloomeryv1.JobKind_JOB_KIND_INSTALL, &bloomeryv1.InstallSpec{Image: "debian-12-rootfs", Network: "customer-a"}}
	opaque := Request{bloomeryv1.JobKind_JOB_KIND_INSTALL, &bloomeryv1.InstallSpec{Image: "windows", Network: "customer-a"}}
	mirrored := func(f *Facts) { f.Plan = mirrorPlan() }
	dirtyOther := stepMachine(t)
	setCustomerDisks(dirtyOther, []*bloomeryv1.DiskRef{{Serial: "DISK-A"}, {Serial: "PULLED"}})
	for name, tc := range map[string]struct {
		m     *bloomeryv1.Machine
		r     Request
		facts func(*Facts)
	}{
		"inspect":                    {stepMachine(t), Request{Kind: bloomeryv1.JobKind_JOB_KIND_INSPECT}, nil},
		"install":                    {stepMachine(t), install, nil},
		"install-opaque":             {stepMachine(t), opaque, nil},
		"install-dirty-disk":         {dirty, install, nil},
		"release":                    {released, Request{Kind: bloomeryv1.JobKind_JOB_KIND_RELEASE}, nil},
		"install-layout":             {stepMachine(t), rootfs, mirrored},
		"install-layout-dirty-disks": {dirtyOther, rootfs, mirrored},
	} {
		t.Run(name, func(t *testing.T) {
			facts := stepFacts()
			if tc.facts != nil {
				tc.facts(&facts)
			}
			steps, err := Steps(tc.m, tc.r, facts)
			must(t, err)
			var b strings.Builder
			for _, s := range steps {
				raw, err := protojson.Marshal(s)
				must(t, err)
				var v any
				must(t, json.Unmarshal(raw, &v))
				line, err := json.Marshal(v)
				must(t, err)
				b.Write(append(line, '\n'))
			}
			golden(t, "testdata/steps-"+name+".jsonl", b.String())
		})
	}
}

// mirrorPlan is a plan with an EFI system partition on each of two disks.
func mirrorPlan() *layout.Plan {
	parts := []layout.PartitionPlan{{Number: 1, Type: espType}, {Number: 2, Type: "a19d880f-05fc-4d3b-a006-743f0f84911e"}}
	return &layout.Plan{Format: layout.PlanFormat, UEFI: true, Disks: []layout.DiskPlan{
		{Name: "a", Serial: "DISK-A", WWN: "eui.1", Table: true, Partitions: parts},
		{Name: "b", Serial: "DISK-B", Table: true, Partitions: parts},
	}}
}

func TestInstallRefusals(t *testing.T) {
	good := &bloomeryv1.InstallSpec{Image: "debian-12", Network: "customer-a"}
	for name, tc := range map[string]struct {
		spec          func(*bloomeryv1.InstallSpec)
		machine       func(*bloomeryv1.Machine)
		field, reason string
		says          []string
	}{
		"image":                        {spec: func(s *bloomeryv1.InstallSpec) { s.Image = "debian-99" }, field: "spec.image", reason: "IMAGE_NOT_FOUND", says: []string{"debian-99", "debian-12, debian-12-rootfs, large"}},
		"network":                      {spec: func(s *bloomeryv1.InstallSpec) { s.Network = "customer-z" }, field: "spec.network", reason: "NETWORK_NOT_FOUND", says: []string{"customer-a"}},
		"no install into provisioning": {spec: func(s *bloomeryv1.InstallSpec) { s.Network = ProvisioningNetwork }, field: "spec.network", reason: "NETWORK_NOT_FOUND"},
		"serial":                       {spec: func(s *bloomeryv1.InstallSpec) { s.Disk = &bloomeryv1.DiskRef{Serial: "NOPE"} }, field: "spec.disk", reason: "DISK_NOT_FOUND", says: []string{"NOPE", "DISK-A", "DISK-B"}},
		"wwn of another disk":          {spec: func(s *bloomeryv1.InstallSpec) { s.Disk = &bloomeryv1.DiskRef{Serial: "DISK-B", Wwn: "eui.1"} }, field: "spec.disk", reason: "DISK_NOT_FOUND"},
		"no inventory":                 {machine: func(m *bloomeryv1.Machine) { m.Inventory = nil }, field: "spec.disk", reason: "DISK_NOT_FOUND", says: []string{"inspect"}},
		"small":                        {spec: func(s *bloomeryv1.InstallSpec) { s.Image = "large" }, field: "spec.disk", reason: "DISK_TOO_SMALL", says: []string{"1099511627776", "8589934592"}},
		"user data":                    {spec: func(s *bloomeryv1.InstallSpec) { s.UserData = []byte("#cloud-config\n\t- :") }, field: "spec.user_data", reason: "USER_DATA_INVALID"},
		"user data size":               {spec: func(s *bloomeryv1.InstallSpec) { s.UserData = make([]byte, 64<<10+1) }, field: "spec.user_data", reason: "USER_DATA_INVALID", says: []string{"65536"}},
		"key":                          {spec: func(s *bloomeryv1.InstallSpec) { s.SshKeys = []string{"not a key"} }, field: "spec.ssh_keys[0]", reason: "SSH_KEY_INVALID"},
		"host":                         {spec: func(s *bloomeryv1.InstallSpec) { s.Hostname = "-x-" }, field: "spec.hostname", reason: "HOSTNAME_INVALID"},
		"no port":                      {machine: func(m *bloomeryv1.Machine) { m.SwitchPort = nil }, field: "spec.network", reason: "NO_SWITCH_PORT"},
	} {
		t.Run(name, func(t *testing.T) {
			spec, m := proto.Clone(good).(*bloomeryv1.InstallSpec), stepMachine(t)
			if tc.spec != nil {
				tc.spec(spec)
			}
			if tc.machine != nil {
				tc.machine(m)
			}
			_, err := Steps(m, Request{bloomeryv1.JobKind_JOB_KIND_INSTALL, spec}, stepFacts())
			var refusal *Refusal
			if !errors.As(err, &refusal) || refusal.Field != tc.field || refusal.Reason != tc.reason {
				t.Fatalf("got %#v, want %s %s", err, tc.field, tc.reason)
			}
			for _, text := range tc.says {
				if !strings.Contains(refusal.Message, text) {
					t.Errorf("%q does not say %q", refusal.Message, text)
				}
			}
		})
	}
}

func TestMayStart(t *testing.T) {
	for name, tc := range map[string]struct {
		m      *bloomeryv1.Machine
		kind   bloomeryv1.JobKind
		reason string
	}{
		"running is not installed over": {&bloomeryv1.Machine{Status: running}, bloomeryv1.JobKind_JOB_KIND_INSTALL, "WRONG_STATUS"},
		"running is not inspected":      {&bloomeryv1.Machine{Status: running}, bloomeryv1.JobKind_JOB_KIND_INSPECT, "WRONG_STATUS"},
		"discovered":                    {&bloomeryv1.Machine{Status: discovered}, bloomeryv1.JobKind_JOB_KIND_INSTALL, "WRONG_STATUS"},
		"locked":                        {&bloomeryv1.Machine{Status: available, Lock: &bloomeryv1.Lock{Team: "x"}}, bloomeryv1.JobKind_JOB_KIND_INSTALL, "MACHINE_LOCKED"},
		"busy":                          {&bloomeryv1.Machine{Status: available, JobId: "j"}, bloomeryv1.JobKind_JOB_KIND_INSTALL, "MACHINE_BUSY"},
		"good":                          {&bloomeryv1.Machine{Status: available}, bloomeryv1.JobKind_JOB_KIND_INSTALL, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var refusal *Refusal
			if err := mayStart(tc.m, tc.kind); errors.As(err, &refusal) != (tc.reason != "") || (refusal != nil && refusal.Reason != tc.reason) {
				t.Errorf("got %v, want %q", err, tc.reason)
			}
		})
	}
}
