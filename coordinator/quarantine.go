package coordinator

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// portTries bounds how often a port is moved again because this coordinator's lease ended in between.
const portTries = 3

// A machine's quarantine is part of its lock: Lock.network says where the port goes back to. It is on record before the port is moved,
// and the lock outlasts the port's way back, so that whatever fails in between, calling again does the rest, and no job can start.

// mayQuarantine says whether a machine's port can be moved to quarantine at all now.
func (c *Coordinator) mayQuarantine(m *bloomeryv1.Machine) error {
	if m.GetJobId() != "" {
		return notNow("quarantine", "MACHINE_BUSY", "job %s drives machine %s and its port: cancel the job first", m.GetJobId(), m.GetName())
	}
	if m.GetSwitchPort().GetPort() == "" {
		return notNow("quarantine", "NO_SWITCH_PORT", "machine %s has no switch port on record", m.GetName())
	}
	if _, ok := c.config.network(QuarantineNetwork); !ok {
		return notNow("quarantine", "NETWORK_NOT_FOUND", "the coordinator's configuration has no network %s", QuarantineNetwork)
	}
	return nil
}

// quarantine moves the port of a machine that was just locked.
func (c *Coordinator) quarantine(ctx context.Context, m *bloomeryv1.Machine) (*bloomeryv1.Machine, error) {
	team := m.GetLock().GetTeam()
	after, err := c.movePortAlone(ctx, m.GetName(), func(m *bloomeryv1.Machine) (to string, err error) {
		return QuarantineNetwork, lockedFor(m, team)
	}, func(ch *change, m *bloomeryv1.Machine) error {
		return lockedFor(m, team)
	})
	if err != nil {
		return nil, c.notMoved(ctx, m, QuarantineNetwork, err,
			fmt.Sprintf("machine %s is locked, but its port was not moved to %s: %v; lock it again to try again", m.GetName(), QuarantineNetwork, err))
	}
	return after, nil
}

// endQuarantine moves a locked machine's port back to where it was, and then takes the lock off.
func (c *Coordinator) endQuarantine(ctx context.Context, m *bloomeryv1.Machine) (*bloomeryv1.Machine, error) {
	team := m.GetLock().GetTeam()
	after, err := c.movePortAlone(ctx, m.GetName(), func(m *bloomeryv1.Machine) (to string, err error) {
		return m.GetLock().GetNetwork(), lockedFor(m, team)
	}, func(ch *change, m *bloomeryv1.Machine) error {
		if err := lockedFor(m, team); err != nil {
			return err
		}
		e := unlocked(ctx, m)
		e.Machine = m.GetName()
		return ch.note(e, nil)
	})
	if err != nil {
		return nil, c.notMoved(ctx, m, m.GetLock().GetNetwork(), err,
			fmt.Sprintf("machine %s stays locked, because its port was not moved back to %s: %v; unlock it again to try again, or keep the port where it is", m.GetName(), m.GetLock().GetNetwork(), err))
	}
	return after, nil
}

// lockedFor refuses what belongs to a team's lock that is gone.
func lockedFor(m *bloomeryv1.Machine, team string) error {
	if m.GetLock().GetTeam() != team {
		return connect.NewError(connect.CodeAborted, fmt.Errorf("the lock of team %s on machine %s was taken off meanwhile", team, m.GetName()))
	}
	return nil
}

// movePortAlone moves a machine's port for an operator, while no other call does. where says, of the machine as it is once nobody else
// moves its port, to which network; settle changes the record once the port is there. What settle refuses does not undo the move: the record always
// says where the port is.
func (c *Coordinator) movePortAlone(ctx context.Context, name string, where func(*bloomeryv1.Machine) (string, error), settle func(*change, *bloomeryv1.Machine) error) (m *bloomeryv1.Machine, err error) {
	ctx, cancel := context.WithTimeout(ctx, effectTimeout)
	defer cancel()
	for try := 1; ; try++ {
		held, err := c.holdOnce(ctx, store.Holding{Duty: "port/" + name}, func(ctx context.Context, f store.Fence) (err error) {
			m, err = c.movePortUnder(ctx, f, name, where, settle)
			return err
		})
		switch {
		case err == nil && held:
			return m, nil
		case err == nil:
			return nil, notNow("name", "PORT_BUSY", "another call is moving the port of machine %s", name)
		case ctx.Err() != nil || try == portTries || !leaseIsOver(err):
			return nil, err
		}
		sleep(ctx, jitter(c.config.Timing.Retry))
	}
}

