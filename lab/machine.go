package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"bloomery/lab/bmc"
	"bloomery/lab/qemu"
)

// restartPause keeps a guest that resets itself at once from taking all of the host's time.
const restartPause = time.Second

var errOff = errors.New("the machine is off")

// machine is a server's power supply and firmware settings: it starts and kills its QEMU.
type machine struct {
	config  Machine
	layout  layout
	spec    qemu.Spec
	binary  string
	env     []string
	log     *slog.Logger
	spawn   *spawner
	qmp     net.Listener
	console *console
	bmc     *bmc.Server
	output  *os.File

	ctx context.Context // ends with the supervisor
	wg  sync.WaitGroup  // watchers

	op sync.Mutex // one power action at a time

	mu      sync.Mutex
	proc    *qemu.Process
	tpm     *qemu.TPM // runs while proc does
	starts  int
	since   time.Time
	cutNICs map[int]bool
	pulled  map[int]bool // disks
}

var _ bmc.Power = (*machine)(nil)

// On implements bmc.Power.
func (m *machine) On() bool { return m.process() != nil }

func (m *machine) process() *qemu.Process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proc
}

// PowerOn implements bmc.Power.
func (m *machine) PowerOn(ctx context.Context) error {
	m.op.Lock()
	defer m.op.Unlock()
	if m.On() {
		return nil
	}
	return m.start(ctx)
}

// PowerOff implements bmc.Power.
func (m *machine) PowerOff(context.Context) error {
	m.op.Lock()
	defer m.op.Unlock()
	m.stop()
	return nil
}

// Reset implements bmc.Power.
func (m *machine) Reset(ctx context.Context) error {
	m.op.Lock()
	defer m.op.Unlock()
	if !m.On() {
		return fmt.Errorf("machine %s: resetting: %w", m.config.Name, errOff)
	}
	m.stop()
	return m.start(ctx)
}

// Shutdown implements bmc.Power by the ACPI power button.
func (m *machine) Shutdown(ctx context.Context) error {
	p := m.process()
	if p == nil {
		return fmt.Errorf("machine %s: pressing the power button: %w", m.config.Name, errOff)
	}
	return p.ShutdownButton(ctx)
}

// start runs QEMU with the boot override that the BMC holds. The caller has op.
func (m *machine) start(ctx context.Context) error {
	if err := m.ctx.Err(); err != nil {
		return fmt.Errorf("machine %s: the rack is going down: %w", m.config.Name, err)
	}
	boot := m.bmc.Flags.Take()
	tpm, err := m.startTPM()
	if err != nil {
		m.log.Error("machine did not start", "error", err)
		return fmt.Errorf("machine %s: %w", m.config.Name, err)
	}
	p, err := qemu.Start(ctx, qemu.Options{
		Binary: m.binary, Args: qemu.Args(m.equipped(), qemuBoot(boot)), Env: m.env, Output: m.output, QMP: m.qmp, Launch: m.spawn.start,
	})
	if err != nil {
		tpm.Stop()
		m.log.Error("machine did not start", "error", err)
		return fmt.Errorf("machine %s: %w", m.config.Name, err)
	}
	m.mu.Lock()
	m.proc, m.tpm, m.since = p, tpm, time.Now()
	m.starts++
	var cut []int
	for i := range m.cutNICs {
		cut = append(cut, i)
	}
	m.mu.Unlock()
	for _, i := range cut {
		if err := p.SetLink(ctx, i, false); err != nil {
			m.log.Error("cable fault was not carried over to the new start", "nic", i, "error", err)
		}
	}
	m.log.Info("machine is on", "boot", boot.String(), "qemu", p.PID())
	m.wg.Go(func() { m.watch(p) })
	return nil
}

func qemuBoot(b bmc.Boot) qemu.Boot {
	switch b {
	case bmc.BootNetwork:
		return qemu.BootNetwork
	case bmc.BootDisk:
		return qemu.BootDisk
	}
	return qemu.BootNone
}

// startTPM starts the machine's TPM emulator; nil if it has no TPM.
func (m *machine) startTPM() (*qemu.TPM, error) {
	if !m.config.TPM {
		return nil, nil
	}
	name := m.config.Name
	return qemu.StartTPM(qemu.TPMOptions{Dir: m.layout.tpm(name), Socket: m.layout.tpmSocket(name), Env: m.env, Output: m.output, Launch: m.spawn.start})
}

// stop takes the power away. The caller has op.
func (m *machine) stop() {
	m.mu.Lock()
	p, tpm := m.proc, m.tpm
	m.proc, m.tpm = nil, nil
	m.mu.Unlock()
	if p != nil {
		p.Kill()
		tpm.Stop()
		m.log.Info("machine is off")
	}
}

