package lab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/google/uuid"

	"bloomery/lab/bmc"
	"bloomery/lab/netns"
	"bloomery/lab/vswitch"
)

const (
	ovmfDir    = "/usr/share/OVMF"
	ovmfCode   = "OVMF_CODE_4M.fd"
	ovmfVars   = "OVMF_VARS_4M.fd"
	qemuBinary = "qemu-system-x86_64"
)

// supervisor owns everything of a rack that is not the coordinator: switch, BMCs and machines.
type supervisor struct {
	config   Config
	layout   layout
	log      *slog.Logger
	sw       *vswitch.Switch
	machines map[string]*machine
	started  time.Time

	cancel context.CancelFunc
}

// Run is the supervisor: it runs the rack in the state directory until the context ends, then switches
// every machine off. The namespaces must exist. It returns nil after an orderly end.
func Run(ctx context.Context, c Config, stateDir string, log *slog.Logger) (err error) {
	l, err := newLayout(stateDir, c)
	if err != nil {
		return err
	}
	for _, p := range []string{filepath.Join(ovmfDir, ovmfCode), filepath.Join(ovmfDir, ovmfVars)} {
		if _, err := os.Stat(p); err != nil {
			return fmt.Errorf("firmware for the machines: %w (Debian package ovmf)", err)
		}
	}
	if err := removeSockets(l, c); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &supervisor{config: c, layout: l, log: log, machines: map[string]*machine{}, started: time.Now(), cancel: cancel}
	spawn := newSpawner()
	var wg sync.WaitGroup
	// In this order: machines off, listeners closed, goroutines gone, switch closed, thread gone.
	defer spawn.close()
	defer func() {
		if s.sw != nil {
			err = errors.Join(err, s.sw.Close())
		}
	}()
	defer wg.Wait()
	defer cancel()
	defer s.allOff()

	if err := s.startSwitch(ctx, &wg); err != nil {
		return err
	}
	for _, m := range c.Machines {
		if err := s.addMachine(ctx, &wg, spawn, m); err != nil {
			return err
		}
	}
	control, err := net.Listen("unix", l.control())
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	log.Info("rack is up", "rack", c.Name, "machines", len(c.Machines), "state", l.dir)
	return s.serveControl(ctx, control)
}

// allOff takes the power from every machine and waits for their watchers.
func (s *supervisor) allOff() {
	s.cancel()
	for _, m := range s.machines {
		m.op.Lock()
		m.stop()
		m.op.Unlock()
		m.wg.Wait()
		m.qmp.Close()
		m.output.Close()
	}
}

// removeSockets clears what a killed supervisor left.
func removeSockets(l layout, c Config) error {
	paths := []string{l.control()}
	for _, m := range c.Machines {
		paths = append(paths, l.consoleSocket(m.Name), l.qmpSocket(m.Name), l.bmcSocket(m.Name), l.tpmSocket(m.Name))
		for i := range m.NICs {
			paths = append(paths, l.nicSocket(m.Name, i))
		}
	}
	for _, p := range paths {
		if err := os.Remove(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing an old socket: %w", err)
		}
	}
	return nil
}

// startSwitch makes the switch with the coordinators', the customers' and the devices' taps; machines' ports begin in quarantine.
func (s *supervisor) startSwitch(ctx context.Context, wg *sync.WaitGroup) error {
	c := s.config
	s.sw = vswitch.New(vswitch.Config{Name: c.Switch.Name, Log: s.log})
	for _, p := range c.places() {
		if err := s.plugCoordinator(p); err != nil {
			return fmt.Errorf("switch: coordinator %s: %w", p.name(), err)
		}
	}
	for i, n := range c.customers() {
		customer := netip.PrefixFrom(n.Customer, n.Prefix.Bits())
		if err := s.sw.AddTapPort(fmt.Sprintf("customer%d", i), customerNamespace(c.Name, n.Name), "eth0", customer, vswitch.Access(uint16(n.VLAN))); err != nil {
			return fmt.Errorf("switch: %w", err)
		}
	}
	if err := s.sw.AddTapPort("devices", oobNamespace(c.Name), "oob0", c.oobAddress(oobDevices), vswitch.Access(oobVLAN)); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	wg.Go(func() {
		if err := s.sw.Run(ctx); err != nil && ctx.Err() == nil {
			s.log.Error("switch stopped", "error", err)
		}
	})
	return s.serveGNMI(ctx, oobNamespace(c.Name))
}

