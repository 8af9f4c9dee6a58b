//go:build guest

package apply

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"bloomery/internal/run"
	"bloomery/lab/guest"
	"bloomery/partition"
	"bloomery/partition/layout"
)

const mib = 1 << 20

// newMachine works on the guest's own disks; what a test leaves active is stopped before the disks are given back.
func newMachine(t *testing.T, disks ...guest.Disk) *Machine {
	t.Helper()
	m := &Machine{
		Disks: partition.Disks{Runner: run.Exec{}},
		Find: func(_ context.Context, serial, _ string) (string, error) {
			d, err := guest.Find(serial)
			return d.Path, err
		},
		Secrets: map[string][]byte{"luks/data": []byte(strings.Repeat("\x00\nk", 20)), "phrase": []byte("correct horse")},
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		for _, d := range disks {
			if err := m.Stop(ctx, d.Path); err != nil {
				t.Errorf("stop %s: %v", d.Serial, err)
			}
		}
		for _, d := range disks {
			m.wipeAll(t, d)
		}
	})
	return m
}

// wipeAll lets no superblock survive in partitions that the next test may make at the same place.
func (m *Machine) wipeAll(t *testing.T, d guest.Disk) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := m.tool(ctx, []string{"wipefs", "--all", "--force", d.Path}); err != nil {
		t.Error(err)
	}
}

// uuid is an identifier that is the plan's own.
func uuid(n int) string { return fmt.Sprintf("b100e000-0000-4000-8000-%012x", n) }

const (
	typeESP   = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	typeLinux = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	typeRAID  = "a19d880f-05fc-4d3b-a006-743f0f84911e"
	typeLVM   = "e6d6d379-f507-44c2-a23c-238f2a3df928"
)

// part is a partition of a planned disk, which begins where the one before it ends.
type part struct {
	label string
	kind  string
	mib   int64
}

// planDisk puts partitions one after another onto a disk.
func planDisk(name string, base int, d guest.Disk, parts ...part) layout.DiskPlan {
	plan := layout.DiskPlan{
		Name: name, Serial: d.Serial, WWN: d.WWN, SizeBytes: d.SizeBytes, SectorSize: d.LogicalSector, Table: len(parts) > 0, GUID: uuid(base),
	}
	at := int64(mib)
	for i, p := range parts {
		plan.Partitions = append(plan.Partitions, layout.PartitionPlan{
			Number: i + 1, Label: p.label, Type: p.kind, GUID: uuid(base + i + 1), StartBytes: at, SizeBytes: p.mib * mib,
		})
		at += p.mib * mib
	}
	return plan
}

func apply(t *testing.T, m *Machine, p *layout.Plan) {
	t.Helper()
	if err := m.Apply(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}

// command runs a program and gives what it printed.
func command(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "DM_DISABLE_UDEV=1", "MDADM_NO_UDEV=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}
