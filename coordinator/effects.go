package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/firmware/bmc"
	"bloomery/network/switchport"
)

const (
	// effectTimeout bounds one effect with all calls of its driver.
	effectTimeout = 30 * time.Second
	// offWithin is how long a BMC may take to switch off; offPoll how often it is asked.
	offWithin = 15 * time.Second
	offPoll   = 100 * time.Millisecond
	// guardTries is how often a port is looked at that has not learned the machine's MAC address yet, when the machine has just talked.
	guardTries = 5
	// resetTry is when a machine that comes back to provisioning and is silent is restarted, so that its firmware talks.
	resetTry   = 3
	sshTimeout = time.Second
)

// finding is what an effect found that the store shall know.
type finding struct {
	network  string
	previous string
	moved    bool
}

// perform does one effect. Each looks first and does nothing that is so already, because a driver that lost its job may have done it and not
// have said so; once the lease is over, the drivers send nothing (internal/fence).
func (d *driver) perform(ctx context.Context, m *bloomeryv1.Machine, a Action, try int) (finding, error) {
	ctx, cancel := context.WithTimeout(ctx, effectTimeout)
	defer cancel()
	switch a.Kind {
	case ActPowerOff:
		return finding{}, d.c.withBMC(ctx, m, func(b bmc.Driver) error { return powerOff(ctx, b) })
	case ActPowerOn:
		return finding{}, d.c.withBMC(ctx, m, func(b bmc.Driver) error { return b.PowerOn(ctx) })
	case ActBootNetworkOnce:
		return finding{}, d.c.withBMC(ctx, m, func(b bmc.Driver) error {
			return b.SetBootDevice(ctx, bmc.BootDevice{Target: bmc.BootNetwork, Once: true, UEFI: true})
		})
	case ActExpectBoot:
		return finding{}, nil // commitEffect writes it together with the outcome
	case ActPortToProvisioning:
		return d.c.movePort(ctx, m, ProvisioningNetwork, try)
	case ActMovePort:
		return d.c.movePort(ctx, m, a.Network, try)
	}
	return finding{}, &finalError{"UNKNOWN_ACTION", fmt.Errorf("action %s is not known", a.Kind)}
}

// commitEffect stores what an effect changed, in the transaction that notes it as done.
func (d *driver) commitEffect(ch *change, jobID string, a Action, f finding) error {
	j, err := ch.Job(jobID)
	if err != nil {
		return err
	}
	event := &bloomeryv1.Event{Machine: j.GetMachine(), JobId: jobID, StepId: j.Current().GetId()}
	switch a.Kind {
	case ActExpectBoot:
		err = ch.SaveBoot(&store.Boot{Machine: j.GetMachine(), JobID: jobID, Round: j.BootRound, Created: ch.Now(), Expires: ch.Now().Add(d.world.Timing.Boot)})
		event.Type, event.Message = "boot.expected", fmt.Sprintf("machine %s is expected to boot the agent (boot %d)", j.GetMachine(), j.BootRound)
	case ActPowerOn:
		event.Type, event.Message = "power.on", fmt.Sprintf("machine %s was switched on", j.GetMachine())
	case ActPowerOff:
		event.Type, event.Message = "power.off", fmt.Sprintf("machine %s was switched off", j.GetMachine())
	case ActPortToProvisioning, ActMovePort:
		m, err := ch.Machine(j.GetMachine())
		if err != nil {
			return err
		}
		m.Network = f.network
		if err := ch.saveMachine(m); err != nil {
			return err
		}
		if !f.moved {
			return nil
		}
		event.Type = "port.moved"
		event.Message = fmt.Sprintf("switch port %s %s of machine %s moved from network %s to %s", m.GetSwitchPort().GetSwitch(), m.GetSwitchPort().GetPort(), m.GetName(), f.previous, f.network)
		return ch.note(event, map[string]any{"from": f.previous, "to": f.network})
	default:
		return nil
	}
	if err != nil {
		return err
	}
	return ch.note(event, nil)
}

// withBMC opens a machine's BMC for one action.
func (c *Coordinator) withBMC(ctx context.Context, m *bloomeryv1.Machine, f func(bmc.Driver) error) error {
	if m.GetBmc().GetAddress() == "" {
		return &finalError{"NO_BMC", fmt.Errorf("machine %s has no BMC on record", m.GetName())}
	}
	var password string
	err := c.Store.View(ctx, func(r *store.Reader) (err error) {
		password, err = r.BMCPassword(m.GetName())
		return err
	})
	if err != nil {
		return err
	}
	driver, err := c.DialBMC(ctx, m.GetBmc().GetAddress(), m.GetBmc().GetUsername(), password)
	if err != nil {
		return fmt.Errorf("reach the BMC of machine %s: %w", m.GetName(), err)
	}
	defer func() { _ = driver.Close(ctx) }() // the BMC drops an idle session by itself
	if err := f(driver); err != nil {
		return fmt.Errorf("BMC of machine %s: %w", m.GetName(), err)
	}
	return nil
}