// watch sees how QEMU ends by itself. A guest's reset starts it anew, as a real machine goes through
// its firmware again: with the override only if one was set meanwhile.
func (m *machine) watch(p *qemu.Process) {
	<-p.Done()
	m.op.Lock()
	defer m.op.Unlock()
	if m.process() != p {
		return // switched off or reset by the BMC
	}
	m.mu.Lock()
	tpm := m.tpm
	m.proc, m.tpm = nil, nil
	ran := time.Since(m.since)
	m.mu.Unlock()
	tpm.Stop()
	exit := p.Exit()
	m.log.Info("machine stopped", "why", exit.String(), "after", ran.Round(time.Millisecond))
	if exit != qemu.ExitReset || m.ctx.Err() != nil {
		return
	}
	if ran < restartPause {
		select {
		case <-time.After(restartPause - ran):
		case <-m.ctx.Done():
			return
		}
	}
	_ = m.start(m.ctx) // start has logged it, and a machine that does not come back is off
}

// cut plugs a NIC's cable in or out, now and over power cycles.
func (m *machine) cut(ctx context.Context, nic int, cut bool) error {
	if nic < 0 || nic >= len(m.config.NICs) {
		return fmt.Errorf("machine %s has no NIC %d", m.config.Name, nic)
	}
	m.mu.Lock()
	if cut {
		m.cutNICs[nic] = true
	} else {
		delete(m.cutNICs, nic)
	}
	p := m.proc
	m.mu.Unlock()
	if p == nil {
		return nil
	}
	return p.SetLink(ctx, nic, !cut)
}

// equipped is the machine with the disks that are in it.
func (m *machine) equipped() qemu.Spec {
	s := m.spec
	s.Disks = slices.Clone(s.Disks)
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range s.Disks {
		s.Disks[i].Pulled = m.pulled[i]
	}
	return s
}

// pull takes a disk out of the machine, also over power cycles, until it is put in again. A running machine has lost it at once; one that is put
// in comes with the next start.
func (m *machine) pull(ctx context.Context, serial string, out bool) error {
	i := slices.IndexFunc(m.config.Disks, func(d Disk) bool { return d.Serial == serial })
	if i < 0 {
		return fmt.Errorf("machine %s has no disk with serial %q; it has %s", m.config.Name, serial, strings.Join(m.serials(), ", "))
	}
	m.mu.Lock()
	was := m.pulled[i]
	m.pulled[i] = out
	p := m.proc
	m.mu.Unlock()
	if p == nil || was || !out {
		return nil
	}
	return p.PullDisk(ctx, i)
}

func (m *machine) serials() []string {
	var all []string
	for _, d := range m.config.Disks {
		all = append(all, d.Serial)
	}
	return all
}

// prepareMachine makes the machine's disks and firmware variables.
func prepareMachine(l layout, c Machine, varsTemplate string) error {
	for i, d := range c.Disks {
		f, err := os.OpenFile(l.disk(c.Name, i), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("machine %s: disk %d: %w", c.Name, i, err)
		}
		if err := errors.Join(f.Truncate(int64(d.Size)), f.Close()); err != nil {
			return fmt.Errorf("machine %s: disk %d: %w", c.Name, i, err)
		}
	}
	if _, err := os.Stat(l.vars(c.Name)); err == nil {
		return nil
	}
	if err := copyFile(l.vars(c.Name), varsTemplate); err != nil {
		return fmt.Errorf("machine %s: firmware variables: %w", c.Name, err)
	}
	return nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// machineSpec is what QEMU is told of a machine.
func machineSpec(l layout, accel string, code string, c Machine) qemu.Spec {
	s := qemu.Spec{
		Name: c.Name, Accel: accel, CPUs: c.CPUs, MemoryMiB: c.MemoryMiB, UUID: c.UUID, Serial: c.Serial, Product: c.Product,
		Code: code, Vars: l.vars(c.Name), Console: l.consoleSocket(c.Name), QMP: l.qmpSocket(c.Name), BMC: l.bmcSocket(c.Name),
	}
	for i, d := range c.Disks {
		s.Disks = append(s.Disks, qemu.Disk{Bus: d.Bus, Path: l.disk(c.Name, i), Serial: d.Serial, WWN: d.WWN, Sector: d.Sector})
	}
	if c.TPM {
		s.TPM = l.tpmSocket(c.Name)
	}
	for i, n := range c.NICs {
		s.NICs = append(s.NICs, qemu.NIC{MAC: n.MAC, Socket: l.nicSocket(c.Name, i)})
	}
	return s
}
