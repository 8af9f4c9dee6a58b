package initramfs

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"strings"
	"testing"
)

// fakeStub makes a small PE32+ file: one .text section, and room for free more section headers.
func fakeStub(free int) []byte {
	const signature, optionalSize = 0x40, 240
	table := signature + 4 + coffHeaderSize + optionalSize
	headers := alignUp(table+(1+free)*sectionHeaderSize, 0x200)
	if free == 0 {
		headers = table + sectionHeaderSize
	}
	text := alignUp(headers, 0x200)
	b := make([]byte, text+0x200)
	copy(b, "MZ")
	binary.LittleEndian.PutUint32(b[peOffsetField:], signature)
	copy(b[signature:], "PE\x00\x00")
	coff := b[signature+4:]
	binary.LittleEndian.PutUint16(coff, pe.IMAGE_FILE_MACHINE_AMD64)
	binary.LittleEndian.PutUint16(coff[coffSectionCount:], 1)
	binary.LittleEndian.PutUint16(coff[coffOptionalSize:], optionalSize)
	opt := coff[coffHeaderSize:]
	binary.LittleEndian.PutUint16(opt, 0x20b)
	binary.LittleEndian.PutUint32(opt[optSectionAlignment:], 0x1000)
	binary.LittleEndian.PutUint32(opt[optFileAlignment:], 0x200)
	binary.LittleEndian.PutUint32(opt[optSizeOfHeaders:], uint32(headers))
	binary.LittleEndian.PutUint32(opt[optSizeOfImage:], 0x3000)
	binary.LittleEndian.PutUint32(opt[108:], 16)
	section := b[table:]
	copy(section, ".text")
	binary.LittleEndian.PutUint32(section[8:], 0x1234)
	binary.LittleEndian.PutUint32(section[12:], 0x1000)
	binary.LittleEndian.PutUint32(section[16:], 0x200)
	binary.LittleEndian.PutUint32(section[20:], uint32(text))
	return b
}

// checkUKI parses an image back and checks the rules that firmware loaders enforce.
func checkUKI(t *testing.T, image []byte, want []section) {
	t.Helper()
	f, err := pe.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatalf("parse image: %v", err)
	}
	opt := f.OptionalHeader.(*pe.OptionalHeader64)
	var end uint32
	for _, s := range f.Sections {
		if s.VirtualAddress < end {
			t.Errorf("section %s at %#x overlaps the one before, which ends at %#x", s.Name, s.VirtualAddress, end)
		}
		end = s.VirtualAddress + s.VirtualSize
		if s.Offset+s.Size > uint32(len(image)) {
			t.Errorf("section %s ends at byte %d of %d", s.Name, s.Offset+s.Size, len(image))
		}
	}
	if opt.SizeOfImage < end || opt.SizeOfImage%opt.SectionAlignment != 0 {
		t.Errorf("SizeOfImage = %#x, want a multiple of %#x of at least %#x", opt.SizeOfImage, opt.SectionAlignment, end)
	}
	for _, w := range want {
		s := f.Section(w.name)
		if s == nil {
			t.Fatalf("no section %s", w.name)
		}
		if s.VirtualAddress%opt.SectionAlignment != 0 || s.Offset%opt.FileAlignment != 0 {
			t.Errorf("section %s is not aligned: %#x in memory, %#x in the file", w.name, s.VirtualAddress, s.Offset)
		}
		data, err := s.Data()
		if err != nil {
			t.Fatalf("read section %s: %v", w.name, err)
		}
		if s.VirtualSize != uint32(len(w.data)) || !bytes.Equal(data[:len(w.data)], w.data) {
			t.Errorf("section %s does not hold what was put in (%d bytes, want %d)", w.name, s.VirtualSize, len(w.data))
		}
	}
}

func TestBuildUKI(t *testing.T) {
	payloads := []section{
		{".osrel", []byte("ID=x\n")}, {".cmdline", []byte("quiet")},
		{".linux", bytes.Repeat([]byte("k"), 5000)}, {".initrd", bytes.Repeat([]byte("i"), 70001)},
	}
	image, err := buildUKI(fakeStub(4), payloads)
	if err != nil {
		t.Fatal(err)
	}
	checkUKI(t, image, payloads)
}

func TestBuildUKIRefuses(t *testing.T) {
	payload := []section{{".linux", []byte("k")}}
	whole := fakeStub(4)
	withKernel, err := buildUKI(whole, payload)
	if err != nil {
		t.Fatal(err)
	}
	arm := bytes.Clone(whole)
	binary.LittleEndian.PutUint16(arm[0x44:], pe.IMAGE_FILE_MACHINE_ARM64)
	tests := []struct {
		name     string
		stub     []byte
		payloads []section
		want     string
	}{
		{"empty stub", nil, payload, "read EFI stub"},
		{"truncated stub", whole[:len(whole)-1], payload, "ends at byte"},
		{"no room", fakeStub(0), payload, "no room"},
		{"a UKI as stub", withKernel, payload, "already carries"},
		{"other architecture", arm, payload, "x86-64"},
		{"empty payload", whole, []section{{".linux", nil}}, "content"},
		{"long name", whole, []section{{".toolongname", []byte("k")}}, "8 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := buildUKI(tt.stub, tt.payloads); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func FuzzBuildUKI(f *testing.F) {
	f.Add(fakeStub(4))
	f.Add(fakeStub(0))
	f.Add([]byte("MZ"))
	f.Fuzz(func(t *testing.T, stub []byte) {
		_, _ = buildUKI(stub, []section{{".linux", []byte("kernel")}, {".initrd", []byte("initramfs")}})
	})
}
