package apply

import (
	"context"
	"fmt"

	"bloomery/partition/layout"
)

// Renew makes the plan's mounted filesystems anew: what was on them is lost, as it has to be where files were left half written. What they stand
// on stays.
func (m *Machine) Renew(ctx context.Context, p *layout.Plan) error {
	if err := m.Activate(ctx, p); err != nil {
		return err
	}
	mounted := map[layout.Ref]bool{}
	for _, mt := range mountings(p) {
		mounted[mt.device] = true
	}
	for _, f := range p.Files {
		if !mounted[f.Device] {
			continue
		}
		if err := m.makeFilesystem(ctx, p, f); err != nil {
			return fmt.Errorf("make the filesystem on %s anew: %w", f.Device, err)
		}
	}
	return nil
}
