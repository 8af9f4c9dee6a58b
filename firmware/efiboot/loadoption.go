// Package efiboot reads and changes a machine's UEFI boot entries (Boot####, BootOrder, BootNext) through Linux's
// efivarfs. Formats are those of the UEFI specification 2.10, sections 3.1.3 and 10.3.
package efiboot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
)

const (
	attrActive = 1 // LOAD_OPTION_ACTIVE

	typeMedia       = 0x04
	subHardDrive    = 0x01
	subFilePath     = 0x04
	typeEnd         = 0x7f
	subEndEntire    = 0xff
	hardDriveLength = 42 // section 10.3.5.1
	nodeHeader      = 4

	formatGPT     = 2
	signatureGUID = 2

	maxVariable = 64 << 10 // larger boot variables do not occur; firmware refuses them long before
	maxUTF16    = 1024     // units of a description or path
)

// LoadOption is an EFI_LOAD_OPTION (section 3.1.3). Only entries that boot a file on a GPT partition have a Disk; the
// device paths of all others are kept as they are.
type LoadOption struct {
	Attributes   uint32
	Description  string
	Disk         *DiskPath // the first HD() node and the File() after it, if the path has both
	DevicePath   []byte    // as stored, end node included
	OptionalData []byte
}

// DiskPath is HD(number,GPT,guid,start,size)/File(path).
type DiskPath struct {
	PartitionNumber uint32
	StartLBA        uint64
	SizeLBA         uint64
	PartitionGUID   GUID
	Path            string // with backslashes: \EFI\debian\shimx64.efi
}

// Active tells whether the firmware tries the entry by itself.
func (o LoadOption) Active() bool { return o.Attributes&attrActive != 0 }

// DecodeLoadOption reads the content of a Boot#### variable, without efivarfs's four bytes of attributes.
func DecodeLoadOption(data []byte) (LoadOption, error) {
	if len(data) > maxVariable {
		return LoadOption{}, fmt.Errorf("decode a boot entry: %d bytes are more than %d", len(data), maxVariable)
	}
	if len(data) < 6 {
		return LoadOption{}, fmt.Errorf("decode a boot entry: %d bytes are less than its header", len(data))
	}
	o := LoadOption{Attributes: binary.LittleEndian.Uint32(data)}
	pathLen := int(binary.LittleEndian.Uint16(data[4:]))
	description, rest, err := cutUTF16(data[6:])
	if err != nil {
		return LoadOption{}, fmt.Errorf("decode a boot entry's description: %w", err)
	}
	if pathLen > len(rest) {
		return LoadOption{}, fmt.Errorf("decode boot entry %q: its device path of %d bytes is cut at %d", description, pathLen, len(rest))
	}
	o.Description = description
	o.DevicePath = bytes.Clone(rest[:pathLen])
	if len(rest) > pathLen {
		o.OptionalData = bytes.Clone(rest[pathLen:])
	}
	if o.Disk, err = decodeDisk(o.DevicePath); err != nil {
		return LoadOption{}, fmt.Errorf("decode boot entry %q: %w", description, err)
	}
	return o, nil
}

// Encode gives the variable's content. The device path comes from DevicePath, or from Disk if that is empty.
func (o LoadOption) Encode() ([]byte, error) {
	description, err := appendUTF16(nil, o.Description)
	if err != nil {
		return nil, fmt.Errorf("encode a boot entry's description: %w", err)
	}
	path := o.DevicePath
	if len(path) == 0 && o.Disk != nil {
		if path, err = o.Disk.encode(); err != nil {
			return nil, fmt.Errorf("encode boot entry %q: %w", o.Description, err)
		}
	}
	if len(path) > 0xffff {
		return nil, fmt.Errorf("encode boot entry %q: a device path of %d bytes is too long", o.Description, len(path))
	}
	data := binary.LittleEndian.AppendUint32(nil, o.Attributes)
	data = binary.LittleEndian.AppendUint16(data, uint16(len(path)))
	data = append(data, description...)
	data = append(data, path...)
	return append(data, o.OptionalData...), nil
}

