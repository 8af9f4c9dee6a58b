package initramfs

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// section is one payload of a unified kernel image (UAPI group, "Unified Kernel Image" specification).
type section struct {
	name string // at most 8 bytes
	data []byte
}

// Offsets within a PE32+ file (Microsoft PE/COFF specification, revision 11).
const (
	peOffsetField       = 0x3c // of the file: where the PE signature is
	coffHeaderSize      = 20
	coffSectionCount    = 2
	coffOptionalSize    = 16
	optInitialisedData  = 8
	optSectionAlignment = 32
	optFileAlignment    = 36
	optSizeOfImage      = 56
	optSizeOfHeaders    = 60
	optCheckSum         = 64
	sectionHeaderSize   = 40

	sectionInitialisedData = 0x00000040
	sectionReadable        = 0x40000000
)

// buildUKI appends the payloads to systemd's EFI stub as read-only sections and returns the image. The stub's headers
// must have room for them; nothing of its code is moved.
func buildUKI(stub []byte, payloads []section) ([]byte, error) {
	layout, err := parseStub(stub)
	if err != nil {
		return nil, fmt.Errorf("read EFI stub: %w", err)
	}
	headerEnd := layout.sectionTable + (layout.sections+len(payloads))*sectionHeaderSize
	if headerEnd > layout.headerSize {
		return nil, fmt.Errorf("EFI stub has no room for %d more section headers (%d bytes of %d)", len(payloads), headerEnd, layout.headerSize)
	}
	size := alignUp(len(stub), layout.fileAlign)
	for _, p := range payloads {
		size += alignUp(len(p.data), layout.fileAlign)
	}
	if int64(size)+int64(layout.nextAddress) > math.MaxInt32 {
		return nil, fmt.Errorf("image would have %d bytes, more than a PE file can address", size)
	}
	image := make([]byte, 0, size)
	image = append(image, stub...)
	image = append(image, make([]byte, alignUp(len(stub), layout.fileAlign)-len(stub))...)
	address, added := layout.nextAddress, 0
	for i, p := range payloads {
		if len(p.name) > 8 || len(p.data) == 0 {
			return nil, fmt.Errorf("section %q must have a name of at most 8 bytes and content", p.name)
		}
		padded := alignUp(len(p.data), layout.fileAlign)
		header := image[layout.sectionTable+(layout.sections+i)*sectionHeaderSize:][:sectionHeaderSize]
		clear(header)
		copy(header[0:8], p.name)
		binary.LittleEndian.PutUint32(header[8:], uint32(len(p.data)))
		binary.LittleEndian.PutUint32(header[12:], uint32(address))
		binary.LittleEndian.PutUint32(header[16:], uint32(padded))
		binary.LittleEndian.PutUint32(header[20:], uint32(len(image)))
		binary.LittleEndian.PutUint32(header[36:], sectionInitialisedData|sectionReadable)
		image = append(image, p.data...)
		image = append(image, make([]byte, padded-len(p.data))...)
		address = alignUp(address+len(p.data), layout.sectionAlign)
		added += padded
	}
	coff, optional := image[layout.coff:], image[layout.optional:]
	binary.LittleEndian.PutUint16(coff[coffSectionCount:], uint16(layout.sections+len(payloads)))
	initialised := binary.LittleEndian.Uint32(optional[optInitialisedData:])
	binary.LittleEndian.PutUint32(optional[optInitialisedData:], initialised+uint32(added))
	binary.LittleEndian.PutUint32(optional[optSizeOfImage:], uint32(address))
	binary.LittleEndian.PutUint32(optional[optCheckSum:], 0) // UEFI does not check it; zero stays true after signing
	return image, nil
}

type stubLayout struct {
	coff, optional, sectionTable         int // file offsets
	sections, headerSize                 int
	sectionAlign, fileAlign, nextAddress int
}

func parseStub(stub []byte) (stubLayout, error) {
	f, err := pe.NewFile(bytes.NewReader(stub))
	if err != nil {
		return stubLayout{}, err
	}
	defer f.Close()
	opt, ok := f.OptionalHeader.(*pe.OptionalHeader64)
	if !ok || f.Machine != pe.IMAGE_FILE_MACHINE_AMD64 {
		return stubLayout{}, fmt.Errorf("not a PE32+ file for x86-64")
	}
	if f.Section(".linux") != nil || f.Section(".initrd") != nil {
		return stubLayout{}, fmt.Errorf("it already carries a kernel or an initramfs")
	}
	if !powerOfTwo(opt.SectionAlignment) || !powerOfTwo(opt.FileAlignment) {
		return stubLayout{}, fmt.Errorf("alignments %d and %d are not powers of two", opt.SectionAlignment, opt.FileAlignment)
	}
	signature := int(binary.LittleEndian.Uint32(stub[peOffsetField:]))
	l := stubLayout{
		coff: signature + 4, sections: int(f.NumberOfSections), headerSize: int(opt.SizeOfHeaders),
		sectionAlign: int(opt.SectionAlignment), fileAlign: int(opt.FileAlignment),
	}
	l.optional = l.coff + coffHeaderSize
	l.sectionTable = l.optional + int(binary.LittleEndian.Uint16(stub[l.coff+coffOptionalSize:]))
	if l.headerSize > len(stub) {
		return stubLayout{}, fmt.Errorf("headers of %d bytes in a file of %d", l.headerSize, len(stub))
	}
	// systemd's stub is linked with several sections in one page; the payloads start on a page of their own.
	for _, s := range f.Sections {
		if end := int64(s.Offset) + int64(s.Size); end > int64(len(stub)) {
			return stubLayout{}, fmt.Errorf("section %s ends at byte %d of %d", s.Name, end, len(stub))
		}
		l.nextAddress = max(l.nextAddress, alignUp(int(s.VirtualAddress+max(s.VirtualSize, s.Size)), l.sectionAlign))
	}
	return l, nil
}

func alignUp(n, align int) int { return (n + align - 1) / align * align }

func powerOfTwo(n uint32) bool { return n != 0 && n&(n-1) == 0 }

// osRelease makes the .osrel section, which boot menus show (os-release(5)).
func osRelease(m *Manifest) []byte {
	return []byte(strings.Join([]string{
		"ID=bloomery-agent",
		`NAME="Bloomery agent"`,
		fmt.Sprintf("PRETTY_NAME=%q", "Bloomery agent "+m.Version),
		fmt.Sprintf("VERSION_ID=%q", m.Version),
		"",
	}, "\n"))
}
