package coordinator

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/firmware/bmc"
)

// PowerMachine implements bloomery.v1.MachineService.
func (c *Coordinator) PowerMachine(ctx context.Context, r *connect.Request[bloomeryv1.PowerMachineRequest]) (*connect.Response[bloomeryv1.PowerMachineResponse], error) {
	m, err := c.machine(ctx, r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	operation := r.Msg.GetOperation()
	if operation < bloomeryv1.PowerOperation_POWER_OPERATION_STATUS || operation > bloomeryv1.PowerOperation_POWER_OPERATION_RESET {
		return nil, invalid("operation", "REQUIRED", "want status, on, off or reset")
	}
	changes := operation != bloomeryv1.PowerOperation_POWER_OPERATION_STATUS
	if changes && m.GetJobId() != "" {
		return nil, notNow("name", "MACHINE_BUSY", "job %s drives machine %s", m.GetJobId(), m.GetName())
	}
	if changes && m.GetLock() != nil && !callerOf(ctx).actsFor(m.GetLock().GetTeam()) {
		return nil, locked(m)
	}
	ctx, cancel := context.WithTimeout(ctx, effectTimeout)
	defer cancel()
	response := &bloomeryv1.PowerMachineResponse{}
	err = c.withBMC(ctx, m, func(b bmc.Driver) (err error) {
		switch operation {
		case bloomeryv1.PowerOperation_POWER_OPERATION_ON:
			err = b.PowerOn(ctx)
		case bloomeryv1.PowerOperation_POWER_OPERATION_OFF:
			err = powerOff(ctx, b)
		case bloomeryv1.PowerOperation_POWER_OPERATION_RESET:
			err = b.Reset(ctx)
		}
		if err != nil {
			return err
		}
		response.On, err = b.PowerStatus(ctx)
		return err
	})
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	if changes {
		name := strings.ToLower(strings.TrimPrefix(operation.String(), "POWER_OPERATION_"))
		err = c.update(ctx, func(ch *change) error {
			return ch.note(&bloomeryv1.Event{Type: "power." + name, Machine: m.GetName(), Message: fmt.Sprintf("power %s of machine %s by %s", name, m.GetName(), callerOf(ctx).Name)}, nil)
		})
	}
	return connect.NewResponse(response), err
}
