package agent

import (
	"context"
	"errors"
	"syscall"

	pb "bloomery/api/bloomery/v1"
	"bloomery/partition"
)

// wipe removes what the disk holds. A disk that cannot be wiped makes the machine faulty: it must not change hands.
func (s *stepRun) wipe(ctx context.Context, spec *pb.WipeStep) (any, error) {
	disk, err := s.disk(ctx, spec.Disk)
	if err != nil {
		return nil, err
	}
	result, err := s.agent.options.Installer.Wipe(ctx, disk.Path, func(done, total int64, message string) {
		s.progress(&pb.Progress{DoneBytes: done, TotalBytes: total, Message: message})
	})
	switch {
	case errors.Is(err, partition.ErrInUse):
		return result, failed(reasonDiskInUse, err)
	case errors.Is(err, partition.ErrNotZero), errors.Is(err, syscall.EIO):
		return result, faulty(reasonWipe, err)
	case err != nil:
		return result, failed(reasonWipe, err)
	}
	return result, nil
}
