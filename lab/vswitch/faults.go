package vswitch

import (
	"fmt"
	"net"
)

// Cut pulls a port's cable: the link goes down, frames are lost both ways, learned addresses are forgotten. The machine does
// not see its carrier go, as the socket stays (QEMU before 8.0 would not connect again); QEMU's set_link does that.
func (s *Switch) Cut(name string) error { return s.setCut(name, true) }

// Restore plugs the cable in again.
func (s *Switch) Restore(name string) error { return s.setCut(name, false) }

func (s *Switch) setCut(name string, cut bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.find(name)
	if err != nil {
		return err
	}
	if p.cut == cut {
		return nil
	}
	p.cut = cut
	if cut && p.link.out != nil {
		p.link.out.clear()
	}
	s.linkChanged(p)
	s.log.Info("fault", "port", name, "cut", cut)
	return nil
}

// SetLoss makes a port lose and duplicate frames with the given probabilities (0 to 1); loss strikes in both directions,
// duplication those that leave by the port.
func (s *Switch) SetLoss(name string, drop, duplicate float64) error {
	if !(drop >= 0 && drop <= 1) || !(duplicate >= 0 && duplicate <= 1) {
		return fmt.Errorf("port %s: loss %v, duplication %v: want 0 to 1", name, drop, duplicate)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.find(name)
	if err != nil {
		return err
	}
	p.drop, p.dup = drop, duplicate
	s.log.Info("fault", "port", name, "drop", drop, "duplicate", duplicate)
	return nil
}

// SwapCables is the wrong-cable fault: what hung on port a hangs on port b and the other way round. Configuration stays
// with the ports. A second call mends it.
func (s *Switch) SwapCables(a, b string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	pa, err := s.find(a)
	if err != nil {
		return err
	}
	pb, err := s.find(b)
	if err != nil {
		return err
	}
	pa.link, pb.link = pb.link, pa.link
	pa.link.port, pb.link.port = pa, pb
	s.linkChanged(pa)
	s.linkChanged(pb)
	s.log.Info("fault", "swapped", a, "with", b)
	return nil
}

// InjectMAC makes the switch believe that it has just seen the address on the port, in the VLAN.
func (s *Switch) InjectMAC(name string, addr net.HardwareAddr, vlan uint16) error {
	if len(addr) != 6 {
		return fmt.Errorf("port %s: inject %q: want a 48-bit address", name, addr)
	}
	m := macOf(addr)
	if m.group() || m == 0 {
		return fmt.Errorf("port %s: inject %s: want an individual address", name, addr)
	}
	now := s.now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	p, err := s.find(name)
	if err != nil {
		return err
	}
	if _, ok := p.vlan.egress(vlan); !ok {
		return fmt.Errorf("port %s: inject %s: the port is not in VLAN %d", name, addr, vlan)
	}
	s.fdb.learn(vlan, m, p, now)
	return nil
}
