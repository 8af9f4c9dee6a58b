package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	pb "bloomery/api/bloomery/v1"
	"bloomery/images"
	"bloomery/partition/apply"
	"bloomery/partition/layout"
	"bloomery/partition/system"
)

// layoutTarget is a job's plan, with what opens its volumes and how its disks are found. The secrets are in no log and no error.
type layoutTarget struct {
	plan    *layout.Plan
	secrets map[string][]byte
	find    func(ctx context.Context, serial, wwn string) (string, error)
}

// appliedLayout is the result of an apply_layout step.
type appliedLayout struct {
	Actions int     `json:"actions"`
	Seconds float64 `json:"seconds"`
	// Objects are what was read back.
	Objects []apply.Object `json:"objects"`
}

// unpackedImage is the result of an unpack_image step.
type unpackedImage struct {
	Image   string `json:"image"`
	Entries int    `json:"entries"`
	// Bytes of files, and compressed bytes that came over the network.
	Bytes        int64   `json:"bytes"`
	FetchedBytes int64   `json:"fetched_bytes"`
	Seconds      float64 `json:"seconds"`
	// RestartReason says why the filesystems were made anew first.
	RestartReason string `json:"restart_reason,omitempty"`
}

// configuredSystem is the result of a configure_system step.
type configuredSystem struct {
	Kernel      string          `json:"kernel"`
	Initrd      string          `json:"initrd"`
	CommandLine string          `json:"command_line"`
	Loaders     []system.Loader `json:"loaders"`
}

// layout is the job's plan on this machine's disks.
func (s *stepRun) layout() (LayoutInstaller, *layout.Plan, error) {
	if s.target == nil {
		return nil, nil, failed(reasonNoPlan, errors.New("the step came without the job's plan"))
	}
	plan, err := layout.DecodePlan(s.target.GetPlan())
	if err != nil {
		return nil, nil, failed(reasonNoPlan, err)
	}
	target := layoutTarget{plan: plan, secrets: s.target.GetSecrets(), find: func(ctx context.Context, serial, wwn string) (string, error) {
		disk, err := s.disk(ctx, &pb.DiskRef{Serial: serial, Wwn: wwn})
		return disk.Path, err
	}}
	return s.agent.options.Installer.Layout(target), plan, nil
}

// applyLayout makes the disks what the plan says. It goes on where an interrupted attempt stopped.
func (s *stepRun) applyLayout(ctx context.Context, spec *pb.ApplyLayoutStep) (any, error) {
	installer, plan, err := s.layout()
	if err != nil {
		return nil, err
	}
	// The step names the disks that it destroys; a plan of other disks is not the one that it was made for.
	named := slices.EqualFunc(spec.Disks, plan.Disks, func(ref *pb.DiskRef, d layout.DiskPlan) bool { return ref.Serial == d.Serial && ref.Wwn == d.WWN })
	if !named {
		return nil, failed(reasonNoPlan, errors.New("the plan is of other disks than the step names"))
	}
	start, actions := time.Now(), 0
	report, err := installer.Apply(ctx, func(a layout.Action, done, total int) {
		actions = total
		s.progress(&pb.Progress{Percent: 100 * float64(done) / float64(max(1, total)), Message: a.Text})
	})
	result := appliedLayout{Actions: actions, Seconds: time.Since(start).Seconds(), Objects: report.Objects}
	if err == nil {
		err = report.Err()
	}
	return result, s.layoutError(err, reasonLayout)
}

// unpackImage unpacks a rootfs image into the plan's filesystems. Files that an interrupted attempt left cannot be told from the image's, so that
// the filesystems are made anew then.
func (s *stepRun) unpackImage(ctx context.Context, spec *pb.UnpackImageStep) (any, error) {
	installer, _, err := s.layout()
	if err != nil {
		return nil, err
	}
	source := s.agent.source()
	manifest, err := s.manifest(ctx, source, spec)
	if err != nil {
		return nil, err
	}
	options := images.UnpackOptions{Manifest: manifest, Source: source, Progress: func(p images.Progress) {
		s.progress(&pb.Progress{
			Percent: writePercent(p), DoneBytes: p.DiskDone, TotalBytes: p.DiskTotal, BytesPerSecond: p.BytesPerSecond, Message: "unpacking " + manifest.Name,
		})
	}}
	again := ""
	if s.step.GetAttempts() > 1 {
		again = fmt.Sprintf("attempt %d: an earlier one may have left files", s.step.GetAttempts())
	}
	for {
		if again != "" {
			s.agent.console.say("the filesystems are made anew: %s", again)
			if err := installer.Renew(ctx); err != nil {
				return nil, s.layoutError(err, reasonLayout)
			}
		}
		result, err := installer.Unpack(ctx, options)
		if errors.Is(err, images.ErrNotEmpty) && again == "" {
			again = err.Error()
			continue
		}
		if err != nil {
			return nil, s.layoutError(err, reasonUnpack)
		}
		return unpackedImage{
			Image: manifest.Name, Entries: result.Entries, Bytes: result.Bytes, FetchedBytes: result.DataBytes, Seconds: result.Elapsed.Seconds(), RestartReason: again,
		}, nil
	}
}

// configureSystem makes the unpacked system start from the plan's disks. What it starts with is kept for the handover.
func (s *stepRun) configureSystem(ctx context.Context, spec *pb.ConfigureSystemStep) (any, error) {
	installer, _, err := s.layout()
	if err != nil {
		return nil, err
	}
	boot, err := installer.Configure(ctx, installedKernel{Kernel: spec.Kernel, Initrd: spec.Initrd, CommandLine: spec.CommandLine})
	if err != nil {
		return nil, s.layoutError(err, reasonConfigure)
	}
	s.agent.runner.configured[s.jobID] = installedKernel{Kernel: boot.Kernel, Initrd: boot.Initrd, CommandLine: boot.CommandLine}
	return configuredSystem{Kernel: boot.Kernel, Initrd: boot.Initrd, CommandLine: boot.CommandLine, Loaders: boot.Loaders}, nil
}

// layoutError gives an error a reason unless it has one; a disk that cannot be read or written is the machine's fault.
func (s *stepRun) layoutError(err error, reason string) error {
	var known *StepError
	switch {
	case err == nil || errors.As(err, &known):
		return err
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EREMOTEIO):
		return faulty(reasonDiskWrite, err)
	case errors.Is(err, images.ErrCorrupt):
		return failed(reasonImageCorrupt, err)
	case errors.Is(err, images.ErrNotFound):
		return failed(reasonImageNotFound, err)
	case errors.Is(err, syscall.ENOSPC):
		return failed(reasonDiskTooSmall, err)
	}
	return failed(reason, err)
}
