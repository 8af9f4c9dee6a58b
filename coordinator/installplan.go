package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// PlanInstall implements bloomery.v1.MachineService: what InstallMachine would do, computed in the same way and stored nowhere.
func (c *Coordinator) PlanInstall(ctx context.Context, r *connect.Request[bloomeryv1.PlanInstallRequest]) (*connect.Response[bloomeryv1.PlanInstallResponse], error) {
	spec := r.Msg.GetSpec()
	if err := c.soundImage(ctx, spec.GetImage()); err != nil {
		return nil, err
	}
	request := Request{Kind: bloomeryv1.JobKind_JOB_KIND_INSTALL, Install: spec}
	f, err := c.facts(request)
	if err != nil {
		return nil, err
	}
	// A job has a token and an address of its own; here a token that opens nothing and the first address of the network stand for them.
	if network, ok := c.config.network(spec.GetNetwork()); ok {
		for _, base := range network.PhoneHome {
			f.PhoneHomeURLs = append(f.PhoneHomeURLs, base+"token")
		}
		if network.Range.First.IsValid() {
			f.Address = netip.PrefixFrom(network.Range.First, network.Prefix.Bits())
		}
	}
	var m *bloomeryv1.Machine
	if err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		if m, err = s.WithInventory(clip(r.Msg.GetName())); err != nil {
			return err
		}
		f.Wiped, err = wipedDisks(s, m)
		return err
	}); err != nil {
		return nil, err
	}
	if err := mayStart(m, request.Kind); err != nil {
		return nil, err
	}
	response := &bloomeryv1.PlanInstallResponse{}
	if f.Plan, err = planInstall(m, spec, f); err != nil {
		return nil, err
	}
	if f.Plan != nil {
		if response.Plan, err = f.Plan.Encode(); err != nil {
			return nil, fmt.Errorf("encode the plan: %w", err)
		}
	}
	steps, err := Steps(m, request, f)
	if err != nil {
		return nil, err
	}
	response.Steps = redact(&bloomeryv1.Job{Steps: steps}).GetSteps()
	return connect.NewResponse(response), nil
}

// GetJobPlan implements bloomery.v1.JobService.
func (c *Coordinator) GetJobPlan(ctx context.Context, r *connect.Request[bloomeryv1.GetJobPlanRequest]) (*connect.Response[bloomeryv1.GetJobPlanResponse], error) {
	response := &bloomeryv1.GetJobPlanResponse{}
	id := clip(r.Msg.GetId())
	err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		if _, err := s.Job(id); err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		response.Plan, err = s.JobPlan(id)
		if errors.Is(err, store.ErrNotFound) {
			return notNow("id", "NO_PLAN", "job %s has no plan of disks: only an install with a layout has", id)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}
