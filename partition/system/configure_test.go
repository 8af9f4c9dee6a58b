package system

import (
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"bloomery/partition/layout"
)

var update = flag.Bool("update", false, "write the golden files anew")

// planOf plans one of the layouts of docs/layouts onto disks that suit it.
func planOf(t *testing.T, name string) *layout.Plan {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../docs/layouts", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return planFor(t, string(text))
}

func planFor(t *testing.T, text string) *layout.Plan {
	t.Helper()
	l, err := layout.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var disks []layout.Disk
	for i := range 4 {
		disks = append(disks, layout.Disk{Name: fmt.Sprintf("nvme%dn1", i), Serial: fmt.Sprintf("S%d", i), WWN: fmt.Sprintf("eui.%d", i), Transport: "nvme",
			SizeBytes: 16 << 30, LogicalSector: 512, PhysicalSector: 512})
	}
	p, err := layout.MakePlan(l, disks, layout.Target{UEFI: true, TPM2: true, Seed: "job-1"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// image makes a tree as a rootfs image unpacks to, as far as Configure looks at it.
func image(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range map[string]string{
		"boot/vmlinuz-6.1": "kernel", "boot/initrd.img-6.1": "initrd", shimFile: "shim", grubFile: "grub", mokManagerFile: "mok manager",
		"usr/lib/os-release": "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("boot/vmlinuz-6.1", filepath.Join(root, "vmlinuz")); err != nil {
		t.Fatal(err)
	}
	return root
}

func options(p *layout.Plan) Options {
	return Options{Plan: p, Kernel: "/vmlinuz", Initrd: "/boot/initrd.img-6.1", CommandLine: "ro console=ttyS0 root=/dev/sda1 quiet", Secrets: map[string][]byte{}}
}

// tree shows a tree's files, but for the image's own.
func tree(t *testing.T, root string) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		name := strings.TrimPrefix(path, root)
		if err != nil || entry.IsDir() || strings.HasPrefix(name, "/usr/lib/") || name == "/boot/vmlinuz-6.1" || name == "/vmlinuz" {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		text := strings.ReplaceAll(string(content), "\x00", "·")
		fmt.Fprintf(&out, "== %s %v\n%s\n", name, info.Mode(), strings.TrimSuffix(text, "\n"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestConfigure(t *testing.T) {
	for _, name := range []string{"single-disk", "raid1-lvm", "btrfs", "luks-key"} {
		t.Run(name, func(t *testing.T) {
			var p *layout.Plan
			if name == "luks-key" {
				p = planFor(t, luksLayout)
			} else {
				p = planOf(t, name)
			}
			o, root := options(p), image(t)
			o.Secrets["luks/home"], o.Secrets["luks/root"] = []byte("home key"), []byte("root key")
			boot, err := Configure(t.Context(), root, o)
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			fmt.Fprintf(&got, "%s\n%s\n%s\n", boot.Kernel, boot.Initrd, boot.CommandLine)
			for _, l := range boot.Loaders {
				fmt.Fprintf(&got, "%+v\n", l)
			}
			first := tree(t, root)
			got.WriteString(first)
			golden(t, name, got.String())

			if _, err := Configure(t.Context(), root, o); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(first, tree(t, root)); diff != "" {
				t.Errorf("configured again, it differs:\n%s", diff)
			}
		})
	}
}

// luksLayout has a volume under the root, which the initial RAM filesystem opens, and another, whose key must not lie there.
const luksLayout = `
format: bloomery.layout/v1
disks:
  - name: system
    select: {pick: smallest}
    partitions:
      - {label: efi, type: esp, size: 512MiB}
      - {label: boot, size: 1GiB}
      - {label: root, size: 50%}
      - {label: home, size: rest}
luks:
  - {name: root, device: part/system/root, unlock: [key-file]}
  - {name: home, device: part/system/home, unlock: [key-file]}
filesystems:
  - {device: part/system/efi, format: vfat, mount_point: /boot/efi}
  - {device: part/system/boot, format: ext4, mount_point: /boot}
  - {device: luks/root, format: ext4, mount_point: /}
  - {device: luks/home, format: xfs, mount_point: /home}
`

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func TestConfigureRefuses(t *testing.T) {
	cases := map[string]struct {
		change func(o *Options, root string)
		want   string
	}{
		"BIOS":           {func(o *Options, _ string) { o.Plan.UEFI = false }, "through a BIOS"},
		"no kernel":      {func(o *Options, _ string) { o.Kernel = "/boot/none" }, "find the kernel"},
		"folder":         {func(o *Options, _ string) { o.Kernel = "/boot" }, "/boot is no file"},
		"no key":         {func(o *Options, _ string) { delete(o.Secrets, "luks/root") }, `needs the secret "luks/root"`},
		"forged plan":    {func(o *Options, _ string) { o.Plan.Files[1].MountPoint = "/boot\n/dev/sda / ext4" }, "mount_point"},
		"no ESP mounted": {func(o *Options, _ string) { o.Plan.Files[0].MountPoint = "" }, "no EFI system partition"},
		"no loader":      {func(_ *Options, root string) { _ = os.Remove(filepath.Join(root, shimFile)) }, "boot loader"},
		"link outside": {func(_ *Options, root string) {
			_ = os.MkdirAll(filepath.Join(root, "etc"), 0o755)
			_ = os.Symlink("../../outside", filepath.Join(root, "etc/cryptsetup-keys.d"))
		}, "escapes"},
		"link loop": {func(o *Options, root string) {
			_ = os.Symlink("loop", filepath.Join(root, "loop"))
			o.Initrd = "/loop"
		}, "symbolic links"},
		"encrypted boot": {func(o *Options, _ string) { o.Plan.Files[1].MountPoint = "/srv" }, "the boot loader cannot open"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			o, root := options(planFor(t, luksLayout)), image(t)
			o.Secrets["luks/home"], o.Secrets["luks/root"] = []byte("home key"), []byte("root key")
			tc.change(&o, root)
			if _, err := Configure(t.Context(), root, o); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error = %v, want %q in it", err, tc.want)
			}
		})
	}
}

func TestWithSegmentReplaces(t *testing.T) {
	one := withSegment([]byte("abc"), segment([]earlyFile{{"cryptroot/crypttab", 0o644, []byte("one")}}))
	if len(one)%4 != 0 || string(one[:4]) != "abc\x00" {
		t.Errorf("the segment does not begin at a multiple of 4 bytes: %q", one[:8])
	}
	two := segment([]earlyFile{{"cryptroot/crypttab", 0o644, []byte("two")}})
	if diff := cmp.Diff(withSegment([]byte("abc\x00"), two), withSegment(one, two)); diff != "" {
		t.Errorf("a second time:\n%s", diff)
	}
}
