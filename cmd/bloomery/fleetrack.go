package main

import (
	"context"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// newFleetRackStatus shows the coordinators of all racks; a rack without a majority is a failure, as it is for "rack status".
func newFleetRackStatus(set *settings, in *fleetFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the coordinators of all racks: leaders, roles, lag, versions, certificates, disks",
		Example: `  bloomery fleet rack status
  bloomery fleet rack status -o json`,
		Annotations: rowFormats(),
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listing[*bloomeryv1.GetRackStatusResponse, *bloomeryv1.Node]{
				one: "node", many: "nodes", items: (*bloomeryv1.GetRackStatusResponse).GetNodes, columns: nodeColumns,
				fetch: func(ctx context.Context, c *client) (*bloomeryv1.GetRackStatusResponse, error) {
					return ask(ctx, c.rack.GetRackStatus, &bloomeryv1.GetRackStatusRequest{})
				},
				compare:  func(_, _ *bloomeryv1.Node) int { return 0 }, // rack by rack, in the list's order
				warnings: (*bloomeryv1.GetRackStatusResponse).GetWarnings,
				judge:    hasMajority,
			}.run(cmd, set, in)
		},
	}
}
