package coordinator

import (
	"context"
	"fmt"
	"strings"
	"unicode"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/internal/pki"
)

const maxReason = 1000

func locked(m *bloomeryv1.Machine) error {
	return notNow("name", "MACHINE_LOCKED", "machine %s is locked by team %s: %s", m.GetName(), m.GetLock().GetTeam(), m.GetLock().GetReason())
}

// speaksFor refuses a call in the name of a team that the caller is not in.
func (c *Coordinator) speaksFor(ctx context.Context, team, machine, verb string) error {
	if err := pki.ValidName(team); err != nil {
		return invalid("team", "TEAM_INVALID", "%v", err)
	}
	who := callerOf(ctx)
	if who.actsFor(team) {
		return nil
	}
	c.security(ctx, "security.call_refused", clip(machine), who, fmt.Sprintf("%s %s wanted to %s machine %s in the name of team %s, which they are not in", who.Role, who.Name, verb, clip(machine), team))
	return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is not in team %s, so may not %s machines in its name", who.Name, team, verb))
}

// LockMachine implements bloomery.v1.MachineService.
func (c *Coordinator) LockMachine(ctx context.Context, r *connect.Request[bloomeryv1.LockMachineRequest]) (*connect.Response[bloomeryv1.LockMachineResponse], error) {
	if err := c.speaksFor(ctx, r.Msg.GetTeam(), r.Msg.GetName(), "lock"); err != nil {
		return nil, err
	}
	if r.Msg.GetReason() == "" || len(r.Msg.GetReason()) > maxReason || strings.ContainsFunc(r.Msg.GetReason(), unicode.IsControl) {
		return nil, invalid("reason", "REQUIRED", "say why, on one line of at most %d bytes", maxReason)
	}
	m, err := c.changeMachine(ctx, r.Msg.GetName(), func(ch *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
		if m.GetLock() != nil && m.GetLock().GetTeam() != r.Msg.GetTeam() {
			return nil, locked(m)
		}
		if r.Msg.GetQuarantine() {
			if err := c.mayQuarantine(m); err != nil {
				return nil, err
			}
		}
		since, network := timestamppb.New(ch.Now()), m.GetLock().GetNetwork()
		if m.GetLock() != nil {
			since = m.GetLock().GetSince()
		}
		m.Lock = &bloomeryv1.Lock{Team: r.Msg.GetTeam(), Reason: r.Msg.GetReason(), By: callerOf(ctx).Name, Since: since, Network: network}
		return &bloomeryv1.Event{Type: "machine.locked", Message: fmt.Sprintf("machine %s was locked for team %s by %s: %s", m.GetName(), r.Msg.GetTeam(), callerOf(ctx).Name, r.Msg.GetReason())}, nil
	})
	if err != nil {
		return nil, err
	}
	if r.Msg.GetQuarantine() {
		if m, err = c.quarantine(ctx, m); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(&bloomeryv1.LockMachineResponse{Machine: m}), nil
}

// UnlockMachine implements bloomery.v1.MachineService.
func (c *Coordinator) UnlockMachine(ctx context.Context, r *connect.Request[bloomeryv1.UnlockMachineRequest]) (*connect.Response[bloomeryv1.UnlockMachineResponse], error) {
	if err := c.speaksFor(ctx, r.Msg.GetTeam(), r.Msg.GetName(), "unlock"); err != nil {
		return nil, err
	}
	m, err := c.machine(ctx, r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	if err := mayUnlock(m, r.Msg.GetTeam()); err != nil {
		return nil, err
	}
	if m.GetLock().GetNetwork() != "" && !r.Msg.GetKeepPort() {
		m, err = c.endQuarantine(ctx, m)
	} else {
		m, err = c.changeMachine(ctx, m.GetName(), func(_ *change, m *bloomeryv1.Machine) (*bloomeryv1.Event, error) {
			if err := mayUnlock(m, r.Msg.GetTeam()); err != nil {
				return nil, err
			}
			if m.GetLock().GetNetwork() != "" && !r.Msg.GetKeepPort() {
				return nil, connect.NewError(connect.CodeAborted, fmt.Errorf("machine %s was put in quarantine meanwhile: unlock it again", m.GetName()))
			}
			return unlocked(ctx, m), nil
		})
	}
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.UnlockMachineResponse{Machine: m}), nil
}

func mayUnlock(m *bloomeryv1.Machine, team string) error {
	if m.GetLock() == nil {
		return notNow("name", "NOT_LOCKED", "machine %s is not locked", m.GetName())
	}
	if m.GetLock().GetTeam() != team {
		return locked(m)
	}
	return nil
}

// unlocked takes the lock off a machine's record.
func unlocked(ctx context.Context, m *bloomeryv1.Machine) *bloomeryv1.Event {
	m.Lock = nil
	return &bloomeryv1.Event{Type: "machine.unlocked", Message: fmt.Sprintf("machine %s was unlocked by %s", m.GetName(), callerOf(ctx).Name)}
}
