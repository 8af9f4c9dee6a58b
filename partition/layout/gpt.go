package layout

import (
	"slices"
	"strings"
)

// Types of partitions that rules look for.
const (
	TypeESP      = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" // UEFI 2.10, table 5-8
	TypeBIOSBoot = "21686148-6449-6e6f-744e-656564454649" // GRUB manual, section 3.4
	typeLinux    = "0fc63daf-8483-4772-8e79-3d69d8477de4"
	typeSwap     = "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"
	typeRAID     = "a19d880f-05fc-4d3b-a006-743f0f84911e"
	typeLVM      = "e6d6d379-f507-44c2-a23c-238f2a3df928"
	typeLUKS     = "ca7d7ccb-63ed-4c53-861c-1742536059cc"
)

// partitionType is a name for a type's GUID: those of the UAPI Group's Discoverable Partitions Specification, and Microsoft's.
type partitionType struct{ name, guid string }

func partitionTypes() []partitionType {
	return []partitionType{
		{"esp", TypeESP},
		{"bios-boot", TypeBIOSBoot},
		{"linux", typeLinux},
		{"swap", typeSwap},
		{"raid", typeRAID},
		{"lvm", typeLVM},
		{"luks", typeLUKS},
		{"root", "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"}, // amd64's
		{"home", "933ac7e1-2eb4-4f13-b844-0e14e2aef915"},
		{"srv", "3b8f8425-20e0-4f3b-907f-1a25a76f98e8"},
		{"xbootldr", "bc13c2ff-59e6-4262-a352-b275fd6f7172"},
		{"microsoft-data", "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"},
		{"microsoft-reserved", "e3c9e316-0b5c-4db8-817d-f92df00215ae"},
	}
}

// typeGUID is the GUID of a type by name or GUID, "" when it is neither.
func typeGUID(text string) string {
	if guid := strings.ToLower(text); guidExpression.MatchString(guid) {
		return guid
	}
	for _, t := range partitionTypes() {
		if t.name == text {
			return t.guid
		}
	}
	return ""
}

func typeNames() []string {
	var names []string
	for _, t := range partitionTypes() {
		names = append(names, t.name)
	}
	return names
}

// attribute is a bit of a partition's entry: 0 to 2 are UEFI's (2.10, table 5-8), the others the Discoverable Partitions Specification's.
type attribute struct {
	name string
	bit  uint
}

func attributes() []attribute {
	return []attribute{{"required", 0}, {"no-block-io", 1}, {"legacy-boot", 2}, {"grow-filesystem", 59}, {"read-only", 60}, {"hidden", 62}, {"no-auto", 63}}
}

func attributeNames() []string {
	var names []string
	for _, a := range attributes() {
		names = append(names, a.name)
	}
	return names
}

// attributeBits is the sum of named attributes; names are checked before.
func attributeBits(names []string) uint64 {
	var bits uint64
	for _, a := range attributes() {
		if slices.Contains(names, a.name) {
			bits |= 1 << a.bit
		}
	}
	return bits
}

// Sizes of a GUID partition table with 128 entries of 128 bytes (UEFI 2.10, section 5.3).
const entriesBytes = 128 * 128

// firstUsable is where partitions may begin: behind the protective MBR, the header and the entries.
func firstUsable(sector int64) int64 { return 2*sector + roundUp(entriesBytes, sector) }

// usableEnd is where partitions must end: before the backup entries and the backup header.
func usableEnd(size, sector int64) int64 {
	return roundDown(size, sector) - sector - roundUp(entriesBytes, sector)
}

// typeName is a type's name, or its GUID when it has none.
func typeName(guid string) string {
	for _, t := range partitionTypes() {
		if t.guid == guid {
			return t.name
		}
	}
	return guid
}
