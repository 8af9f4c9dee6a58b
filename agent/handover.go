package agent

import (
	"context"
	"fmt"
	"syscall"

	pb "bloomery/api/bloomery/v1"
)

// Ways to start the installed system.
const (
	handoverKexec    = "kexec"
	handoverFirmware = "firmware"
)

// installedKernel is what kexec starts. All of it comes from the image's signed manifest.
type installedKernel struct {
	// Kernel and Initrd are absolute paths in the root filesystem; Initrd may be empty.
	Kernel, Initrd string
	CommandLine    string
}

// handoverResult says how the installed system is started.
type handoverResult struct {
	Method string `json:"method"`
	Why    string `json:"why"`
}

// handover writes everything to the disks and loads the installed kernel where that is possible. The restart itself follows once the coordinator
// has acknowledged that this step ended (runner.step): a machine that restarted without its coordinator knowing would look like one that
// crashed. What keeps a kernel from being loaded is no error: the firmware starts the same system, only later.
func (s *stepRun) handover(ctx context.Context, spec *pb.HandoverStep) (any, error) {
	result := handoverResult{Method: handoverKexec, Why: "the image allows it and the machine's kernel has loaded " + spec.GetKernel()}
	if why := s.loadKernel(ctx, spec); why != "" {
		result = handoverResult{Method: handoverFirmware, Why: plain(why)}
	}
	syscall.Sync()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s.kexec = result.Method == handoverKexec
	s.agent.console.say("start of the installed system: %s, because %s", result.Method, result.Why)
	return result, nil
}

// loadKernel gives why there is no kernel to jump into, or "".
func (s *stepRun) loadKernel(ctx context.Context, spec *pb.HandoverStep) string {
	if spec.GetKernel() == "" {
		return "the image's manifest names no kernel for kexec"
	}
	if why := s.agent.options.System.KexecBlocked(); why != "" {
		return why
	}
	if spec.Disk == nil {
		return s.loadLayoutKernel(ctx)
	}
	disk, err := s.disk(ctx, spec.Disk)
	if err != nil {
		return fmt.Sprintf("the installed disk was not found: %v", err)
	}
	kernel := installedKernel{Kernel: spec.Kernel, Initrd: spec.Initrd, CommandLine: spec.CommandLine}
	if err := s.agent.options.Installer.LoadKernel(ctx, disk.Path, int(spec.Partition), kernel); err != nil {
		return fmt.Sprintf("the installed kernel was not loaded: %v", err)
	}
	return ""
}

// loadLayoutKernel is loadKernel for a system on a plan's filesystems. Its command line was made when it was configured.
func (s *stepRun) loadLayoutKernel(ctx context.Context) string {
	kernel, ok := s.agent.runner.configured[s.jobID]
	if !ok {
		return "the machine was restarted since the system was configured"
	}
	installer, _, err := s.layout()
	if err != nil {
		return fmt.Sprintf("the installed kernel was not loaded: %v", err)
	}
	if err := installer.LoadKernel(ctx, kernel); err != nil {
		return fmt.Sprintf("the installed kernel was not loaded: %v", err)
	}
	return ""
}
