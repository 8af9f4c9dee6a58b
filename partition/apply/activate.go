package apply

import (
	"context"
	"fmt"
	"strings"

	"bloomery/partition/layout"
)

// Activate makes everything that Apply made usable again after a restart: it assembles arrays, opens LUKS volumes and activates logical volumes.
// What is active stays as it is; nothing is ever made anew.
func (m *Machine) Activate(ctx context.Context, p *layout.Plan) error {
	if err := m.prepare(ctx, p); err != nil {
		return err
	}
	for _, a := range p.Actions() {
		if err := m.activate(ctx, p, a); err != nil {
			return fmt.Errorf("activate %s: %w", a.Target, err)
		}
	}
	return nil
}

func (m *Machine) activate(ctx context.Context, p *layout.Plan, a layout.Action) error {
	_, name, _ := strings.Cut(string(a.Target), "/")
	switch a.Kind {
	case layout.ActionArray:
		planned, err := array(p, name)
		if err != nil {
			return err
		}
		return m.ensureArray(ctx, p, planned, false)
	case layout.ActionEncrypt:
		planned, err := volumeLUKS(p, name)
		if err != nil {
			return err
		}
		return m.ensureLUKS(ctx, p, planned, false)
	case layout.ActionGroup:
		planned, err := group(p, name)
		if err != nil {
			return err
		}
		return m.ensureGroup(ctx, p, planned, false)
	case layout.ActionVolume:
		groupName, volume, _ := strings.Cut(name, "/")
		planned, err := group(p, groupName)
		if err != nil {
			return err
		}
		return m.ensureVolume(ctx, p, planned, volume, false)
	}
	return nil
}
