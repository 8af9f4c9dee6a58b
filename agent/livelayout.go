package agent

import (
	"context"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/u-root/u-root/pkg/boot/kexec"

	"bloomery/cloudinit"
	"bloomery/images"
	"bloomery/internal/run"
	"bloomery/partition"
	"bloomery/partition/apply"
	"bloomery/partition/layout"
	"bloomery/partition/system"
)

const (
	// layoutTool bounds one run of a tool that makes something of a layout: mkfs on a slow disk of many terabytes, or a checker.
	layoutTool = 15 * time.Minute
	tpmDevice  = "/dev/tpmrm0"
)

// liveLayout carries out a plan on the machine's own disks.
type liveLayout struct {
	plan    *layout.Plan
	machine *apply.Machine
}

// Layout implements Installer.
func (l *live) Layout(t layoutTarget) LayoutInstaller {
	return &liveLayout{plan: t.plan, machine: &apply.Machine{Disks: partition.Disks{Runner: run.Exec{Timeout: layoutTool}}, Find: t.find, Secrets: t.secrets}}
}

// Apply implements LayoutInstaller.
func (l *liveLayout) Apply(ctx context.Context, progress func(a layout.Action, done, total int)) (apply.Report, error) {
	l.machine.Progress = progress
	if err := l.machine.Apply(ctx, l.plan); err != nil {
		return apply.Report{}, err
	}
	return l.machine.Verify(ctx, l.plan)
}

// Renew implements LayoutInstaller.
func (l *liveLayout) Renew(ctx context.Context) error { return l.machine.Renew(ctx, l.plan) }

// Unpack implements LayoutInstaller.
func (l *liveLayout) Unpack(ctx context.Context, o images.UnpackOptions) (result images.UnpackResult, err error) {
	err = l.machine.WithRoot(ctx, l.plan, func(root string) (err error) {
		o.Root = root
		result, err = images.Unpack(ctx, o)
		return err
	})
	return result, err
}

// Configure implements LayoutInstaller.
func (l *liveLayout) Configure(ctx context.Context, k installedKernel) (boot system.Boot, err error) {
	o := system.Options{
		Plan: l.plan, Kernel: k.Kernel, Initrd: k.Initrd, CommandLine: k.CommandLine, Secrets: l.machine.Secrets, Runner: l.machine.Disks.Runner,
		Device:  func(ref layout.Ref) (string, error) { return l.machine.Device(ctx, l.plan, ref) },
		OpenTPM: func() (transport.TPMCloser, error) { return linuxtpm.Open(tpmDevice) },
	}
	err = l.machine.WithRoot(ctx, l.plan, func(root string) (err error) {
		boot, err = system.Configure(ctx, root, o)
		return err
	})
	return boot, err
}

// WriteSeed implements LayoutInstaller.
func (l *liveLayout) WriteSeed(ctx context.Context, seed cloudinit.NoCloud) error {
	return l.machine.WithRoot(ctx, l.plan, func(root string) error { return cloudinit.WriteSeed(root, seed) })
}

// LoadKernel implements LayoutInstaller. The kernel has its own copy when it returns.
func (l *liveLayout) LoadKernel(ctx context.Context, k installedKernel) error {
	return l.machine.WithRoot(ctx, l.plan, func(root string) error { return loadKernel(root, k, kexec.FileLoad) })
}
