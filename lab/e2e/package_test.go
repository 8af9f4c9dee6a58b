package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// packageTimeout bounds the machine's life; it takes a minute when it has the host to itself.
const packageTimeout = 12 * time.Minute

// packageCommand makes systemd run testdata/package.sh from the volume instead of bringing everything up (systemd-run-generator(8)).
const packageCommand = "console=ttyS0 root=/dev/vda2 rw quiet cloud-init=disabled systemd.run_success_action=none " +
	`systemd.run="/bin/sh -c 'mkdir -p /run/volume && mount -o ro /dev/vdb /run/volume && exec sh /run/volume/package.sh'"`

// TestPackage installs, starts, upgrades, restores and removes the Debian package on a virtual machine with Debian 12.
func TestPackage(t *testing.T) {
	out := needRack(t)
	libraries := filepath.Join(out, "libraries")
	image := filepath.Join(out, "images", "debian-12.raw")
	for _, path := range []string{libraries, image, filepath.Join(out, "bin", "bloomery-agent")} {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("make test has not built what this needs: %v", err)
		}
	}
	t.Parallel()
	takeTurn(t, 0, 1)
	dir := t.TempDir()
	packages := filepath.Join(dir, "packages")
	for _, version := range []string{"1", "2"} {
		runTool(t, "../../packaging/build-deb", filepath.Join(out, "bin"), version, packages)
	}
	again := filepath.Join(dir, "again")
	runTool(t, "../../packaging/build-deb", filepath.Join(out, "bin"), "1", again)
	sameFiles(t, filepath.Join(packages, "bloomery_1_amd64.deb"), filepath.Join(again, "bloomery_1_amd64.deb"))

	volume := newVolume(t, dir, packages, libraries)
	disk := filepath.Join(dir, "disk.qcow2")
	runTool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", disk, "4G")
	kernel, initrd := bootFiles(t, dir, image)
	console := filepath.Join(dir, "console")
	ctx, cancel := context.WithTimeout(t.Context(), packageTimeout)
	defer cancel()
	begin := time.Now()
	text, err := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-machine", "q35", "-accel", "tcg,tb-size=256", "-cpu", "max", "-smp", "2", "-m", "512", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-kernel", kernel, "-initrd", initrd, "-append", packageCommand,
		"-drive", "if=virtio,format=qcow2,cache=unsafe,file="+disk, "-drive", "if=virtio,format=raw,readonly=on,file="+volume,
		"-device", "virtio-rng-pci", "-serial", "file:"+console).CombinedOutput()
	said, readErr := os.ReadFile(console)
	if err != nil || readErr != nil {
		t.Fatalf("the virtual machine: %v %v: %s\n%s", err, readErr, text, tail(said))
	}
	for _, line := range regexp.MustCompile(`PACKAGE-TEST [^\r\n]*`).FindAll(said, -1) {
		t.Log(string(line))
	}
	t.Logf("the machine ran for %s", time.Since(begin).Round(time.Second))
	if !bytes.Contains(said, []byte("PACKAGE-TEST PASSED")) {
		t.Errorf("the package's test did not pass:\n%s", tail(said))
	}
}

// bootFiles copies the kernel and its initramfs out of an image's second partition.
func bootFiles(t *testing.T, dir, image string) (kernel, initrd string) {
	t.Helper()
	sectors := strings.TrimSpace(runTool(t, "partx", "-g", "-o", "START", "-n", "2", image))
	start, err := strconv.ParseInt(sectors, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	root := fmt.Sprintf("%s?offset=%d", image, start*512)
	version := regexp.MustCompile(`/vmlinuz-([^/]+)/`).FindStringSubmatch(runTool(t, "debugfs", "-R", "ls -p /boot", root))
	if version == nil {
		t.Fatalf("%s has no kernel in /boot", image)
	}
	kernel, initrd = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd")
	runTool(t, "debugfs", "-R", "dump /boot/vmlinuz-"+version[1]+" "+kernel, root)
	runTool(t, "debugfs", "-R", "dump /boot/initrd.img-"+version[1]+" "+initrd, root)
	return kernel, initrd
}

// newVolume makes a FAT volume with the script and the packages.
func newVolume(t *testing.T, dir, packages, libraries string) string {
	t.Helper()
	volume := filepath.Join(dir, "volume")
	runTool(t, "truncate", "-s", "128M", volume)
	runTool(t, "mkfs.vfat", volume)
	debs, err := filepath.Glob(filepath.Join(packages, "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	libs, err := filepath.Glob(filepath.Join(libraries, "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	runTool(t, "mcopy", append([]string{"-i", volume, "testdata/package.sh"}, append(debs, "::/")...)...)
	runTool(t, "mmd", "-i", volume, "::/lib")
	runTool(t, "mcopy", append([]string{"-i", volume}, append(libs, "::/lib/")...)...)
	return volume
}

// runTool runs a tool of the host and returns what it wrote.
func runTool(t *testing.T, name string, args ...string) string {
	t.Helper()
	text, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, text)
	}
	return string(text)
}

func sameFiles(t *testing.T, a, b string) {
	t.Helper()
	first, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("two packages of the same programs differ")
	}
}

// tail is the end of a console's text.
func tail(text []byte) string {
	const keep = 8 << 10
	return string(text[max(0, len(text)-keep):])
}
