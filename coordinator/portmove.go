package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/firmware/bmc"
	"bloomery/network/switchport"
)

// movePort moves a machine's port from the network that it is in. A machine that comes back to provisioning is switched on first,
// because the guard wants to see its MAC address.
func (c *Coordinator) movePort(ctx context.Context, m *bloomeryv1.Machine, to string, try int) (finding, error) {
	p, err := c.lookAtPort(ctx, m, to)
	if err != nil {
		return finding{}, err
	}
	defer p.close()
	patience := guardTries
	if to == ProvisioningNetwork && p.from.Name != to {
		patience = wakeTries
		if err := c.withBMC(ctx, m, func(b bmc.Driver) error {
			if try == resetTry {
				if err := b.Reset(ctx); !errors.Is(err, bmc.ErrPoweredOff) {
					return err
				}
			}
			return b.PowerOn(ctx)
		}); err != nil {
			return finding{}, err
		}
	}
	return p.move(ctx, try >= patience)
}

// portMove is a move of a machine's port that is about to happen: the port was read, and is where the record says.
type portMove struct {
	m        *bloomeryv1.Machine
	driver   switchport.Driver
	from, to Network
}

// lookAtPort reads where a machine's port is, and refuses to move it on when that is not where it should be.
func (c *Coordinator) lookAtPort(ctx context.Context, m *bloomeryv1.Machine, to string) (*portMove, error) {
	target, ok := c.config.network(to)
	if !ok {
		return nil, &finalError{"NETWORK_NOT_FOUND", fmt.Errorf("network %q is not in the coordinator's configuration", to)}
	}
	driver, err := c.dialSwitch(ctx, m.GetSwitchPort().GetSwitch())
	if err != nil {
		return nil, err
	}
	p := &portMove{m: m, driver: driver, to: target}
	if p.from, err = c.portNetwork(ctx, driver, m, to); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// portNetwork reads which network a machine's port is in: the one on record, or the one that it is to be moved to.
func (c *Coordinator) portNetwork(ctx context.Context, driver switchport.Driver, m *bloomeryv1.Machine, to string) (Network, error) {
	port := m.GetSwitchPort().GetPort()
	state, err := driver.Port(ctx, port)
	if errors.Is(err, switchport.ErrNoPort) {
		return Network{}, &finalError{"PORT_NOT_FOUND", err}
	}
	if err != nil {
		return Network{}, fmt.Errorf("read switch port %s: %w", port, err)
	}
	from, known := c.networkOf(state.AccessVLAN)
	if !known || (m.GetNetwork() != "" && from.Name != m.GetNetwork() && from.Name != to) {
		return Network{}, &finalError{"PORT_GUARD", fmt.Errorf("switch port %s is in VLAN %d, but machine %s was last in network %q: the port was not moved", port, state.AccessVLAN, m.GetName(), m.GetNetwork())}
	}
	return from, nil
}

func (p *portMove) close() { _ = p.driver.Close() } // nothing that was done depends on it

// move moves the port under the guard. last says that a machine which cannot be seen on it yet is not waited for any more.
func (p *portMove) move(ctx context.Context, last bool) (finding, error) {
	var macs []net.HardwareAddr
	for _, text := range p.m.GetMacs() {
		mac, err := net.ParseMAC(text)
		if err != nil {
			return finding{}, &finalError{"MAC_INVALID", fmt.Errorf("machine %s: %w", p.m.GetName(), err)}
		}
		macs = append(macs, mac)
	}
	result, err := switchport.Move(ctx, p.driver, switchport.MoveRequest{Port: p.m.GetSwitchPort().GetPort(), MACs: macs, From: p.from.VLAN, To: p.to.VLAN})
	var guard *switchport.GuardError
	if errors.As(err, &guard) && (guard.Reason != switchport.ReasonMACNotSeen || last) {
		return finding{}, &finalError{"PORT_GUARD", fmt.Errorf("switch port was not moved to network %s: %w", p.to.Name, err)}
	}
	if err != nil {
		return finding{}, err
	}
	return finding{network: p.to.Name, previous: p.from.Name, moved: !result.AlreadyThere}, nil
}

// moveQuietly moves the port without touching the machine's power. A port that is there already stays, even if the machine is silent: the
// switch forgets what it has learned when a port moves, so a move whose answer was lost cannot be seen through the guard. pause is between
// two tries.
func (p *portMove) moveQuietly(ctx context.Context, pause time.Duration) (finding, error) {
	if p.from.Name == p.to.Name {
		return finding{network: p.to.Name, previous: p.from.Name}, nil
	}
	for try := 1; ; try++ {
		found, err := p.move(ctx, try >= guardTries)
		if err == nil {
			return found, nil
		}
		if state, readErr := p.driver.Port(ctx, p.m.GetSwitchPort().GetPort()); readErr == nil && state.AccessVLAN == p.to.VLAN {
			return finding{network: p.to.Name, previous: p.from.Name, moved: true}, nil
		}
		var final *finalError
		if errors.As(err, &final) || try >= guardTries || pauseFor(ctx, pause) != nil {
			return finding{}, err
		}
	}
}

// notePort tells that a machine's port was moved.
func (ch *change) notePort(e *bloomeryv1.Event, m *bloomeryv1.Machine, f finding) error {
	e.Type = "port.moved"
	e.Message = fmt.Sprintf("switch port %s %s of machine %s moved from network %s to %s", m.GetSwitchPort().GetSwitch(), m.GetSwitchPort().GetPort(), m.GetName(), f.previous, f.network)
	return ch.note(e, map[string]any{"from": f.previous, "to": f.network})
}

func (c *Coordinator) networkOf(vlan uint16) (Network, bool) {
	for _, n := range c.config.Networks {
		if n.VLAN == vlan {
			return n, true
		}
	}
	return Network{}, false
}

func (c *Coordinator) dialSwitch(ctx context.Context, name string) (switchport.Driver, error) {
	for _, s := range c.config.Switches {
		if s.Name == name {
			driver, err := c.DialSwitch(ctx, s)
			if err != nil {
				return nil, fmt.Errorf("reach switch %s: %w", name, err)
			}
			return driver, nil
		}
	}
	return nil, &finalError{"SWITCH_NOT_FOUND", fmt.Errorf("switch %q is not in the coordinator's configuration", name)}
}
