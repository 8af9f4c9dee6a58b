package agent

import (
	"context"
	"errors"
	"fmt"

	pb "bloomery/api/bloomery/v1"
	"bloomery/inventory"
	"bloomery/partition"
	"bloomery/partition/wipe"
)

// wipeReport is what the coordinator certifies.
type wipeReport struct {
	wipe.Result
	Disk         inventory.Disk `json:"disk"`
	AgentVersion string         `json:"agent_version"`
}

// wipe removes what the disk holds. A disk that cannot be wiped makes the machine faulty: it must not change hands. So does one that is gone:
// the coordinator knows it from the machine's inventory, and nobody knows what is on it and where it is.
func (s *stepRun) wipe(ctx context.Context, spec *pb.WipeStep) (any, error) {
	disk, err := s.disk(ctx, spec.Disk)
	var failure *StepError
	if errors.As(err, &failure) && failure.Reason == reasonDiskNotFound {
		return nil, faulty(reasonDiskMissing, fmt.Errorf("a disk that was in this machine is missing: %w", failure.Err))
	}
	if err != nil {
		return nil, err
	}
	target := wipe.Target{
		Path: disk.Path, SizeBytes: int64(disk.SizeBytes), Transport: disk.Transport, Rotational: disk.Rotational, Removable: disk.Removable, ReadOnly: disk.ReadOnly,
		Named: spec.Named,
	}
	result, err := s.agent.options.Installer.Wipe(ctx, target, wipeLevel(spec.Level), func(done, total int64, message string) {
		s.progress(&pb.Progress{DoneBytes: done, TotalBytes: total, Message: message})
	})
	var report any
	if !result.Started.IsZero() {
		report = wipeReport{result, disk, s.agent.options.Version}
	}
	switch {
	case errors.Is(err, partition.ErrInUse):
		return report, failed(reasonDiskInUse, err)
	case errors.Is(err, wipe.ErrRefused):
		return report, failed(reasonDiskRefused, err)
	case err != nil:
		return report, faulty(reasonWipe, err)
	}
	return report, nil
}

func wipeLevel(l pb.WipeLevel) wipe.Level {
	switch l {
	case pb.WipeLevel_WIPE_LEVEL_SIGNATURES:
		return wipe.Signatures
	case pb.WipeLevel_WIPE_LEVEL_ERASE:
		return wipe.Erase
	}
	return wipe.Quick
}
