package coordinator

import (
	"context"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

const (
	defaultPage = 100
	maxPage     = 1000
)

func pageSize(asked int32, usual int) (int, error) {
	if asked == 0 {
		return usual, nil
	}
	if asked < 1 || asked > maxPage {
		return 0, invalid("page_size", "OUT_OF_RANGE", "%d: want 1 to %d", asked, maxPage)
	}
	return int(asked), nil
}

// GetMachine implements bloomery.v1.MachineService.
func (c *Coordinator) GetMachine(ctx context.Context, r *connect.Request[bloomeryv1.GetMachineRequest]) (*connect.Response[bloomeryv1.GetMachineResponse], error) {
	var m *bloomeryv1.Machine
	err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		m, err = s.WithInventory(clip(r.Msg.GetName()))
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.GetMachineResponse{Machine: m}), nil
}

func (c *Coordinator) machine(ctx context.Context, name string) (m *bloomeryv1.Machine, err error) {
	err = c.Store.View(ctx, func(s *store.Reader) (err error) {
		m, err = s.Machine(clip(name))
		return err
	})
	return m, err
}

func (c *Coordinator) changeMachine(ctx context.Context, name string, f func(*change, *bloomeryv1.Machine) (*bloomeryv1.Event, error)) (m *bloomeryv1.Machine, err error) {
	err = c.update(ctx, func(ch *change) (err error) {
		if m, err = ch.Machine(clip(name)); err != nil {
			return err
		}
		e, err := f(ch, m)
		if err != nil {
			return err
		}
		e.Machine = m.GetName()
		if err := ch.note(e, nil); err != nil {
			return err
		}
		return ch.saveMachine(m)
	})
	return m, err
}
