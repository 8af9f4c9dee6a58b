package initramfs

import (
	"bytes"
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// boot runs the image in an emulated machine of 512 MiB until it powers off, and returns its console.
func boot(t *testing.T, r *Result, commandLine string) string {
	t.Helper()
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skipf("cannot boot the image: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, "-accel", "tcg", "-cpu", "max", "-smp", "2", "-m", "512", "-nic", "none", "-nographic", "-no-reboot",
		"-device", "virtio-rng-pci", "-kernel", r.Kernel, "-initrd", r.Initramfs, "-append", "console=ttyS0,115200 quiet panic=5 "+commandLine)
	var console bytes.Buffer
	cmd.Stdout, cmd.Stderr = &console, &console
	if err := cmd.Run(); err != nil {
		t.Errorf("boot: %v", err)
	}
	return console.String()
}

// TestToolsRun boots the image of the real sysroot in 512 MiB and runs every tool in it.
func TestToolsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("it boots QEMU; run without -short")
	}
	_, result := probeImage(t)
	start := time.Now()
	console := boot(t, result, "")
	ok := 0
	for line := range strings.Lines(console) {
		switch {
		case strings.Contains(line, "PROBE OK"):
			ok++
		case strings.Contains(line, "PROBE FAIL"):
			t.Error(strings.TrimSpace(line))
		}
	}
	if !strings.Contains(console, "PROBE done") || !strings.Contains(console, `PROBE config {"probe":true}`) {
		t.Errorf("the boot did not come to its end:\n%s", lastLines(console, 30))
	}
	t.Logf("%d probes ok in %.0f s", ok, time.Since(start).Seconds())
}

// TestNoShellOnConsole lets the agent's stand-in end: the machine must restart (QEMU then exits) and no shell prompt appear.
func TestNoShellOnConsole(t *testing.T) {
	if testing.Short() {
		t.Skip("it boots QEMU; run without -short")
	}
	_, result := probeImage(t)
	console := boot(t, result, "probe=exit")
	if !strings.Contains(console, "bloomery-agent has ended") {
		t.Errorf("no word of the restart on the console:\n%s", lastLines(console, 30))
	}
	if strings.Contains(console, "BusyBox") || strings.Contains(console, "/ #") {
		t.Errorf("a shell was started:\n%s", lastLines(console, 30))
	}
}

// TestRealBuildIsReproducible builds the full image twice without a cache and checks the size goal.
func TestRealBuildIsReproducible(t *testing.T) {
	_, first := probeImage(t)
	base := t.TempDir()
	buildProbe(t, realSysroot(t), base)
	second, err := Assemble(t.Context(), AssembleOptions{Base: base, Config: []byte(`{"probe":true}`), Out: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, first.UKI), read(t, second.UKI)) {
		t.Error("two builds of the same inputs are different UKIs")
	}
	if const40 := int64(40e6); second.UKIBytes > const40 {
		t.Errorf("UKI has %d bytes, the goal is %d", second.UKIBytes, const40)
	}
	checkUKI(t, read(t, second.UKI), []section{{".linux", read(t, second.Kernel)}, {".initrd", read(t, second.Initramfs)}})
}