// plugCoordinator cables a coordinator to the provisioning, the out-of-band and the customers' networks, a port each.
func (s *supervisor) plugCoordinator(p place) error {
	provisioning, _ := p.config.network("provisioning")
	if err := s.sw.AddTapPort(p.port(), p.namespace(), "prov0", p.provisioning(), vswitch.Access(uint16(provisioning.VLAN))); err != nil {
		return err
	}
	if err := s.sw.AddTapPort(p.oobPort(), p.namespace(), "oob0", p.outOfBand(), vswitch.Access(oobVLAN)); err != nil {
		return err
	}
	for i, n := range p.config.customers() {
		if err := s.sw.AddTapPort(p.gatewayPort(i), p.namespace(), fmt.Sprintf("cust%d", i), p.gateway(n), vswitch.Access(uint16(n.VLAN))); err != nil {
			return err
		}
	}
	return nil
}

func (s *supervisor) serveGNMI(ctx context.Context, namespace string) error {
	sw := s.config.Switch
	addr, err := netip.ParseAddrPort(sw.Address)
	if err != nil {
		return fmt.Errorf("switch.address: %w", err)
	}
	if err := netns.AddAddress(namespace, "lo", netip.PrefixFrom(addr.Addr(), 32)); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	cert, ca, err := vswitch.SelfSigned(addr.Addr().String(), sw.Name)
	if err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	if err := os.WriteFile(s.layout.switchCA(), ca, 0o600); err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	l, err := netns.Listen(ctx, namespace, "tcp4", sw.Address)
	if err != nil {
		return fmt.Errorf("switch: %w", err)
	}
	return s.sw.ServeGNMI(ctx, l, vswitch.GNMIOptions{Certificate: cert, Username: sw.Username, Password: sw.Password})
}

// addMachine makes a machine, its ports and its BMC; it stays off.
func (s *supervisor) addMachine(ctx context.Context, wg *sync.WaitGroup, spawn *spawner, c Machine) error {
	l := s.layout
	if err := prepareMachine(l, c, filepath.Join(ovmfDir, ovmfVars)); err != nil {
		return err
	}
	quarantine, _ := s.config.network("quarantine")
	for i, n := range c.NICs {
		if err := s.sw.AddSocketPort(n.Port, l.nicSocket(c.Name, i), vswitch.Access(uint16(quarantine.VLAN))); err != nil {
			return fmt.Errorf("machine %s: %w", c.Name, err)
		}
	}
	m := &machine{
		config: c, layout: l, spec: machineSpec(l, s.config.Accel, filepath.Join(ovmfDir, ovmfCode), c), binary: qemuBinary,
		env: os.Environ(), log: s.log.With("machine", c.Name), spawn: spawn, ctx: ctx, cutNICs: map[int]bool{}, pulled: map[int]bool{},
	}
	var err error
	if m.output, err = os.OpenFile(l.log("qemu-"+c.Name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600); err != nil {
		return fmt.Errorf("machine %s: %w", c.Name, err)
	}
	if m.qmp, err = net.Listen("unix", l.qmpSocket(c.Name)); err != nil {
		return errors.Join(fmt.Errorf("machine %s: %w", c.Name, err), m.output.Close())
	}
	if m.console, err = newConsole(l.consoleSocket(c.Name), l.log("console-"+c.Name)); err != nil {
		return errors.Join(fmt.Errorf("machine %s: %w", c.Name, err), m.output.Close(), m.qmp.Close())
	}
	s.machines[c.Name] = m
	wg.Go(func() { m.console.serve(ctx) })
	return s.addBMC(ctx, wg, m)
}

func (s *supervisor) addBMC(ctx context.Context, wg *sync.WaitGroup, m *machine) error {
	c := m.config
	fail := func(err error) error { return fmt.Errorf("machine %s: BMC: %w", c.Name, err) }
	addr, err := netip.ParseAddrPort(c.BMC.Address)
	if err != nil {
		return fail(err)
	}
	guid, err := uuid.Parse(c.UUID)
	if err != nil {
		return fail(err)
	}
	m.bmc, err = bmc.New(bmc.Config{Address: addr, Username: c.BMC.Username, Password: c.BMC.Password, GUID: guid, Power: m})
	if err != nil {
		return fail(err)
	}
	namespace := oobNamespace(s.config.Name)
	if err := netns.AddAddress(namespace, "lo", netip.PrefixFrom(addr.Addr(), 32)); err != nil {
		return fail(err)
	}
	conn, err := netns.ListenPacket(ctx, namespace, "udp4", c.BMC.Address)
	if err != nil {
		return fail(err)
	}
	inside, err := net.Listen("unix", s.layout.bmcSocket(c.Name))
	if err != nil {
		return fail(errors.Join(err, conn.Close()))
	}
	wg.Go(func() {
		if err := m.bmc.Serve(ctx, conn); err != nil {
			m.log.Error("BMC stopped answering the network", "error", err)
		}
	})
	wg.Go(func() {
		if err := m.bmc.ServeMachine(ctx, inside); err != nil {
			m.log.Error("BMC stopped answering its machine", "error", err)
		}
	})
	return nil
}
