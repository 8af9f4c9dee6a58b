package agent

import (
	"context"
	"time"

	"bloomery/firmware/bmc"
	"bloomery/inventory"
)

const bmcWait = 5 * time.Second

// inspect gives package inventory's JSON with what the switches and the BMC say put in.
func (s *stepRun) inspect(ctx context.Context) (any, error) {
	inv, err := s.agent.collect(ctx)
	if err != nil {
		return nil, failed(reasonInventory, err)
	}
	var info bmc.Info
	var bmcErr error
	if inv.BMC != nil {
		ctx, cancel := context.WithTimeout(ctx, bmcWait)
		info, bmcErr = s.agent.options.Hardware.BMC(ctx)
		cancel()
	}
	neighbours, heardErr := s.agent.neighbours.get(ctx)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	for i := range inv.NICs {
		if n, ok := neighbours[inv.NICs[i].Name]; ok {
			inv.NICs[i].LLDP = &inventory.Neighbour{ChassisID: n.ChassisID, PortID: n.PortID, SystemName: n.SystemName, PortVLAN: int(n.PortVLAN)}
		}
	}
	if inv.BMC != nil && bmcErr == nil {
		inv.BMC.Manufacturer, inv.BMC.Firmware, inv.BMC.MAC = info.Manufacturer, info.Firmware, info.MAC
		if info.IPAddress.IsValid() {
			inv.BMC.Address = info.IPAddress.String()
		}
	}
	for component, err := range map[string]error{"lldp": heardErr, "bmc": bmcErr} {
		if err != nil {
			inv.Problems = append(inv.Problems, inventory.Problem{Component: component, Message: oneLine(err.Error())})
		}
	}
	return inv, nil
}
