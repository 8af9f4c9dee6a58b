package coordinator

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/firmware/bmc"
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
		err = ch.SaveBoot(&store.Boot{Machine: j.GetMachine(), JobID: jobID, Round: j.BootRound, Created: ch.Now()})
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
		return ch.notePort(event, m, f)
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

func (d *driver) checkPower(ctx context.Context, m *bloomeryv1.Machine) {
	ctx, cancel := context.WithTimeout(ctx, effectTimeout)
	defer cancel()
	err := d.c.withBMC(ctx, m, func(b bmc.Driver) (err error) {
		d.world.PowerOn, err = b.PowerStatus(ctx)
		return err
	})
	d.world.PowerAt, d.world.PowerError = time.Now(), ""
	if err != nil {
		d.world.PowerError = err.Error()
		d.c.Logger.Warn("look at a machine's power", "machine", m.GetName(), "job", d.fence.Job, "error", err)
	}
}

func (d *driver) probeSSH(ctx context.Context, m *bloomeryv1.Machine) {
	d.world.SSHAt = time.Now()
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
