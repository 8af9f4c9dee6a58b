package lab

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
)

const (
	// oobVLAN carries the out-of-band network on the switch. Its prefix is the /16 that the switch's own address is in: BMCs begin where the
	// description puts them, coordinators have the addresses from oobFirst on, the devices' side of the tap oobDevices.
	oobVLAN    = 4000
	oobBits    = 16
	oobFirst   = 251
	oobDevices = 250
	// clusterPort is where coordinators reach each other's database, on the out-of-band network.
	clusterPort = 9000
	apiPort     = 8443
)

// place is where one of a rack's coordinators is: its names and addresses follow from its number.
type place struct {
	config Config
	// number counts from 1.
	number int
}

// places are all of a rack's coordinators.
func (c Config) places() []place {
	var all []place
	for i := range c.Coordinators {
		all = append(all, place{c, i + 1})
	}
	return all
}

// place finds a coordinator by name; "" is the first.
func (c Config) place(name string) (place, error) {
	if name == "" {
		name = "c1"
	}
	for _, p := range c.places() {
		if p.name() == name {
			return p, nil
		}
	}
	return place{}, fmt.Errorf("the rack has no coordinator %q; it has c1 to c%d", name, c.Coordinators)
}

// name is what the rack knows the coordinator by.
func (p place) name() string { return "c" + strconv.Itoa(p.number) }

// suffix tells the second and third coordinators' files and ports from the first's, whose names are those of a rack of one.
func (p place) suffix() string {
	if p.number == 1 {
		return ""
	}
	return strconv.Itoa(p.number)
}

// port, oobPort and gatewayPort are the switch's names of its links: a fault cuts each on its own.
func (p place) port() string    { return "coordinator" + p.suffix() }
func (p place) oobPort() string { return "oob" + p.suffix() }
func (p place) gatewayPort(net int) string {
	if p.number == 1 {
		return fmt.Sprintf("gateway%d", net)
	}
	return fmt.Sprintf("gateway%d-%s", net, p.name())
}

func (p place) namespace() string {
	if p.number == 1 {
		return coordinatorNamespace(p.config.Name)
	}
	return coordinatorNamespace(p.config.Name) + "-" + p.name()
}

// provisioning is its address there: the description's is the first's, the others follow it.
func (p place) provisioning() netip.Prefix {
	prefix := p.config.Provisioning.Address
	return netip.PrefixFrom(plus(prefix.Addr(), p.number-1), prefix.Bits())
}

// gateway is its address on a customer's network, likewise.
func (p place) gateway(n Network) netip.Prefix {
	return netip.PrefixFrom(plus(n.Gateway, p.number-1), n.Prefix.Bits())
}

func (p place) outOfBand() netip.Prefix { return p.config.oobAddress(oobFirst + p.number - 1) }

// cluster is where the other coordinators reach its database.
func (p place) cluster() string {
	return net.JoinHostPort(p.outOfBand().Addr().String(), strconv.Itoa(clusterPort))
}

// addresses are all that its certificate must carry.
func (p place) addresses() []string {
	all := []string{p.provisioning().Addr().String(), p.outOfBand().Addr().String()}
	for _, n := range p.config.customers() {
		all = append(all, p.gateway(n).Addr().String())
	}
	return all
}

func plus(a netip.Addr, n int) netip.Addr {
	for range n {
		a = a.Next()
	}
	return a
}

// oobPrefix is the out-of-band network, invalid if the switch's address is.
func (c Config) oobPrefix() netip.Prefix {
	ap, err := netip.ParseAddrPort(c.Switch.Address)
	if err != nil || !ap.Addr().Is4() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(ap.Addr(), oobBits).Masked()
}

// oobAddress is an address near the end of the out-of-band network, x.y.255.last.
func (c Config) oobAddress(last int) netip.Prefix {
	prefix := c.oobPrefix()
	if !prefix.IsValid() {
		return netip.Prefix{}
	}
	b := prefix.Addr().As4()
	b[2], b[3] = 255, byte(last)
	return netip.PrefixFrom(netip.AddrFrom4(b), oobBits)
}

// oobNamespace is where the BMCs and the switch's gNMI server are.
func oobNamespace(rack string) string { return coordinatorNamespace(rack) + "-oob" }
