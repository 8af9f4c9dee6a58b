package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	pb "bloomery/api/bloomery/v1"
	"bloomery/firmware/efiboot"
)

func TestHandover(t *testing.T) {
	with := &pb.HandoverStep{Disk: &pb.DiskRef{Serial: "S1"}, Partition: 2, Kernel: "/vmlinuz", Initrd: "/initrd.img", CommandLine: "ro"}
	gone := &pb.HandoverStep{Disk: &pb.DiskRef{Serial: "S9"}, Partition: 2, Kernel: "/vmlinuz"}
	for _, c := range []struct {
		name   string
		step   *pb.HandoverStep
		change func(*fakeMachine)
		method string
		why    string
		loads  int
		// started is how the machine restarts in the end.
		started string
	}{
		{"kexec", with, func(*fakeMachine) {}, "kexec", "/vmlinuz", 1, "kexec"},
		{"not allowed", &pb.HandoverStep{}, func(*fakeMachine) {}, "firmware", "names no kernel", 0, "firmware"},
		{"locked down", with, func(m *fakeMachine) { m.blocked = "the kernel is locked down" }, "firmware", "locked down", 0, "firmware"},
		{"load refused", with, func(m *fakeMachine) { m.loadErr = unix.EPERM }, "firmware", "operation not permitted", 1, "firmware"},
		{"disk gone", gone, func(*fakeMachine) {}, "firmware", "disk was not found", 0, "firmware"},
		{"jump fails", with, func(m *fakeMachine) { m.kexecErr = unix.EINVAL }, "kexec", "/vmlinuz", 1, "firmware"},
	} {
		t.Run(c.name, func(t *testing.T) {
			coordinator, m := newFakeCoordinator(t, &pb.Step{Id: "a", Spec: &pb.Step_Handover{Handover: c.step}}), newFakeMachine()
			c.change(m)
			startAgent(t, coordinator, m)
			started := ""
			select {
			case <-m.rebooted:
				started = "firmware"
			case <-m.kexeced:
				started = "kexec"
			case <-time.After(15 * time.Second):
			}
			if started != c.started {
				t.Errorf("started by %q, want %q", started, c.started)
			}
			ends := coordinator.ends("a")
			if len(ends) != 1 || !ends[0].Ok {
				t.Fatalf("the end was not acknowledged before the start: %v", ends)
			}
			result := ends[0].Result.AsMap()
			if result["method"] != c.method || !strings.Contains(result["why"].(string), c.why) {
				t.Errorf("result %v, want %s because of %q", result, c.method, c.why)
			}
			if got := m.count("load /dev/vda 2"); got != c.loads {
				t.Errorf("loaded %d times, want %d", got, c.loads)
			}
			if want := (installedKernel{"/vmlinuz", "/initrd.img", "ro"}); c.loads > 0 && m.loaded != want {
				t.Errorf("loaded %+v, want %+v", m.loaded, want)
			}
		})
	}
}

func TestLoadKernel(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	write(t, outside, "secret")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "boot/vmlinuz-6"), "kernel")
	write(t, filepath.Join(dir, "boot/initrd-6"), "initrd")
	write(t, filepath.Join(dir, "empty"), "")
	write(t, filepath.Join(dir, "large"), "")
	for name, target := range map[string]string{
		"vmlinuz": "boot/vmlinuz-6", "absolute": "/boot/vmlinuz-6", "out": outside, "up": "../../../../../../../../.." + outside,
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "large"), maxKernelSize+1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	refused := errors.New("refused")
	for _, c := range []struct {
		name           string
		kernel, initrd string
		loadErr        error
		want           string // of the error
	}{
		{"through a link", "/vmlinuz", "/boot/initrd-6", nil, ""},
		{"no initrd", "/boot/vmlinuz-6", "", nil, ""},
		{"refused", "/vmlinuz", "/boot/initrd-6", refused, "refused"},
		{"missing kernel", "/nothing", "", nil, "kernel: "},
		{"missing initrd", "/vmlinuz", "/nothing", nil, "initrd: "},
		{"absolute link", "/absolute", "", nil, "escapes"},
		{"link to outside", "/out", "", nil, "escapes"},
		{"link upwards", "/vmlinuz", "/up", nil, "escapes"},
		{"path upwards", "/../secret", "", nil, "escapes"},
		{"folder", "/boot", "", nil, "not a regular file"},
		{"pipe", "/pipe", "", nil, "not a regular file"},
		{"empty", "/empty", "", nil, "0 bytes"},
		{"large", "/large", "", nil, "67108865 bytes"},
		{"root", "/", "", nil, "kernel: "},
	} {
		t.Run(c.name, func(t *testing.T) {
			called := false
			err := loadKernel(dir, installedKernel{c.kernel, c.initrd, "ro quiet"}, func(kernel, initrd *os.File, commandLine string) error {
				called = true
				if content := readAll(t, kernel); content != "kernel" || commandLine != "ro quiet" {
					t.Errorf("kernel %q with command line %q", content, commandLine)
				}
				if (initrd == nil) != (c.initrd == "") || (initrd != nil && readAll(t, initrd) != "initrd") {
					t.Errorf("wrong initrd %v", initrd)
				}
				return c.loadErr
			})
			if c.want == "" && (err != nil || !called) {
				t.Errorf("loaded %v, error %v", called, err)
			}
			if c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want %q", err, c.want)
			}
			if called != (c.want == "" || c.loadErr != nil) {
				t.Errorf("given to the kernel: %v", called)
			}
		})
	}
}

func TestKexecBlocked(t *testing.T) {
	const secureBoot = "SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	for _, c := range []struct{ name, lockdown, secureBoot, want string }{
		{"free", "[none] integrity confidentiality\n", "\x06\x00\x00\x00\x00", ""},
		{"nothing known", "", "", ""},
		{"locked down", "none [integrity] confidentiality\n", "", "locked down"},
		{"secure boot", "[none] integrity confidentiality\n", "\x06\x00\x00\x00\x01", "Secure Boot is on"},
		{"damaged variable", "", "\x06\x00\x00\x00", "unknown"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.lockdown != "" {
				write(t, filepath.Join(dir, "lockdown"), c.lockdown)
			}
			if c.secureBoot != "" {
				write(t, filepath.Join(dir, secureBoot), c.secureBoot)
			}
			got := kexecBlocked(filepath.Join(dir, "lockdown"), efiboot.Root(dir))
			if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func readAll(t *testing.T, f *os.File) string {
	t.Helper()
	data, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
