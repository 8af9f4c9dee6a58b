package coordinator

import (
	"context"
	"fmt"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/internal/pki"
)

const maxReason = 1000

func locked(m *bloomeryv1.Machine) error {
	return notNow("name", "MACHINE_LOCKED", "machine %s is locked by team %s: %s", m.GetName(), m.GetLock().GetTeam(), m.GetLock().GetReason())
}

// LockMachine implements bloomery.v1.MachineService.
func (c *Coordinator) LockMachine(ctx context.Context, r *connect.Request[bloomeryv1.LockMachineRequest]) (*connect.Response[bloomeryv1.LockMachineResponse], error) {
	if err := pki.ValidName(r.Msg.GetTeam()); err != nil {
		return nil, invalid("team", "TEAM_INVALID", "%v", err)
	}
	if r.Msg.GetReason() == "" || len(r.Msg.GetReason()) > maxReason || !utf8.ValidString(r.Msg.GetReason()) {
		return nil, invalid("reason", "REQUIRED", "say why, in at most %d bytes", maxReason)
	}
	m, err := c.changeMachine(ctx, r.Msg.GetName(), func(ch *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
		if m.GetLock() != nil && m.GetLock().GetTeam() != r.Msg.GetTeam() {
			return nil, locked(m)
		}
		m.Lock = &bloomeryv1.Lock{Team: r.Msg.GetTeam(), Reason: r.Msg.GetReason(), By: callerOf(ctx).Name, Since: timestamppb.New(ch.Now())}
		return &bloomeryv1.Event{Type: "machine.locked", Message: fmt.Sprintf("machine %s was locked for team %s by %s: %s", m.GetName(), r.Msg.GetTeam(), callerOf(ctx).Name, r.Msg.GetReason())}, nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.LockMachineResponse{Machine: m}), nil
}

// UnlockMachine implements bloomery.v1.MachineService.
func (c *Coordinator) UnlockMachine(ctx context.Context, r *connect.Request[bloomeryv1.UnlockMachineRequest]) (*connect.Response[bloomeryv1.UnlockMachineResponse], error) {
	m, err := c.changeMachine(ctx, r.Msg.GetName(), func(_ *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
		if m.GetLock() == nil {
			return nil, notNow("name", "NOT_LOCKED", "machine %s is not locked", m.GetName())
		}
		if m.GetLock().GetTeam() != r.Msg.GetTeam() {
			return nil, locked(m)
		}
		m.Lock = nil
		return &bloomeryv1.Event{Type: "machine.unlocked", Message: fmt.Sprintf("machine %s was unlocked by %s", m.GetName(), callerOf(ctx).Name)}, nil
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.UnlockMachineResponse{Machine: m}), nil
}
