package netboot

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"syscall"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// pxeBootDirectly is option 43 with PXE_DISCOVERY_CONTROL = 8: no boot server
// discovery, no menu, fetch the named file (PXE 2.1, section 2.4.2.1).
var pxeBootDirectly = []byte{6, 1, 8, 255}

// reply builds the DHCPOFFER or DHCPACK. Its options are those that the client
// needs and no more: firmware is picky about what it does not expect.
func (s *DHCPServer) reply(in received, a Answer, lease netip.Addr) (*dhcpv4.DHCPv4, error) {
	reply, err := s.emptyReply(in)
	if err != nil {
		return nil, err
	}
	kind := dhcpv4.MessageTypeAck
	if in.request.Message == dhcpv4.MessageTypeDiscover {
		kind = dhcpv4.MessageTypeOffer
	}
	reply.UpdateOption(dhcpv4.OptMessageType(kind))
	if in.request.Message == dhcpv4.MessageTypeInform {
		// RFC 2131, section 4.3.5: neither yiaddr nor a lease time.
		reply.ClientIPAddr = in.packet.ClientIPAddr
	} else {
		reply.YourIPAddr = lease.AsSlice()
		if kind == dhcpv4.MessageTypeAck {
			reply.ClientIPAddr = in.packet.ClientIPAddr
		}
		reply.UpdateOption(dhcpv4.OptIPAddressLeaseTime(s.cfg.LeaseTime))
	}
	reply.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(s.cfg.Address.Bits(), 32)))
	if s.cfg.Router.IsValid() {
		reply.UpdateOption(dhcpv4.OptRouter(s.cfg.Router.AsSlice()))
	}
	if len(s.cfg.DNS) > 0 {
		reply.UpdateOption(dhcpv4.OptDNS(netIPs(s.cfg.DNS)...))
	}
	s.addBoot(reply, in, a)
	return reply, nil
}

func (s *DHCPServer) addBoot(reply *dhcpv4.DHCPv4, in received, a Answer) {
	file := s.bootFile(a)
	switch a.Method {
	case ByHTTP:
		// UEFI 2.10, section 24.7.3.1: the class marks an HTTP boot offer, the
		// boot file is a URI.
		reply.UpdateOption(dhcpv4.OptClassIdentifier(vendorClassHTTP))
		reply.UpdateOption(dhcpv4.OptBootFileName(file))
	case ByTFTP:
		server := s.cfg.Address.Addr()
		reply.ServerIPAddr = server.AsSlice()
		reply.BootFileName = file
		reply.UpdateOption(dhcpv4.OptClassIdentifier(vendorClassPXE))
		reply.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionVendorSpecificInformation, pxeBootDirectly))
		reply.UpdateOption(dhcpv4.OptTFTPServerName(server.String()))
		reply.UpdateOption(dhcpv4.OptBootFileName(file))
		if id := in.packet.Options.Get(dhcpv4.OptionClientMachineIdentifier); id != nil {
			reply.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, id))
		}
	}
}

// bootFile is the URL or the TFTP file name of an answer, "" if there is none.
func (s *DHCPServer) bootFile(a Answer) string {
	switch a.Method {
	case ByHTTP:
		return s.cfg.BootURL + a.File
	case ByTFTP:
		return a.File
	}
	return ""
}

// refusal builds the DHCPNAK: message type and server identifier, no address.
func (s *DHCPServer) refusal(in received) (*dhcpv4.DHCPv4, error) {
	reply, err := s.emptyReply(in)
	if err != nil {
		return nil, err
	}
	reply.UpdateOption(dhcpv4.OptMessageType(dhcpv4.MessageTypeNak))
	if in.request.Relay.IsValid() {
		// RFC 2131, section 4.3.2: the relay must broadcast it to the client.
		reply.SetBroadcast()
	}
	return reply, nil
}

// emptyReply echoes what every reply must: transaction, flags, relay, client
// identifier (RFC 6842) and relay information (RFC 3046).
func (s *DHCPServer) emptyReply(in received) (*dhcpv4.DHCPv4, error) {
	reply, err := dhcpv4.NewReplyFromRequest(in.packet)
	if err != nil {
		return nil, fmt.Errorf("build DHCP reply: %w", err)
	}
	reply.UpdateOption(dhcpv4.OptServerIdentifier(s.cfg.Address.Addr().AsSlice()))
	return reply, nil
}

// send follows RFC 2131, section 4.1: by the relay if there is one, to the
// address that the client has, broadcast where it wants that or is being
// refused, else to its new address, which only its MAC address reaches.
func (s *DHCPServer) send(conn net.PacketConn, r Request, reply *dhcpv4.DHCPv4) error {
	payload := reply.ToBytes()
	ciaddr := addrOf(reply.ClientIPAddr)
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), dhcpClientPort)
	switch {
	case r.Relay.IsValid():
		to = netip.AddrPortFrom(r.Relay, dhcpServerPort)
	case reply.MessageType() == dhcpv4.MessageTypeNak:
	case ciaddr.IsValid():
		to = netip.AddrPortFrom(ciaddr, dhcpClientPort)
	case !reply.IsBroadcast() && s.cfg.Link != nil:
		lease := addrOf(reply.YourIPAddr)
		if err := s.cfg.Link.Send(r.MAC, lease, dhcpClientPort, payload); err != nil {
			return fmt.Errorf("send DHCP reply to %s (%s): %w", r.MAC, lease, err)
		}
		return nil
	}
	if _, err := conn.WriteTo(payload, net.UDPAddrFromAddrPort(to)); err != nil {
		return fmt.Errorf("send DHCP reply to %s: %w", to, err)
	}
	return nil
}

// checkBootURL wants "http://ADDRESS[:PORT]/DIR/": firmware resolves no name
// without a DNS server.
func checkBootURL(s string, names bool) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	_, ipErr := netip.ParseAddr(u.Hostname())
	switch {
	case u.Scheme != "http":
		return fmt.Errorf("%q: want a URL that starts with http://", s)
	case ipErr != nil && !names:
		return fmt.Errorf("%q: the host must be an address, as no DNS server is given to machines", s)
	case u.Path == "" || u.Path[len(u.Path)-1] != '/' || u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("%q: want a directory that ends with a slash", s)
	case len(s) > 200:
		return fmt.Errorf("%q: longer than 200 bytes", s)
	}
	return nil
}

func netIPs(addrs []netip.Addr) []net.IP {
	ips := make([]net.IP, len(addrs))
	for i, a := range addrs {
		ips[i] = a.AsSlice()
	}
	return ips
}

// isQueuedError tells the errors that Linux hands to the next call on a UDP
// socket after an earlier datagram bounced.
func isQueuedError(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.EHOSTUNREACH) ||
		errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.ENETDOWN) || errors.Is(err, syscall.EINTR)
}
