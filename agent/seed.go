package agent

import (
	"context"

	pb "bloomery/api/bloomery/v1"
	"bloomery/cloudinit"
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
