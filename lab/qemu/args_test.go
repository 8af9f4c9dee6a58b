package qemu

import (
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

func TestArgs(t *testing.T) {
	spec := Spec{
		Name: "m1", Accel: "tcg", CPUs: 2, MemoryMiB: 512, UUID: "5b3e7a52-0f6e-4f4c-9a01-000000000001", Serial: "BLM1", Product: "Lab Machine",
		Code: "/ovmf/code.fd", Vars: "/r/vars.fd", Console: "/r/con.sock", QMP: "/r/qmp.sock", BMC: "/r/bmc.sock", TPM: "/r/tpm.sock",
		Disks: []Disk{
			{Bus: "nvme", Path: "/r/disk0.raw", Serial: "S0", WWN: "0123456789abcdef"},
			{Bus: "nvme", Path: "/r/disk1.raw", Serial: "S1"}, {Bus: "virtio", Path: "/r/disk2.raw", Serial: "S2"},
			{Bus: "nvme", Path: "/r/disk3.raw", Serial: "S3", Pulled: true}, {Bus: "nvme", Path: "/r/disk4.raw", Serial: "S4", Sector: 4096},
			{Bus: "virtio", Path: "/r/disk5.raw", Serial: "S5", Sector: 4096}, {Bus: "scsi", Path: "/r/disk6.raw", Serial: "S6", WWN: "5000c50012345678", Sector: 512},
		},
		NICs: []NIC{{MAC: "52:54:00:00:00:01", Socket: "/r/net0.sock"}, {MAC: "52:54:00:00:00:02", Socket: "/r/net1.sock"}},
	}
	for name, boot := range map[string]Boot{"none": BootNone, "network": BootNetwork, "disk": BootDisk} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(Args(spec, boot), "\n") + "\n"
			golden := "testdata/boot-" + name + ".args"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("command line differs (-want +got; -update writes it):\n%s", diff)
			}
		})
	}
	spec.Accel = "kvm"
	if args := strings.Join(Args(spec, BootNone), " "); !strings.Contains(args, "-accel kvm -smp") {
		t.Errorf("kvm: %s", args)
	}
}
