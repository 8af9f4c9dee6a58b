package netboot

import (
	"fmt"
	"net/netip"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// AgentImage is the name of the unified kernel image that firmware boots.
const AgentImage = "bloomery-agent.efi"

// Wish is what a machine is expected to boot right now.
type Wish uint8

const (
	// WishNothing: nobody expects the machine on the provisioning network.
	WishNothing Wish = iota
	// WishAgent: the machine is to boot the agent image.
	WishAgent
	// WishLocalDisk: the machine runs what is on its disks and is never
	// netbooted, whatever it asks for.
	WishLocalDisk
)

func (w Wish) String() string {
	switch w {
	case WishNothing:
		return "nothing"
	case WishAgent:
		return "agent"
	case WishLocalDisk:
		return "local disk"
	}
	return fmt.Sprintf("wish %d", uint8(w))
}

// Host is what the coordinator knows of a MAC address right now.
type Host struct {
	// Known says that the MAC address belongs to a machine record.
	Known bool
	// Machine is the record's name, for events and logs.
	Machine string
	// Wish is what the machine is expected to boot.
	Wish Wish
	// Address is the lease of this MAC address, the same from every
	// coordinator. The zero value means that none was allocated yet.
	Address netip.Addr
}

// Action is what the DHCP server does with a request.
type Action uint8

const (
	// Silence sends nothing: the client goes on as if no server were there.
	Silence Action = iota
	// Refuse sends a DHCPNAK: the client starts again with a DHCPDISCOVER.
	Refuse
	// LeaseOnly sends an address and nothing to boot.
	LeaseOnly
	// LeaseAndBoot sends an address and what to boot.
	LeaseAndBoot
)

func (a Action) String() string {
	switch a {
	case Silence:
		return "silence"
	case Refuse:
		return "refuse"
	case LeaseOnly:
		return "lease"
	case LeaseAndBoot:
		return "lease and boot"
	}
	return fmt.Sprintf("action %d", uint8(a))
}

// Method is how a client fetches the file that it boots.
type Method uint8

const (
	// ByNothing: there is no file to fetch.
	ByNothing Method = iota
	// ByHTTP: UEFI HTTP boot, a URL in option 67.
	ByHTTP
	// ByTFTP: PXE, a server and a file name.
	ByTFTP
)

func (m Method) String() string {
	switch m {
	case ByNothing:
		return "none"
	case ByHTTP:
		return "http"
	case ByTFTP:
		return "tftp"
	}
	return fmt.Sprintf("method %d", uint8(m))
}

// Answer is what a client gets.
type Answer struct {
	Action Action
	// Reason says why, in words for an operator. It is never empty.
	Reason string
	// Method and File are set with LeaseAndBoot only. File is a name without
	// directories, as the TFTP and HTTP servers know it.
	Method Method
	File   string
}

// Decide says what a DHCP client gets. It is a function of its arguments only.
//
//   - A MAC address without a machine record gets silence, so do a machine that
//     nobody expects and one that runs from its disks (Refuse and leases would
//     both disturb whoever else serves that wire).
//   - A machine that is to boot the agent gets the agent image when its
//     firmware asks (UEFI HTTP boot or UEFI PXE, x64), and a lease when the
//     agent's own DHCP client asks. Its installed OS asking gets silence.
//   - BIOS PXE (architecture 0) gets silence: the agent image is a UEFI
//     program, so BIOS boot would need iPXE or pxelinux in front of
//     vmlinuz and initramfs.cpio.zst, which are not part of netboot. The same
//     holds for firmware of other processors until there is an image for them.
//   - A wanted client that insists on an address which is not its lease is
//     refused (RFC 2131, section 4.3.2), so that it asks afresh at once.
func Decide(h Host, r Request) Answer {
	if reason := notServed(h, r); reason != "" {
		return Answer{Reason: reason}
	}
	answer, ok := bootAnswer(r)
	if !ok {
		return answer
	}
	return confirm(h, r, answer)
}

// notServed names the reason why a request is not looked at any further, or "".
func notServed(h Host, r Request) string {
	switch {
	case !h.Known:
		return "unknown machine"
	case h.Wish == WishLocalDisk:
		return "machine runs from its local disk and is never netbooted"
	case h.Wish != WishAgent:
		return "machine is not expected to boot"
	}
	switch r.Message {
	case dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeInform:
		return ""
	case dhcpv4.MessageTypeDecline:
		return fmt.Sprintf("machine declined %s: another host uses that address", r.Requested)
	case dhcpv4.MessageTypeRelease:
		return "release needs no answer"
	}
	return fmt.Sprintf("%s is not a message that a client sends", r.Message)
}

// bootAnswer matches the client and its architecture, regardless of addresses.
func bootAnswer(r Request) (Answer, bool) {
	method := ByNothing
	switch r.Client {
	case ClientAgent:
		return Answer{Action: LeaseOnly, Reason: "agent asks for its lease"}, true
	case ClientHTTP:
		method = ByHTTP
	case ClientPXE:
		method = ByTFTP
	default:
		return Answer{Reason: "neither boot firmware nor the agent asks: an installed system gets no lease here"}, false
	}
	if !r.HasArch {
		return Answer{Reason: "firmware does not name its architecture (DHCP option 93)"}, false
	}
	file, reason := r.Arch.image()
	if file == "" {
		return Answer{Reason: reason}, false
	}
	return Answer{Action: LeaseAndBoot, Reason: "machine is expected to boot the agent", Method: method, File: file}, true
}

// confirm compares the address that the client names with its lease.
func confirm(h Host, r Request, answer Answer) Answer {
	switch r.Message {
	case dhcpv4.MessageTypeInform:
		if !h.Address.IsValid() || r.Requested != h.Address {
			return Answer{Reason: fmt.Sprintf("inform from %s, which is not the machine's lease", addrText(r.Requested))}
		}
	case dhcpv4.MessageTypeRequest:
		switch {
		case !r.Requested.IsValid():
			return Answer{Action: Refuse, Reason: "request names no address"}
		case !h.Address.IsValid():
			return Answer{Action: Refuse, Reason: fmt.Sprintf("machine has no lease yet and asks for %s", r.Requested)}
		case r.Requested != h.Address:
			return Answer{Action: Refuse, Reason: fmt.Sprintf("machine asks for %s, its lease is %s", r.Requested, h.Address)}
		}
	}
	return answer
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return "no address"
	}
	return a.String()
}
