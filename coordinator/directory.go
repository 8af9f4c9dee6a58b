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
	"bloomery/netboot"
)

// directory answers the boot servers from the store.
type directory struct{ c *Coordinator }

// Lookup implements netboot.Directory.
func (d directory) Lookup(ctx context.Context, mac net.HardwareAddr) (netboot.Host, error) {
	var host netboot.Host
	err := d.c.Store.View(ctx, func(r *store.Reader) error {
		host = netboot.Host{}
		m, err := r.MachineByMAC(mac.String())
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		boot, err := r.Boot(m.GetName())
		if err != nil {
			return err
		}
		host.Known, host.Machine, host.Wish = true, m.GetName(), wish(m, boot)
		host.Address, err = r.Lease(mac.String())
		return err
	})
	return host, err
}

// wish is what a machine may boot: the agent only while a boot of its job is open or its agent runs, never while it is running.
func wish(m *bloomeryv1.Machine, b *store.Boot) netboot.Wish {
	switch {
	case m.GetStatus() == running:
		return netboot.WishLocalDisk
	case b != nil && b.JobID == m.GetJobId() && (b.Open() || !b.Enrolled.IsZero()):
		return netboot.WishAgent
	case m.GetStatus() == installing || m.GetStatus() == releasing:
		return netboot.WishLocalDisk
	}
	return netboot.WishNothing
}

// Lease implements netboot.Directory.
func (d directory) Lease(ctx context.Context, mac net.HardwareAddr) (address netip.Addr, err error) {
	p := d.c.config.Provisioning
	if p == nil {
		return netip.Addr{}, errors.New("this coordinator leases no addresses")
	}
	// A machine keeps its lease, so that all but its first question are answered without a write.
	err = d.c.Store.View(ctx, func(r *store.Reader) (err error) {
		address, err = r.Lease(mac.String())
		return err
	})
	if err != nil || p.Range.Contains(address) {
		return address, err
	}
	err = d.c.Store.Update(ctx, func(tx *store.Tx) error {
		m, err := tx.MachineByMAC(mac.String())
		if err != nil {
			return err
		}
		address, err = tx.AllocateLease(mac.String(), m.GetName(), p.Range.First, p.Range.Last)
		return err
	})
	if err != nil {
		return netip.Addr{}, fmt.Errorf("lease an address to %s: %w", mac, err)
	}
	return address, nil
}

// mayBoot is netboot's Allowed: files are for machines whose boot is open, so firmware gets nothing once an agent has enrolled.
func (c *Coordinator) mayBoot(ctx context.Context, from netip.Addr) (machine string, ok bool) {
	err := c.Store.View(ctx, func(r *store.Reader) error {
		machine, ok = "", false
		name, err := r.LeaseHolder(from.Unmap())
		if err != nil {
			return err
		}
		m, err := r.Machine(name)
		if err != nil {
			return err
		}
		boot, err := r.Boot(name)
		if err != nil {
			return err
		}
		machine, ok = name, boot.Open() && wish(m, boot) == netboot.WishAgent
		return nil
	})
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		c.Logger.Error("ask who may boot", "from", from, "error", err)
	}
	return machine, ok
}

// observe records what the boot servers did: what was served, and whom they refused.
func (c *Coordinator) observe(ctx context.Context, e netboot.Event) {
	c.metrics.booted(e)
	event := &bloomeryv1.Event{Machine: e.Machine}
	data := map[string]any{"server": e.Server, "reason": e.Reason}
	switch {
	case e.Kind == netboot.KindServed:
		event.Type, event.Message = "netboot.served", fmt.Sprintf("%s fetched %s (%d bytes in %s)", e.Machine, e.File, e.Bytes, e.Duration.Round(time.Millisecond))
		data["file"], data["bytes"], data["seconds"] = e.File, e.Bytes, e.Duration.Seconds()
	case e.Kind == netboot.KindDenied:
		event.Type, event.Severity, event.Message = "security.boot_refused", bloomeryv1.Severity_SEVERITY_SECURITY, fmt.Sprintf("%s was refused to %s: %s", clip(e.File), e.Peer, e.Reason)
		data["from"] = addrText(e.Peer)
	case e.Kind == netboot.KindAnswer && e.Action == netboot.LeaseAndBoot:
		event.Type, event.Message = "netboot.offered", fmt.Sprintf("%s was offered %s", e.Machine, e.File)
		data["mac"], data["address"] = e.MAC.String(), addrText(e.Peer)
	case e.Kind == netboot.KindAnswer && e.Action == netboot.Silence && e.Machine != "" && e.Request.Client.Firmware():
		event.Type, event.Severity = "netboot.refused", bloomeryv1.Severity_SEVERITY_WARNING
		event.Message = fmt.Sprintf("the firmware of %s asked to netboot and got no answer: %s", e.Machine, e.Reason)
		data["mac"] = e.MAC.String()
	default:
		c.Logger.Debug("netboot", "kind", e.Kind, "machine", e.Machine, "mac", e.MAC, "reason", e.Reason, "error", e.Err)
		return
	}
	if event.GetSeverity() >= bloomeryv1.Severity_SEVERITY_WARNING && !c.limits.security.Allow() {
		return
	}
	if err := c.update(ctx, func(ch *change) error { return ch.note(event, data) }); err != nil && ctx.Err() == nil {
		c.Logger.Error("store a netboot event", "error", err)
	}
}