func (d DiskPath) encode() ([]byte, error) {
	if d.PartitionNumber == 0 || d.SizeLBA == 0 || d.PartitionGUID == (GUID{}) {
		return nil, errors.New("the partition needs a number from 1, a size and a GUID")
	}
	if !strings.HasPrefix(d.Path, `\`) || strings.Contains(d.Path, "/") {
		return nil, fmt.Errorf(`the path %q must be like \EFI\debian\shimx64.efi`, d.Path)
	}
	node := func(b []byte, kind, sub byte, length int) []byte {
		return binary.LittleEndian.AppendUint16(append(b, kind, sub), uint16(length))
	}
	b := node(nil, typeMedia, subHardDrive, hardDriveLength)
	b = binary.LittleEndian.AppendUint32(b, d.PartitionNumber)
	b = binary.LittleEndian.AppendUint64(b, d.StartLBA)
	b = binary.LittleEndian.AppendUint64(b, d.SizeLBA)
	b = append(b, d.PartitionGUID[:]...)
	b = append(b, formatGPT, signatureGUID)
	file, err := appendUTF16(nil, d.Path)
	if err != nil {
		return nil, fmt.Errorf("the path: %w", err)
	}
	b = append(node(b, typeMedia, subFilePath, nodeHeader+len(file)), file...)
	return node(b, typeEnd, subEndEntire, nodeHeader), nil
}

// decodeDisk walks the nodes of a device path. It gives nil for one that does not boot a file on a GPT partition.
func decodeDisk(path []byte) (*DiskPath, error) {
	var disk *DiskPath
	for len(path) > 0 {
		if len(path) < nodeHeader {
			return nil, fmt.Errorf("its device path ends within a node's header")
		}
		length := int(binary.LittleEndian.Uint16(path[2:]))
		if length < nodeHeader || length > len(path) {
			return nil, fmt.Errorf("its device path has a node of %d bytes where %d are left", length, len(path))
		}
		body := path[nodeHeader:length]
		switch kind, sub := path[0], path[1]; {
		case kind == typeEnd && sub == subEndEntire:
			return nil, nil
		case kind == typeMedia && sub == subHardDrive && length == hardDriveLength && disk == nil:
			if body[36] == formatGPT && body[37] == signatureGUID {
				disk = &DiskPath{
					PartitionNumber: binary.LittleEndian.Uint32(body),
					StartLBA:        binary.LittleEndian.Uint64(body[4:]),
					SizeLBA:         binary.LittleEndian.Uint64(body[12:]),
					PartitionGUID:   GUID(body[20:36]),
				}
			}
		case kind == typeMedia && sub == subFilePath && disk != nil:
			file, _, err := cutUTF16(body)
			if err != nil {
				return nil, fmt.Errorf("its file path: %w", err)
			}
			disk.Path = file
			return disk, nil
		}
		path = path[length:]
	}
	return nil, nil
}

// cutUTF16 reads a NUL-terminated UCS-2 string and gives what follows it.
func cutUTF16(data []byte) (string, []byte, error) {
	var units []uint16
	for i := 0; i+1 < len(data); i += 2 {
		u := binary.LittleEndian.Uint16(data[i:])
		if u == 0 {
			return string(utf16.Decode(units)), data[i+2:], nil
		}
		if len(units) == maxUTF16 {
			return "", nil, fmt.Errorf("a string of more than %d characters", maxUTF16)
		}
		units = append(units, u)
	}
	return "", nil, errors.New("a string without its end")
}

func appendUTF16(b []byte, s string) ([]byte, error) {
	units := utf16.Encode([]rune(s))
	if len(units) > maxUTF16 || strings.ContainsRune(s, 0) {
		return nil, fmt.Errorf("%q must have at most %d characters and no NUL", s, maxUTF16)
	}
	for _, u := range units {
		b = binary.LittleEndian.AppendUint16(b, u)
	}
	return append(b, 0, 0), nil
}
