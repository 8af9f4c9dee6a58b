package netboot

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// AgentVendorClass is the DHCP option 60 of the agent's own DHCP client.
const AgentVendorClass = "bloomery-agent"

const (
	vendorClassHTTP = "HTTPClient"
	vendorClassPXE  = "PXEClient"
)

// Client is the kind of program that sent a request, by its DHCP option 60.
type Client uint8

const (
	// ClientOther is anything else, an installed operating system for one.
	ClientOther Client = iota
	// ClientHTTP is firmware doing UEFI HTTP boot (UEFI 2.10, section 24.7).
	ClientHTTP
	// ClientPXE is firmware doing PXE (PXE 2.1, section 2.2.3).
	ClientPXE
	// ClientAgent is the agent's own DHCP client.
	ClientAgent
)

// Firmware tells whether a machine's firmware asks, not a program that it has started.
func (c Client) Firmware() bool { return c == ClientHTTP || c == ClientPXE }

func (c Client) String() string {
	switch c {
	case ClientHTTP:
		return "UEFI HTTP boot"
	case ClientPXE:
		return "PXE"
	case ClientAgent:
		return "agent"
	}
	return "other"
}

// Request is what a DHCP packet asks for.
type Request struct {
	MAC     net.HardwareAddr
	Message dhcpv4.MessageType
	Client  Client
	// Arch holds if HasArch: option 93, else the number in the vendor class.
	Arch    Arch
	HasArch bool
	// Requested is the address that the client means: option 50, else ciaddr.
	Requested netip.Addr
	// Server is option 54, the server which the client chose.
	Server netip.Addr
	// Relay is giaddr: the relay agent that forwarded the packet.
	Relay netip.Addr
	// UUID is option 97, written the way SMBIOS 2.6 and dmidecode do: the
	// first three fields are little-endian on the wire. "" if there is none.
	UUID string
}

// ParseRequest reads what is asked from a DHCP packet. It fails on packets that
// no Ethernet client sends: replies, other hardware types, multicast or zero MAC
// addresses, BOOTP without a message type.
func ParseRequest(p *dhcpv4.DHCPv4) (Request, error) {
	if p.OpCode != dhcpv4.OpcodeBootRequest {
		return Request{}, fmt.Errorf("parse DHCP request: opcode %d is no request", p.OpCode)
	}
	const ethernet = 1
	if p.HWType != ethernet || len(p.ClientHWAddr) != 6 {
		return Request{}, fmt.Errorf("parse DHCP request: hardware type %d with %d address bytes is no Ethernet", p.HWType, len(p.ClientHWAddr))
	}
	if p.ClientHWAddr[0]&1 != 0 || [6]byte(p.ClientHWAddr) == [6]byte{} {
		return Request{}, fmt.Errorf("parse DHCP request: %s is no station's MAC address", p.ClientHWAddr)
	}
	if p.MessageType() == dhcpv4.MessageTypeNone {
		return Request{}, fmt.Errorf("parse DHCP request: no message type from %s", p.ClientHWAddr)
	}
	class := string(p.Options.Get(dhcpv4.OptionClassIdentifier))
	r := Request{
		MAC:     p.ClientHWAddr,
		Message: p.MessageType(),
		Client:  clientOf(class),
		Server:  optionAddr(p, dhcpv4.OptionServerIdentifier),
		Relay:   addrOf(p.GatewayIPAddr),
		UUID:    uuidOf(p.Options.Get(dhcpv4.OptionClientMachineIdentifier)),
	}
	r.Requested = optionAddr(p, dhcpv4.OptionRequestedIPAddress)
	if !r.Requested.IsValid() {
		r.Requested = addrOf(p.ClientIPAddr)
	}
	r.Arch, r.HasArch = archOf(p.Options.Get(dhcpv4.OptionClientSystemArchitectureType), class)
	return r, nil
}

func clientOf(class string) Client {
	switch {
	case class == AgentVendorClass:
		return ClientAgent
	case class == vendorClassHTTP, strings.HasPrefix(class, vendorClassHTTP+":"):
		return ClientHTTP
	case class == vendorClassPXE, strings.HasPrefix(class, vendorClassPXE+":"):
		return ClientPXE
	}
	return ClientOther
}

// archOf takes the first type of option 93, which is the client's preferred
// one, else the number in a class such as "PXEClient:Arch:00007:UNDI:003001".
func archOf(option []byte, class string) (Arch, bool) {
	if len(option) >= 2 {
		return Arch(binary.BigEndian.Uint16(option)), true
	}
	fields := strings.Split(class, ":")
	if len(fields) < 3 || fields[1] != "Arch" {
		return 0, false
	}
	n, err := strconv.ParseUint(fields[2], 10, 16)
	if err != nil {
		return 0, false
	}
	return Arch(n), true
}

// uuidOf reads option 97 (RFC 4578, section 2.3): a zero byte and 16 bytes.
func uuidOf(b []byte) string {
	if len(b) != 17 || b[0] != 0 {
		return ""
	}
	b = b[1:]
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint16(b[4:]),
		binary.LittleEndian.Uint16(b[6:]), b[8:10], b[10:])
}

func optionAddr(p *dhcpv4.DHCPv4, code dhcpv4.OptionCode) netip.Addr {
	return addrOf(net.IP(p.Options.Get(code)))
}

// addrOf is the zero Addr for anything but a specified IPv4 address.
func addrOf(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip.To4())
	if !ok || a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}