// powerOff switches a machine off and waits until its BMC says that it is.
func powerOff(ctx context.Context, b bmc.Driver) error {
	ctx, cancel := context.WithTimeout(ctx, offWithin)
	defer cancel()
	if err := b.PowerOff(ctx); err != nil {
		return err
	}
	for {
		on, err := b.PowerStatus(ctx)
		if err != nil {
			return err
		}
		if !on {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the machine is still on %s after it was switched off", offWithin)
		case <-time.After(offPoll):
		}
	}
}

// movePort moves a machine's port from the network that it is in. A machine that comes back to provisioning is switched on first,
// because the guard wants to see its MAC address.
func (c *Coordinator) movePort(ctx context.Context, m *bloomeryv1.Machine, to string, try int) (finding, error) {
	target, ok := c.config.network(to)
	if !ok {
		return finding{}, &finalError{"NETWORK_NOT_FOUND", fmt.Errorf("network %q is not in the coordinator's configuration", to)}
	}
	driver, err := c.dialSwitch(ctx, m.GetSwitchPort().GetSwitch())
	if err != nil {
		return finding{}, err
	}
	defer func() { _ = driver.Close() }()
	port := m.GetSwitchPort().GetPort()
	state, err := driver.Port(ctx, port)
	if errors.Is(err, switchport.ErrNoPort) {
		return finding{}, &finalError{"PORT_NOT_FOUND", err}
	}
	if err != nil {
		return finding{}, fmt.Errorf("read switch port %s: %w", port, err)
	}
	from, known := c.networkOf(state.AccessVLAN)
	if !known || (m.GetNetwork() != "" && from.Name != m.GetNetwork() && from.Name != to) {
		return finding{}, &finalError{"PORT_GUARD", fmt.Errorf("switch port %s is in VLAN %d, but machine %s was last in network %q: the port was not moved", port, state.AccessVLAN, m.GetName(), m.GetNetwork())}
	}
	back, patience := to == ProvisioningNetwork, guardTries
	if back && from.Name != to {
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
	var macs []net.HardwareAddr
	for _, text := range m.GetMacs() {
		mac, err := net.ParseMAC(text)
		if err != nil {
			return finding{}, &finalError{"MAC_INVALID", fmt.Errorf("machine %s: %w", m.GetName(), err)}
		}
		macs = append(macs, mac)
	}
	result, err := switchport.Move(ctx, driver, switchport.MoveRequest{Port: port, MACs: macs, From: from.VLAN, To: target.VLAN})
	var guard *switchport.GuardError
	if errors.As(err, &guard) && (guard.Reason != switchport.ReasonMACNotSeen || try >= patience) {
		return finding{}, &finalError{"PORT_GUARD", fmt.Errorf("switch port was not moved to network %s: %w", to, err)}
	}
	if err != nil {
		return finding{}, err
	}
	return finding{network: to, previous: from.Name, moved: !result.AlreadyThere}, nil
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

func (d *driver) checkPower(ctx context.Context, m *bloomeryv1.Machine) {
	ctx, cancel := context.WithTimeout(ctx, effectTimeout)
	defer cancel()
	err := d.c.withBMC(ctx, m, func(b bmc.Driver) (err error) {
		d.world.PowerOn, err = b.PowerStatus(ctx)
		return err
	})
	d.world.PowerAt, d.world.PowerError = d.c.config.Now(), ""
	if err != nil {
		d.world.PowerError = err.Error()
		d.c.Logger.Warn("look at a machine's power", "machine", m.GetName(), "job", d.fence.Job, "error", err)
	}
}

func (d *driver) probeSSH(ctx context.Context, m *bloomeryv1.Machine) {
	d.world.SSHAt = d.c.config.Now()
	prefix, err := netip.ParsePrefix(m.GetAddress())
	if err != nil {
		return
	}
	dialer := net.Dialer{Timeout: sshTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(prefix.Addr(), 22).String())
	if err != nil {
		return
	}
	_ = conn.Close()
	d.world.SSHOpen = true
}
