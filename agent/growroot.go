package agent

import (
	"context"
	"errors"

	pb "bloomery/api/bloomery/v1"
	"bloomery/partition"
)

// growRoot gives the rest of the disk to the image's last partition and its filesystem.
func (s *stepRun) growRoot(ctx context.Context, spec *pb.GrowRootStep) (any, error) {
	disk, err := s.disk(ctx, spec.Disk)
	if err != nil {
		return nil, err
	}
	result, err := s.agent.options.Installer.GrowRoot(ctx, disk.Path, int(spec.Partition))
	switch {
	case errors.Is(err, partition.ErrNotLast):
		// As some systems' makers publish them: the root keeps its size.
		return map[string]any{"grown": false, "why": err.Error()}, nil
	case errors.Is(err, partition.ErrTable):
		return nil, failed(reasonPartitionTable, err)
	case errors.Is(err, partition.ErrInUse):
		return nil, failed(reasonDiskInUse, err)
	case err != nil:
		return nil, failed(reasonGrow, err)
	}
	return result, nil
}