// leaseIsOver says that work ended because its lease did: what it left is found by doing it again under another.
func leaseIsOver(err error) bool {
	return errors.Is(err, errLapsed) || errors.Is(err, store.ErrFenced) || errors.Is(err, context.Canceled)
}

// movePortUnder is movePortAlone while nobody else moves the port.
func (c *Coordinator) movePortUnder(ctx context.Context, f store.Fence, name string, where func(*bloomeryv1.Machine) (string, error), settle func(*change, *bloomeryv1.Machine) error) (*bloomeryv1.Machine, error) {
	m, err := c.machine(ctx, name)
	if err != nil {
		return nil, err
	}
	to, err := where(m)
	if err != nil {
		return nil, err
	}
	p, err := c.lookAtPort(ctx, m, to)
	if err != nil {
		return nil, err
	}
	defer p.close()
	if to == QuarantineNetwork && m.GetLock().GetNetwork() == "" && p.from.Name != to {
		if err := c.rememberNetwork(ctx, f, m, p.from.Name); err != nil {
			return nil, err
		}
	}
	found, err := p.moveQuietly(ctx, c.config.Timing.Retry)
	if err != nil {
		return nil, err
	}
	err = c.settlePort(ctx, f, name, found, func(ch *change, after *bloomeryv1.Machine) error {
		m = after
		return settle(ch, after)
	})
	return m, err
}

// rememberNetwork puts on record, before the port is moved, where it goes back to.
func (c *Coordinator) rememberNetwork(ctx context.Context, f store.Fence, seen *bloomeryv1.Machine, network string) error {
	return c.update(ctx, func(ch *change) error {
		if err := ch.Check(f); err != nil {
			return err
		}
		m, err := ch.Machine(seen.GetName())
		if err != nil {
			return err
		}
		if err := lockedFor(m, seen.GetLock().GetTeam()); err != nil {
			return err
		}
		m.Lock.Network = network
		return ch.saveMachine(m)
	})
}

// settlePort puts on record where a port is now.
func (c *Coordinator) settlePort(ctx context.Context, f store.Fence, name string, found finding, settle func(*change, *bloomeryv1.Machine) error) error {
	var refused error
	err := c.update(ctx, func(ch *change) error {
		if err := ch.Check(f); err != nil {
			return err
		}
		m, err := ch.Machine(name)
		if err != nil {
			return err
		}
		m.Network = found.network
		if found.moved {
			if err := ch.notePort(&bloomeryv1.Event{Machine: name}, m, found); err != nil {
				return err
			}
		}
		var aborted *connect.Error
		if refused = settle(ch, m); refused != nil && !errors.As(refused, &aborted) {
			return refused
		}
		return ch.saveMachine(m)
	})
	if err != nil {
		return err
	}
	return refused
}

// notMoved records that a port is not where an operator wanted it, and says so to them.
func (c *Coordinator) notMoved(ctx context.Context, m *bloomeryv1.Machine, to string, cause error, message string) error {
	var aborted *connect.Error
	if errors.As(cause, &aborted) {
		return cause // somebody else's call came between; where the port is stands on record
	}
	err := c.update(context.WithoutCancel(ctx), func(ch *change) error {
		return ch.note(&bloomeryv1.Event{
			Type: "port.not_moved", Severity: bloomeryv1.Severity_SEVERITY_WARNING, Machine: m.GetName(),
			Message: clipTo(fmt.Sprintf("the port of machine %s was not moved to network %s for %s: %v", m.GetName(), to, callerOf(ctx).Name, cause), maxText),
		}, map[string]any{"to": to})
	})
	if err != nil {
		c.Logger.Error("store that a port was not moved", "machine", m.GetName(), "error", err)
	}
	return notNow("port", "PORT_NOT_MOVED", "%s", clipTo(message, maxText))
}
