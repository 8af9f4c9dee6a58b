package netboot

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// TestDecideEveryCombination compares Decide with the rules stated a second
// way, as conditions for every answer that is not silence.
func TestDecideEveryCombination(t *testing.T) {
	lease, other := netip.MustParseAddr("10.66.0.100"), netip.MustParseAddr("10.66.0.101")
	x64 := map[Arch]bool{7: true, 9: true, 16: true, 17: true}
	served := map[Action]int{}
	for _, known := range []bool{false, true} {
		for _, wish := range []Wish{WishNothing, WishAgent, WishLocalDisk, 9} {
			for _, leased := range []netip.Addr{{}, lease} {
				for _, client := range []Client{ClientOther, ClientHTTP, ClientPXE, ClientAgent} {
					for arch := Arch(0); arch < 40; arch++ {
						for _, hasArch := range []bool{false, true} {
							for message := dhcpv4.MessageType(0); message < 20; message++ {
								for _, asked := range []netip.Addr{{}, lease, other} {
									h := Host{Known: known, Machine: "m", Wish: wish, Address: leased}
									r := Request{Message: message, Client: client, Arch: arch, HasArch: hasArch, Requested: asked}
									got := Decide(h, r)

									firmware := (client == ClientHTTP || client == ClientPXE) && hasArch && x64[arch]
									wanted := known && wish == WishAgent && (firmware || client == ClientAgent)
									holds := leased.IsValid() && asked == leased
									want := Silence
									switch {
									case !wanted:
									case message == dhcpv4.MessageTypeRequest && !holds:
										want = Refuse
									case message == dhcpv4.MessageTypeDiscover,
										message == dhcpv4.MessageTypeRequest,
										message == dhcpv4.MessageTypeInform && holds:
										want = LeaseOnly
										if firmware {
											want = LeaseAndBoot
										}
									}
									served[got.Action]++
									if got.Action != want {
										t.Fatalf("Decide(%+v, %+v) = %+v, want %s", h, r, got, want)
									}
									if got.Reason == "" {
										t.Fatalf("Decide(%+v, %+v) gives no reason", h, r)
									}
									if boots := got.Action == LeaseAndBoot; (got.File == AgentImage) != boots || (got.Method != ByNothing) != boots {
										t.Fatalf("Decide(%+v, %+v) = %+v: file and method do not fit the action", h, r, got)
									}
									if got.Method == ByHTTP && client != ClientHTTP || got.Method == ByTFTP && client != ClientPXE {
										t.Fatalf("Decide(%+v, %+v) = %+v: method of another client", h, r, got)
									}
								}
							}
						}
					}
				}
			}
		}
	}
	for _, a := range []Action{Silence, Refuse, LeaseOnly, LeaseAndBoot} {
		if served[a] == 0 {
			t.Errorf("no combination gave %s", a)
		}
	}
}

func TestDecideReasons(t *testing.T) {
	wanted := Host{Known: true, Wish: WishAgent, Address: netip.MustParseAddr("10.66.0.100")}
	discover := func(c Client, a Arch) Request {
		return Request{Message: dhcpv4.MessageTypeDiscover, Client: c, Arch: a, HasArch: true}
	}
	for _, tt := range []struct {
		name string
		host Host
		req  Request
		want string
	}{
		{"unknown", Host{}, discover(ClientHTTP, ArchX64HTTP), "unknown machine"},
		{"running", Host{Known: true, Wish: WishLocalDisk}, discover(ClientPXE, ArchX64), "local disk"},
		{"unwanted", Host{Known: true}, discover(ClientPXE, ArchX64), "not expected"},
		{"bios", wanted, discover(ClientPXE, ArchBIOS), "BIOS boot is not supported: needs iPXE"},
		{"ia32", wanted, discover(ClientPXE, ArchIA32), "32-bit"},
		{"arm64", wanted, discover(ClientHTTP, ArchARM64HTTP), "no agent image for arm64 UEFI (19)"},
		{"installed system", wanted, discover(ClientOther, ArchX64), "installed system"},
		{"no architecture", wanted, Request{Message: dhcpv4.MessageTypeDiscover, Client: ClientPXE}, "option 93"},
		{"decline", wanted, Request{Message: dhcpv4.MessageTypeDecline, Requested: wanted.Address}, "declined 10.66.0.100"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Decide(tt.host, tt.req); got.Action != Silence || !strings.Contains(got.Reason, tt.want) {
				t.Errorf("got %s %q, want silence and %q", got.Action, got.Reason, tt.want)
			}
		})
	}
}

