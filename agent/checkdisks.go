package agent

import (
	"context"
	"errors"
	"fmt"

	"bloomery/checks"
)

// checkDisks judges every disk. A disk that is broken makes the machine faulty, with the check's own code as the reason; a check that could
// not be run fails the step without blaming the machine.
func (s *stepRun) checkDisks(ctx context.Context) (any, error) {
	inv, err := s.agent.collect(ctx)
	if err != nil {
		return nil, failed(reasonInventory, err)
	}
	if len(inv.Disks) == 0 {
		return nil, faulty(reasonDiskNotFound, errors.New("the machine shows no disk at all"))
	}
	results, err := s.agent.options.Hardware.CheckDisks(ctx, inv.Disks)
	report := struct {
		Verdict checks.Verdict  `json:"verdict"`
		Results []checks.Result `json:"results"`
	}{checks.Worst(results), results}
	for _, result := range results {
		if result.Verdict == checks.Fail {
			return report, faulty(string(result.Code), fmt.Errorf("disk %s (%s): %s", result.Component, result.Name, result.Message))
		}
	}
	if err != nil {
		return report, failed(reasonCheckFailed, err)
	}
	return report, nil
}
