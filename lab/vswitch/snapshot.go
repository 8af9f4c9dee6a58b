package vswitch

// Status is the whole switch at one moment.
type Status struct {
	Name  string
	Ports []PortStatus // in the order in which they were added
}

// PortStatus is one port at one moment.
type PortStatus struct {
	Name     string
	Kind     string // "socket" or "tap"
	Far      string // the socket's path, or namespace/interface, of what is plugged in now
	LinkUp   bool
	Cut      bool
	Drop     float64
	Dup      float64
	VLAN     VLAN
	Counters Counters
	Learned  []Learned
}

// Snapshot tells what `lab status` and tests want to know.
func (s *Switch) Snapshot() Status {
	now := s.now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	learned := map[string][]Learned{}
	for _, l := range s.fdb.list(now) {
		learned[l.Port] = append(learned[l.Port], l)
	}
	out := Status{Name: s.name}
	for _, p := range s.ports {
		v := p.vlan
		v.Allowed = append([]uint16(nil), v.Allowed...)
		out.Ports = append(out.Ports, PortStatus{
			Name: p.name, Kind: p.link.kind, Far: p.link.far, LinkUp: p.up(), Cut: p.cut, Drop: p.drop, Dup: p.dup,
			VLAN: v, Counters: p.count.read(), Learned: learned[p.name],
		})
	}
	return out
}

// Port is the snapshot of one port; false when there is none of that name.
func (s Status) Port(name string) (PortStatus, bool) {
	for _, p := range s.Ports {
		if p.Name == name {
			return p, true
		}
	}
	return PortStatus{}, false
}
