//go:build !guest

package guest

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"bloomery/lab/qemu"
)

const (
	// bootTimeout is for what is not tests: the machine's start, on a host that has other work.
	bootTimeout = 3 * time.Minute
	memoryMiB   = 768
)

// TestGuest boots the machine and reports each test that ran in it.
func TestGuest(t *testing.T) {
	if testing.Short() {
		t.Skip("skipped: -short asks for no machines")
	}
	image := imageDir(t)
	packages, err := findPackages(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if packages, err = selected(packages, flag.Lookup("test.run").Value.String()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	plan, err := compile(t.Context(), dir, packages, allDisks())
	if err != nil {
		t.Fatal(err)
	}
	initrd := filepath.Join(dir, "initrd")
	if err := writeInitrd(initrd, filepath.Join(image, "base.cpio.zst"), dir, plan, packages); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootTimeout+time.Duration(len(packages))*PackageTimeout)
	defer cancel()
	begin := time.Now()
	console := filepath.Join(dir, "console")
	err = boot(ctx, t, dir, filepath.Join(image, "vmlinuz"), initrd, console, plan, func(results []result) {
		for _, r := range results {
			report(t, r)
		}
	})
	t.Logf("the machine ran for %.0f s", time.Since(begin).Seconds())
	if err != nil {
		said, readErr := os.ReadFile(console)
		t.Errorf("%v\nthe machine's console (%v):\n%s", err, readErr, lastOf(said))
	}
}

// report makes a guest test's result that of a test here.
func report(t *testing.T, r result) {
	t.Run(r.name, func(t *testing.T) {
		text := strings.Join(r.output, "")
		switch r.verdict {
		case "pass":
			t.Log(text)
		case "skip":
			t.Skip(text)
		case "unfinished":
			t.Errorf("it did not end:\n%s", text)
		default:
			t.Error(text)
		}
	})
}

// imageDir is where `bloomery agent-image build` has put the image.
func imageDir(t *testing.T) string {
	out := os.Getenv("BLOOMERY_OUT")
	if out == "" {
		out = filepath.Join(moduleRoot, "out")
	}
	dir := filepath.Join(out, "agent-image")
	if _, err := os.Stat(filepath.Join(dir, "manifest.json")); err != nil {
		t.Skipf("skipped: no agent image (make image builds it): %v", err)
	}
	return dir
}

func allDisks() []string {
	var serials []string
	for _, d := range diskFiles() {
		serials = append(serials, d.serial)
	}
	return serials
}

// diskFile is a disk of the machine and how QEMU makes it.
type diskFile struct {
	serial string
	bytes  int64
	device string // what follows "-device"; the drive's name is the serial
}

func diskFiles() []diskFile {
	var disks []diskFile
	for i := 1; i <= VirtioDisks; i++ {
		s := fmt.Sprintf("%s%d", Virtio, i)
		disks = append(disks, diskFile{s, 512 << 20, fmt.Sprintf("virtio-blk-pci,drive=%s,serial=%s", s, s)})
	}
	for i := 1; i <= NVMeDisks; i++ {
		s := fmt.Sprintf("%s%d", NVMe, i)
		disks = append(disks, diskFile{s, 768 << 20, fmt.Sprintf("nvme,drive=%s,serial=%s", s, s)})
	}
	for i := 1; i <= Sector4KDisks; i++ {
		s := fmt.Sprintf("%s%d", Sector4K, i)
		disks = append(disks, diskFile{s, 1 << 30, fmt.Sprintf("nvme,drive=%s,serial=%s,logical_block_size=4096,physical_block_size=4096", s, s)})
	}
	return disks
}

// boot runs the machine to its end, reading its results.
func boot(ctx context.Context, t *testing.T, dir, kernel, initrd, console string, plan Plan, each func([]result)) error {
	args := []string{
		"-accel", "tcg,thread=multi,tb-size=256", "-machine", "q35", "-cpu", "max", "-smp", "2", "-m", fmt.Sprint(memoryMiB), "-nodefaults", "-no-user-config",
		"-display", "none", "-no-reboot", "-kernel", kernel, "-initrd", initrd, "-append", "console=ttyS0 quiet loglevel=4 panic=-1 random.trust_cpu=on",
		"-serial", "file:" + console, "-serial", "stdio", "-device", "virtio-rng-pci",
	}
	for _, d := range diskFiles() {
		path := filepath.Join(dir, d.serial)
		if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, d.bytes)); err != nil {
			return err
		}
		args = append(args, "-drive", fmt.Sprintf("if=none,id=%s,format=raw,cache=unsafe,discard=unmap,detect-zeroes=unmap,file=%s", d.serial, path), "-device", d.device)
	}
	// Machine and TPM are killed when the thread that started them ends, so that none outlives a test that was interrupted.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	log, err := os.Create(filepath.Join(dir, "qemu.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	socket := filepath.Join(dir, "tpm.sock")
	start := (*exec.Cmd).Start
	tpm, err := qemu.StartTPM(qemu.TPMOptions{Dir: filepath.Join(dir, "tpm"), Socket: socket, Env: os.Environ(), Output: log, Launch: start})
	if err != nil {
		return err
	}
	defer tpm.Stop()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", slices.Concat(args, qemu.TPMArgs(socket))...)
	cmd.Stderr = log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	results, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	readErr := readResults(t.Context(), results, plan, each)
	if err := cmd.Wait(); err != nil {
		said, logErr := os.ReadFile(log.Name())
		readErr = errors.Join(readErr, fmt.Errorf("QEMU: %w: %s", errors.Join(err, ctx.Err(), logErr), said))
	}
	return readErr
}
