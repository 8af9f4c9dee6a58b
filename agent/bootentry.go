package agent

import (
	"context"
	"errors"

	pb "bloomery/api/bloomery/v1"
	"bloomery/partition"
)

// bootEntry makes the firmware start the installed disk, at the next start and whenever the order is left as it is.
func (s *stepRun) bootEntry(ctx context.Context, spec *pb.BootEntryStep) (any, error) {
	disk, err := s.disk(ctx, spec.Disk)
	if err != nil {
		return nil, err
	}
	entry, err := s.agent.options.Installer.SetBootEntry(ctx, disk.Path, int(spec.EspPartition), spec.LoaderPath, spec.Description, spec.KeepOthers)
	if errors.Is(err, partition.ErrTable) {
		return nil, failed(reasonPartitionTable, err)
	}
	if err != nil {
		return nil, failed(reasonBootEntry, err)
	}
	return map[string]any{"entry": entry.Name()}, nil
}
