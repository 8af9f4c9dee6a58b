package agent

import (
	"context"
	"errors"

	pb "bloomery/api/bloomery/v1"
	"bloomery/partition"
	"bloomery/partition/wipe"
)

// wipe removes what the disk holds. A disk that cannot be wiped makes the machine faulty: it must not change hands.
func (s *stepRun) wipe(ctx context.Context, spec *pb.WipeStep) (any, error) {
	disk, err := s.disk(ctx, spec.Disk)
	if err != nil {
		return nil, err
	}
	target := wipe.Target{Path: disk.Path, SizeBytes: int64(disk.SizeBytes), Transport: disk.Transport, Rotational: disk.Rotational}
	result, err := s.agent.options.Installer.Wipe(ctx, target, wipeLevel(spec.Level), func(done, total int64, message string) {
		s.progress(&pb.Progress{DoneBytes: done, TotalBytes: total, Message: message})
	})
	switch {
	case errors.Is(err, partition.ErrInUse):
		return result, failed(reasonDiskInUse, err)
	case err != nil:
		return result, faulty(reasonWipe, err)
	}
	return result, nil
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
