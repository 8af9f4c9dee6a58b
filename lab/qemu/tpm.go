package qemu

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// TPMBinary is the TPM emulator (Debian package swtpm).
const TPMBinary = "swtpm"

// tpmTimeout is how long the emulator may take to leave after its QEMU.
const tpmTimeout = 5 * time.Second

// TPM is a TPM 2.0 emulator for one run of a QEMU, as a chip is powered with its machine. What it holds stays in its folder.
type TPM struct {
	cmd  *exec.Cmd
	done chan struct{}
}

// TPMOptions are how an emulator is started.
type TPMOptions struct {
	// Dir is its folder, Socket where QEMU connects to it.
	Dir, Socket string
	Env         []string
	// Output gets its messages.
	Output *os.File
	// Launch starts the command, as Options.Launch does.
	Launch func(*exec.Cmd) error
}

// StartTPM starts an emulator that ends with the QEMU that connects to it.
func StartTPM(o TPMOptions) (*TPM, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("starting the TPM: %w", err)
	}
	if err := os.Remove(o.Socket); err != nil && !os.IsNotExist(err) {
		return nil, fmt.Errorf("starting the TPM: %w", err)
	}
	// It is given a socket that listens already, so that QEMU need not wait for it.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Socket, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("starting the TPM: %w", err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	file, err := l.File()
	if err != nil {
		return nil, fmt.Errorf("starting the TPM: %w", err)
	}
	defer file.Close()
	t := &TPM{cmd: exec.Command(TPMBinary, "socket", "--tpm2", "--tpmstate", "dir="+filepath.Clean(o.Dir)+",mode=0600", "--ctrl", "type=unixio,fd=3", "--terminate"), done: make(chan struct{})}
	t.cmd.Env, t.cmd.Stdout, t.cmd.Stderr, t.cmd.ExtraFiles = o.Env, o.Output, o.Output, []*os.File{file}
	t.cmd.SysProcAttr = sysProcAttr()
	if err := o.Launch(t.cmd); err != nil {
		return nil, fmt.Errorf("starting the TPM (Debian package swtpm): %w", err)
	}
	go func() {
		_ = t.cmd.Wait() // it ends when its QEMU does, with whatever state
		close(t.done)
	}()
	return t, nil
}

// Stop waits until the emulator, whose QEMU must be gone, has written its state and left; one that stays is killed. A machine without a TPM
// has a nil one.
func (t *TPM) Stop() {
	if t == nil {
		return
	}
	select {
	case <-t.done:
	case <-time.After(tpmTimeout):
		_ = t.cmd.Process.Kill() // fails only if it has ended
		<-t.done
	}
}

// TPMArgs connect a QEMU to the emulator at a socket.
func TPMArgs(socket string) []string {
	return []string{
		"-chardev", "socket,id=tpmctl,path=" + socket,
		"-tpmdev", "emulator,id=tpm0,chardev=tpmctl",
		"-device", "tpm-crb,tpmdev=tpm0",
	}
}
