package faults

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"bloomery/coordinator/faults/history"
	"bloomery/lab/bmc"
	"bloomery/lab/vswitch"
)

// VLANs of the rack.
const (
	provisioningVLAN = 100
	customerVLAN     = 200
	quarantineVLAN   = 999
	switchPort       = 9339
	username         = "bloomery"
	password         = "not-a-real-secret"
)

// devices are the rack's switch and how a command's sender is named.
type devices struct {
	w     *world
	sw    *vswitch.Switch
	ca    string
	login string
}

// plugIn starts the switch and its gNMI server.
func (w *world) plugIn() (*devices, error) {
	d := &devices{w: w, ca: filepath.Join(w.dir, "switch-ca.crt"), login: filepath.Join(w.dir, "switch-password")}
	certificate, ca, err := vswitch.SelfSigned(hub.String())
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(d.ca, ca, 0o600); err != nil {
		return nil, err
	}
	if err := os.WriteFile(d.login, []byte(password), 0o600); err != nil {
		return nil, err
	}
	d.sw = vswitch.New(vswitch.Config{Name: "tor1", OnSet: d.onSet})
	l, err := new(net.ListenConfig).Listen(w.ctx, "tcp", netip.AddrPortFrom(hub, switchPort).String())
	if err != nil {
		return nil, err
	}
	if err := d.sw.ServeGNMI(w.ctx, l, vswitch.GNMIOptions{Certificate: certificate, Username: username, Password: password}); err != nil {
		return nil, err
	}
	w.running.Go(func() {
		if err := d.sw.Run(w.ctx); err != nil {
			w.t.Errorf("switch: %v", err)
		}
	})
	return d, nil
}

// onSet notes a port's move. Ports are named as the machines are.
func (d *devices) onSet(from net.Addr, port string, before, after vswitch.VLAN) {
	address, err := netip.ParseAddrPort(from.String())
	if err != nil {
		d.w.note("the switch was set by %v", from)
		return
	}
	d.w.record.add(history.Entry{Kind: history.Acted, Machine: port, Node: d.w.nodeAt(address.Addr()), Action: history.MovePort,
		Changed: before.Access != after.Access, Value: networkName(after.Access)})
}

func networkName(vlan uint16) string {
	switch vlan {
	case provisioningVLAN:
		return history.Provisioning
	case customerVLAN:
		return "customer-a"
	}
	return fmt.Sprintf("vlan-%d", vlan)
}

// nodeAt names the coordinator that has an address.
func (w *world) nodeAt(a netip.Addr) string {
	for _, n := range w.nodes {
		if n.address == a.Unmap() {
			return n.name
		}
	}
	return a.String()
}

// powerSupply is a machine's power as its BMC switches it.
type powerSupply struct {
	m *machine
	// mu keeps one command at a time.
	mu sync.Mutex
}

var _ bmc.Power = (*powerSupply)(nil)

func (p *powerSupply) acted(ctx context.Context, action string, changed bool) {
	from, _ := bmc.Peer(ctx)
	p.m.w.record.add(history.Entry{Kind: history.Acted, Machine: p.m.name, Node: p.m.w.nodeAt(from.Addr()), Action: action, Changed: changed})
}

// On implements bmc.Power.
func (p *powerSupply) On() bool { return p.m.on.Load() }

// PowerOn implements bmc.Power.
func (p *powerSupply) PowerOn(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acted(ctx, history.PowerOn, !p.On())
	if !p.On() {
		p.m.powerOn()
	}
	return nil
}

// PowerOff implements bmc.Power.
func (p *powerSupply) PowerOff(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.acted(ctx, history.PowerOff, p.On())
	if p.On() {
		p.m.powerOff()
	}
	return nil
}

// Reset implements bmc.Power.
func (p *powerSupply) Reset(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.On() {
		return fmt.Errorf("machine %s is off", p.m.name)
	}
	p.acted(ctx, history.Reset, true)
	p.m.powerOff()
	p.m.powerOn()
	return nil
}

// Shutdown implements bmc.Power; nobody asks for it.
func (p *powerSupply) Shutdown(ctx context.Context) error { return p.PowerOff(ctx) }

func (p *powerSupply) bootSet(ctx context.Context, _ bmc.Boot) {
	p.acted(ctx, history.BootDevice, true)
}
