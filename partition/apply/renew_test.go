package apply

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"bloomery/internal/run"
	"bloomery/partition"
	"bloomery/partition/layout"
)

// TestRenew makes a filesystem anew on a loop device: its files are gone, and it is as planned.
func TestRenew(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("skipped: loop devices need root")
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	const size = 256 << 20
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), "losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Fatalf("losetup: %v", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup: %v: %s", err, out)
		}
	})
	p := &layout.Plan{
		Format: layout.PlanFormat,
		Disks:  []layout.DiskPlan{{Name: "a", Serial: "LOOP", SizeBytes: size, SectorSize: 512}},
		Files:  []layout.FilesystemPlan{{Device: "disk/a", Format: layout.FormatExt4, UUID: "b100e000-0000-4000-8000-000000000004", MountPoint: "/", SizeBytes: size}},
	}
	m := &Machine{Disks: partition.Disks{Runner: run.Exec{}}, Find: func(context.Context, string, string) (string, error) { return dev, nil }}
	ctx := t.Context()
	if err := m.Apply(ctx, p); err != nil {
		t.Fatal(err)
	}
	if err := m.WithRoot(ctx, p, func(root string) error { return os.WriteFile(filepath.Join(root, "half"), []byte("written"), 0o600) }); err != nil {
		t.Fatal(err)
	}
	if err := m.Renew(ctx, p); err != nil {
		t.Fatal(err)
	}
	if err := m.WithRoot(ctx, p, func(root string) error {
		if _, err := os.Stat(filepath.Join(root, "half")); !os.IsNotExist(err) {
			t.Errorf("the file after renewing: %v", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r, err := m.Verify(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err != nil || len(r.Objects) == 0 {
		t.Errorf("%d objects were verified: %v", len(r.Objects), err)
	}
}
