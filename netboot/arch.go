package netboot

import "fmt"

// Arch is a processor architecture type: DHCP option 93 of RFC 4578, section
// 2.1, in the numbering of IANA's "Processor Architecture Types" registry.
type Arch uint16

// The architecture types that firmware of servers sends. RFC 4578 as printed
// has 7 (EFI byte code) and 9 (x64) the other way round than the registry;
// x64 firmware of either reading is in the field, so both count as x64.
const (
	ArchBIOS       Arch = 0
	ArchIA32       Arch = 6
	ArchX64        Arch = 7
	ArchX64Alt     Arch = 9
	ArchARM32      Arch = 10
	ArchARM64      Arch = 11
	ArchIA32HTTP   Arch = 15
	ArchX64HTTP    Arch = 16
	ArchX64AltHTTP Arch = 17
	ArchARM32HTTP  Arch = 18
	ArchARM64HTTP  Arch = 19
	ArchBIOSHTTP   Arch = 20
)

// String names the architecture and its number, as in "x64 UEFI (7)".
func (a Arch) String() string {
	return fmt.Sprintf("%s (%d)", a.name(), uint16(a))
}

func (a Arch) name() string {
	switch a {
	case ArchBIOS, ArchBIOSHTTP:
		return "x86 BIOS"
	case ArchIA32, ArchIA32HTTP:
		return "IA32 UEFI"
	case ArchX64, ArchX64Alt, ArchX64HTTP, ArchX64AltHTTP:
		return "x64 UEFI"
	case ArchARM32, ArchARM32HTTP:
		return "arm32 UEFI"
	case ArchARM64, ArchARM64HTTP:
		return "arm64 UEFI"
	}
	return "unknown architecture"
}

// image is the file which firmware of this architecture boots, or the reason
// why there is none. A further architecture is a further case here.
func (a Arch) image() (file, reason string) {
	switch a {
	case ArchX64, ArchX64Alt, ArchX64HTTP, ArchX64AltHTTP:
		return AgentImage, ""
	case ArchBIOS, ArchBIOSHTTP:
		return "", "BIOS boot is not supported: needs iPXE or pxelinux; set the machine's firmware to UEFI"
	case ArchIA32, ArchIA32HTTP:
		return "", "32-bit UEFI cannot start the x64 agent image"
	}
	return "", fmt.Sprintf("no agent image for %s", a)
}
