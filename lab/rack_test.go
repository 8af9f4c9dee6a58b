package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"bloomery/firmware/bmc"
	"bloomery/lab/netns"
)

const termination = syscall.SIGTERM

// up brings a small rack up without coordinator and takes it down at the end.
func up(t *testing.T, c Config) Status {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	if _, err := exec.LookPath(qemuBinary); err != nil {
		t.Skip("needs qemu-system-x86_64")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "lab") // t.TempDir's names are too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, f := range []string{"supervisor", "console-m1", "qemu-m1"} {
				t.Logf("%s: %s", f, lastLines(layout{dir}.log(f)))
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := Down(ctx, DownOptions{StateDir: dir, Rack: c.Name}); err != nil {
			t.Errorf("down: %v", err)
		}
	})
	st, err := Up(t.Context(), UpOptions{Config: c, StateDir: dir, Bloomery: self, NoCoordinator: true, Progress: func(s string) { t.Log(s) }})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func testRack(name string) Config {
	c := Default(1)
	c.Name = name
	c.Machines[0].Disks = []Disk{{Bus: "nvme", Size: 64 * MiB, Serial: "NVME0001"}, {Bus: "virtio", Size: 64 * MiB, Serial: "VIRTIO01", Sector: 4096},
		{Bus: "scsi", Size: 64 * MiB, Serial: "SCSI0001", WWN: "5000c50012345678"}}
	c.Machines[0].MemoryMiB, c.Machines[0].TPM = 256, true
	return c
}

// dialBMC opens a session from inside the rack's namespace, where the BMCs' addresses are. Sockets that
// are opened there stay there.
func dialBMC(t *testing.T, st Status) bmc.Driver {
	t.Helper()
	c, err := LoadEffective(st.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	var d bmc.Driver
	err = netns.Do(coordinatorNamespace(c.Name), func() (err error) {
		b := c.Machines[0].BMC
		d, err = bmc.DialIPMI(t.Context(), bmc.Options{Address: b.Address, Username: b.Username, Password: b.Password})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close(context.Background()) })
	return d
}

// capture collects what a port carries.
type capture struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.buf.Write(p)
}

func (c *capture) contains(s string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return bytes.Contains(c.buf.Bytes(), []byte(s))
}

func eventually(t *testing.T, within time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		if f() {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, within)
		}
	}
}

