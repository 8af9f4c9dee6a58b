//go:build guest

package system

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"

	"bloomery/internal/run"
	"bloomery/lab/guest"
	"bloomery/partition"
	"bloomery/partition/apply"
	"bloomery/partition/layout"
)

const tpmLayout = `
format: bloomery.layout/v1
disks:
  - name: system
    select: {pick: smallest}
    partitions:
      - {label: efi, type: esp, size: 64MiB}
      - {label: boot, size: 64MiB}
      - {label: root, size: rest}
luks:
  - {name: guestroot, device: part/system/root, unlock: [tpm2]}
filesystems:
  - {device: part/system/efi, format: vfat, mount_point: /boot/efi}
  - {device: part/system/boot, format: ext4, mount_point: /boot}
  - {device: luks/guestroot, format: ext4, mount_point: /}
`

// TestConfigureOnDisks configures a system on real filesystems, with a volume that cryptsetup made and the machine's TPM opens, twice.
func TestConfigureOnDisks(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	d := guest.Take(t, guest.NVMe, 1)[0]
	l, err := layout.Parse([]byte(tpmLayout))
	if err != nil {
		t.Fatal(err)
	}
	disk := layout.Disk{Name: d.Name, Serial: d.Serial, WWN: d.WWN, Transport: "nvme", SizeBytes: d.SizeBytes, LogicalSector: d.LogicalSector, PhysicalSector: d.LogicalSector}
	p, err := layout.MakePlan(l, []layout.Disk{disk}, layout.Target{UEFI: true, TPM2: true, Seed: t.Name()})
	if err != nil {
		t.Fatal(err)
	}
	secrets := map[string][]byte{"luks/guestroot": []byte(strings.Repeat("generated \x00\n", 5))}
	machine := &apply.Machine{Disks: partition.Disks{Runner: run.Exec{}}, Secrets: secrets, Find: func(_ context.Context, serial, _ string) (string, error) {
		d, err := guest.Find(serial)
		return d.Path, err
	}}
	t.Cleanup(func() {
		if err := machine.Stop(context.WithoutCancel(ctx), d.Path); err != nil {
			t.Errorf("give the disk back: %v", err)
		}
	})
	if err := machine.Apply(ctx, p); err != nil {
		t.Fatal(err)
	}
	image := image(t)
	var bound luksHeader
	for range 2 {
		err := machine.WithRoot(ctx, p, func(root string) error {
			if err := os.CopyFS(root, os.DirFS(image)); err != nil && !os.IsExist(err) {
				return err
			}
			o := options(p)
			o.Kernel, o.Secrets, o.Runner = "/boot/vmlinuz-6.1", secrets, run.Exec{}
			o.Device = func(ref layout.Ref) (string, error) { return machine.Device(ctx, p, ref) }
			o.OpenTPM = func() (transport.TPMCloser, error) { return linuxtpm.Open("/dev/tpmrm0") }
			boot, err := Configure(ctx, root, o)
			if err != nil {
				return err
			}
			if len(boot.Loaders) != 1 || boot.Loaders[0].Serial != d.Serial || !strings.HasPrefix(boot.CommandLine, "root=/dev/mapper/guestroot ") {
				t.Errorf("boot %+v", boot)
			}
			if text, err := os.ReadFile(filepath.Join(root, "boot/efi/EFI/BOOT/BOOTX64.EFI")); err != nil || string(text) != "shim" {
				t.Errorf("the loader is %q, %v", text, err)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		dev, err := machine.Device(ctx, p, "part/system/3")
		if err != nil {
			t.Fatal(err)
		}
		c := crypt{runner: run.Exec{}, dev: dev}
		header, err := c.header(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if len(header.Tokens) != 1 || len(header.Keyslots) != 2 {
			t.Fatalf("%d tokens, %d key slots", len(header.Tokens), len(header.Keyslots))
		}
		if len(bound.Tokens) > 0 && bound.Tokens["0"].JWE != header.Tokens["0"].JWE {
			t.Error("the volume was bound anew")
		}
		bound = header
	}
}
