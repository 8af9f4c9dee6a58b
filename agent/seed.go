package agent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	pb "bloomery/api/bloomery/v1"
	"bloomery/cloudinit"
	"bloomery/partition"
)

// cloudInit writes the customer's seed into the installed filesystem. The user-data may hold secrets: nothing of it is said anywhere.
func (s *stepRun) cloudInit(ctx context.Context, spec *pb.CloudInitStep) (any, error) {
	if err := cloudinit.ValidateUserData(spec.UserData); err != nil {
		return nil, failed(reasonSeed, err)
	}
	seed := cloudinit.NoCloud{MetaData: spec.MetaData, UserData: spec.UserData, VendorData: spec.VendorData, NetworkConfig: spec.NetworkConfig}
	if spec.Disk == nil {
		installer, _, err := s.layout()
		if err != nil {
			return nil, err
		}
		if err := installer.WriteSeed(ctx, seed); err != nil {
			return nil, s.layoutError(err, reasonSeed)
		}
		return map[string]any{"path": "/" + cloudinit.SeedDir}, nil
	}
	disk, err := s.disk(ctx, spec.Disk)
	if err != nil {
		return nil, err
	}
	if err := s.agent.options.Installer.WriteSeed(ctx, disk.Path, int(spec.Partition), seed); err != nil {
		return nil, failed(reasonSeed, err)
	}
	return map[string]any{"path": "/" + cloudinit.SeedDir}, nil
}

// seedPartition gives a system that nothing is written into its seed in a partition of its own.
func (s *stepRun) seedPartition(ctx context.Context, spec *pb.SeedPartitionStep) (any, error) {
	if err := cloudinit.ValidateUserData(spec.UserData); err != nil {
		return nil, failed(reasonSeed, err)
	}
	files, err := cloudinit.Volume(spec.Label, cloudinit.NoCloud{MetaData: spec.MetaData, UserData: spec.UserData, VendorData: spec.VendorData, NetworkConfig: spec.NetworkConfig})
	if err != nil {
		return nil, failed(reasonSeed, err)
	}
	disk, err := s.disk(ctx, spec.Disk)
	if err != nil {
		return nil, err
	}
	info, err := s.agent.options.Installer.AddSeed(ctx, disk.Path, partition.Seed{Label: spec.Label, GUID: stepGUID(s.step.Id), Files: files, Behind: spec.ImageBytes})
	switch {
	case errors.Is(err, partition.ErrNoRoom):
		return nil, failed(reasonDiskTooSmall, err)
	case errors.Is(err, partition.ErrTable):
		return nil, failed(reasonPartitionTable, err)
	case errors.Is(err, partition.ErrInUse):
		return nil, failed(reasonDiskInUse, err)
	case err != nil:
		return nil, failed(reasonSeed, err)
	}
	return info, nil
}

// stepGUID derives a partition's identifier (RFC 9562, version 8) from a step's, so that a later try knows its own.
func stepGUID(id string) string {
	sum := sha256.Sum256([]byte("seed " + id))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}