// TestMachine powers a real QEMU with OVMF through its BMC: a network boot asks DHCP for HTTP boot, off takes
// effect at once, faults and reset reach a machine that runs. What a disk boots is for the installs in lab/e2e.
func TestMachine(t *testing.T) {
	if testing.Short() {
		t.Skip("it boots QEMU; run without -short")
	}
	st := up(t, testRack(fmt.Sprintf("t%d", os.Getpid())))
	client := NewClient(st.StateDir)
	d := dialBMC(t, st)
	ctx := t.Context()

	frames := &capture{}
	capCtx, stopCapture := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := client.Capture(capCtx, "Ethernet1", frames); err != nil {
			t.Errorf("capture: %v", err)
		}
	})
	defer wg.Wait()
	defer stopCapture()

	if err := d.SetBootDevice(ctx, bmc.BootDevice{Target: bmc.BootNetwork, Once: true, UEFI: true}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := d.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, "DHCP of UEFI HTTP boot", func() bool { return frames.contains("HTTPClient:Arch:00016") })
	t.Logf("power on to DHCP DISCOVER of HTTPClient: %s", time.Since(begin).Round(10*time.Millisecond))
	con, err := client.Console(ctx, "m1")
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1024)
	n, err := con.Read(buf)
	if err != nil || n == 0 {
		t.Errorf("console: %d bytes, %v", n, err)
	}
	if err := con.Close(); err != nil {
		t.Error(err)
	}

	begin = time.Now()
	if err := d.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	if on, err := d.PowerStatus(ctx); err != nil || on || time.Since(begin) > 5*time.Second {
		t.Errorf("after off: on=%t, %v, %s", on, err, time.Since(begin))
	}
	for _, f := range []Fault{{Kind: "smart-warning", Machine: "m1", Bits: 4}, {Kind: "nonsense", Machine: "m1"}, {Kind: "link-down", Machine: "nobody"},
		{Kind: "pull-disk", Machine: "m1", Serial: "NONE"}} {
		if err := client.Fault(ctx, f); err == nil {
			t.Errorf("fault %+v of a machine that is off was accepted", f)
		}
	}

	if err := d.PowerOn(ctx); err != nil {
		t.Fatal(err)
	}
	for _, f := range []Fault{
		{Kind: "smart-warning", Machine: "m1", Bits: 4}, {Kind: "slow-disk", Machine: "m1", Disk: 1, BytesPerSecond: 1 << 20},
		{Kind: "link-down", Machine: "m1"}, {Kind: "link-up", Machine: "m1"}, {Kind: "port-down", Port: "Ethernet1"}, {Kind: "port-up", Port: "Ethernet1"},
		{Kind: "pull-disk", Machine: "m1", Serial: "NVME0001"}, {Kind: "pull-disk", Machine: "m1", Serial: "NVME0001"}, {Kind: "pull-disk", Machine: "m1", Serial: "SCSI0001"},
		{Kind: "insert-disk", Machine: "m1", Serial: "SCSI0001"},
	} {
		if err := client.Fault(ctx, f); err != nil {
			t.Errorf("fault %+v: %v", f, err)
		}
	}
	if err := d.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	now, err := client.Status(ctx)
	if err != nil || !now.Machines[0].On || now.Machines[0].Starts != 3 || !slices.Equal(now.Machines[0].PulledDisks, []string{"NVME0001"}) {
		t.Errorf("after on, pulled disks and reset: %+v, %v", now.Machines, err)
	}
	command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", now.Machines[0].PID))
	if err != nil || bytes.Contains(command, []byte("NVME0001")) || !bytes.Contains(command, []byte("SCSI0001")) {
		t.Errorf("the machine was started with %q (%v): want it without the disk that was pulled, and with the one that was put in again", command, err)
	}
	if err := client.Power(ctx, "m1", "off"); err != nil {
		t.Error(err)
	}
	if left, err := markedProcesses(st.StateDir); err != nil || len(left) != 1 {
		t.Errorf("with its machine off the rack has the processes %v (%v), want the supervisor alone: a TPM goes off with its machine", left, err)
	}
	if _, err := os.Stat(filepath.Join(layout{st.StateDir}.tpm("m1"), "tpm2-00.permall")); err != nil {
		t.Errorf("the TPM has kept nothing: %v", err)
	}
}

// TestDownAfterKill kills everything and damages the state; Down must still find it all.
func TestDownAfterKill(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts QEMU; run without -short")
	}
	st := up(t, testRack(fmt.Sprintf("k%d", os.Getpid())))
	client := NewClient(st.StateDir)
	if err := client.Power(t.Context(), "m1", "on"); err != nil {
		t.Fatal(err)
	}
	before, err := markedProcesses(st.StateDir)
	if err != nil || len(before) != 3 {
		t.Fatalf("processes of the rack: %v, %v; want supervisor, QEMU and TPM", before, err)
	}
	s, err := layout{st.StateDir}.load()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Supervisor.kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "QEMU and TPM die with their supervisor", func() bool {
		left, err := markedProcesses(st.StateDir)
		return err == nil && len(left) == 0
	})
	for name, text := range map[string]string{"state.json": "{\"rack\": ", "rack.yaml": "\x00\xff:::"} {
		if err := os.WriteFile(filepath.Join(st.StateDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A stray child of the rack that nobody wrote down.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	stray := exec.Command(self)
	stray.Env = append(os.Environ(), "LAB_TEST_WAIT=1", envMarker+"="+st.StateDir)
	if err := stray.Start(); err != nil {
		t.Fatal(err)
	}
	go stray.Wait()
	eventually(t, 5*time.Second, "the stray runs", func() bool {
		found, err := markedProcesses(st.StateDir)
		return err == nil && len(found) == 1
	})
	for range 2 { // the second finds nothing and is no error
		if err := Down(t.Context(), DownOptions{StateDir: st.StateDir}); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := markedProcesses(st.StateDir); err != nil || len(left) > 0 {
		t.Errorf("processes left: %v, %v", left, err)
	}
	entries, err := os.ReadDir(netns.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), coordinatorNamespace(st.Rack)) {
			t.Errorf("namespace left: %s", e.Name())
		}
	}
	if _, err := os.Stat(st.StateDir); !os.IsNotExist(err) {
		t.Errorf("state directory is still there: %v", err)
	}
}