func TestParseRequest(t *testing.T) {
	uuid := []byte{0, 4, 3, 2, 1, 6, 5, 8, 7, 9, 10, 11, 12, 13, 14, 15, 16}
	for _, tt := range []struct {
		name string
		edit func(*dhcpv4.DHCPv4)
		want Request
		fail string
	}{
		{"http", func(p *dhcpv4.DHCPv4) {
			p.UpdateOption(dhcpv4.OptClassIdentifier("HTTPClient:Arch:00016:UNDI:003001"))
			p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{0, 16}))
			p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, uuid))
		}, Request{Client: ClientHTTP, Arch: 16, HasArch: true, UUID: "01020304-0506-0708-090a-0b0c0d0e0f10"}, ""},
		{"arch of the class", func(p *dhcpv4.DHCPv4) {
			p.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00007:UNDI:003001"))
		}, Request{Client: ClientPXE, Arch: 7, HasArch: true}, ""},
		{"arch out of range", func(p *dhcpv4.DHCPv4) {
			p.UpdateOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:99999"))
		}, Request{Client: ClientPXE}, ""},
		{"class that only begins alike", func(p *dhcpv4.DHCPv4) {
			p.UpdateOption(dhcpv4.OptClassIdentifier("bloomery-agent2"))
		}, Request{}, ""},
		{"agent", func(p *dhcpv4.DHCPv4) {
			p.UpdateOption(dhcpv4.OptClassIdentifier("bloomery-agent"))
			p.ClientIPAddr = []byte{10, 66, 0, 7}
		}, Request{Client: ClientAgent, Requested: netip.MustParseAddr("10.66.0.7")}, ""},
		{"option 50 before ciaddr", func(p *dhcpv4.DHCPv4) {
			p.ClientIPAddr = []byte{10, 66, 0, 7}
			p.UpdateOption(dhcpv4.OptRequestedIPAddress([]byte{10, 66, 0, 8}))
		}, Request{Requested: netip.MustParseAddr("10.66.0.8")}, ""},
		{"odd option lengths", func(p *dhcpv4.DHCPv4) {
			p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionRequestedIPAddress, []byte{10, 66}))
			p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientMachineIdentifier, []byte{0}))
			p.UpdateOption(dhcpv4.OptGeneric(dhcpv4.OptionClientSystemArchitectureType, []byte{7}))
		}, Request{}, ""},
		{"reply", func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootReply }, Request{}, "no request"},
		{"token ring", func(p *dhcpv4.DHCPv4) { p.HWType = 6 }, Request{}, "no Ethernet"},
		{"multicast", func(p *dhcpv4.DHCPv4) { p.ClientHWAddr[0] |= 1 }, Request{}, "no station"},
		{"zero", func(p *dhcpv4.DHCPv4) { p.ClientHWAddr = make([]byte, 6) }, Request{}, "no station"},
		{"bootp", func(p *dhcpv4.DHCPv4) { delete(p.Options, 53) }, Request{}, "no message type"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := discover(t, tt.edit)
			got, err := ParseRequest(p)
			if tt.fail != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fail) {
					t.Fatalf("got %v, want an error with %q", err, tt.fail)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			tt.want.MAC, tt.want.Message = p.ClientHWAddr, dhcpv4.MessageTypeDiscover
			diff(t, tt.want, got)
		})
	}
}
