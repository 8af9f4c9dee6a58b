package images

import (
	"fmt"
	"math/bits"
	"path"
	"strings"
)

const (
	maxNameLength = 63
	maxTextLength = 4096
	// maxPartition is the number of entries of a usual GPT (UEFI 2.10, section 5.3.2).
	maxPartition = 128
)

// FieldError is a value that an image's manifest or an option cannot have.
type FieldError struct {
	// Field is the JSON name of the field, as in "frames[3].offset".
	Field string
	// Problem says what is wrong and what would be right.
	Problem string
}

func (e *FieldError) Error() string { return e.Field + ": " + e.Problem }

func fieldErrorf(field, format string, args ...any) error {
	return &FieldError{Field: field, Problem: fmt.Sprintf(format, args...)}
}

// ValidateName checks that an image's name matches [a-z0-9][a-z0-9.-]{0,62}, which is also what makes it safe as a folder's name.
func ValidateName(name string) error {
	if name == "" {
		return fieldErrorf("name", "is empty")
	}
	if len(name) > maxNameLength {
		return fieldErrorf("name", "has %d characters, at most %d are allowed", len(name), maxNameLength)
	}
	for i := range len(name) {
		c := name[i]
		alphanumeric := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alphanumeric && (i == 0 || c != '.' && c != '-') {
			return fieldErrorf("name", "%q: want lower-case letters, digits, dots and dashes, the first one a letter or a digit", name)
		}
	}
	return nil
}

// Validate checks every rule of the format; its error is a *FieldError.
func (m *Manifest) Validate() error {
	if m.Format != Format {
		return fieldErrorf("format", "%.64q, want %q", m.Format, Format)
	}
	if err := ValidateName(m.Name); err != nil {
		return err
	}
	if m.Kind != KindDisk && m.Kind != KindRootfs {
		return fieldErrorf("kind", "%.64q, want %q or %q", m.Kind, KindDisk, KindRootfs)
	}
	if m.SectorSize != SectorSize {
		return fieldErrorf("sector_size", "%d, want %d", m.SectorSize, SectorSize)
	}
	if m.Size <= 0 || m.Size%SectorSize != 0 {
		return fieldErrorf("size", "%d is not a positive multiple of %d", m.Size, SectorSize)
	}
	if m.Size > MaxDiskSize {
		return fieldErrorf("size", "%d is more than the limit of %d", m.Size, int64(MaxDiskSize))
	}
	if m.FrameSize < minFrameSize || m.FrameSize > FrameSize || bits.OnesCount64(uint64(m.FrameSize)) != 1 {
		return fieldErrorf("frame_size", "%d is not a power of two between %d and %d", m.FrameSize, minFrameSize, FrameSize)
	}
	if err := m.OS.validate(); err != nil {
		return err
	}
	if err := m.Boot.validate(); err != nil {
		return err
	}
	if err := m.validateKind(); err != nil {
		return err
	}
	return m.validateFrames()
}

// validateKind checks what only one kind of image has.
func (m *Manifest) validateKind() error {
	if m.Kind == KindDisk {
		if len(m.Boot.RootStacks) > 0 {
			return fieldErrorf("boot.root_stacks", "is of a rootfs image only")
		}
		return nil
	}
	if m.Boot.RootPartition != 0 || m.Boot.RootPartitionGUID != "" || m.Boot.ESPPartition != 0 {
		return fieldErrorf("boot.root_partition", "is set, but a rootfs image has no partitions")
	}
	if m.Boot.Seed != "" && m.Boot.Seed != SeedFile {
		return fieldErrorf("boot.seed", "%q is of a disk image only", m.Boot.Seed)
	}
	for i, stack := range m.Boot.RootStacks {
		switch stack {
		case StackMD, StackLVM, StackLVMThin, StackLUKS, StackTPM2, StackXFS, StackBtrfs:
		default:
			return fieldErrorf(fmt.Sprintf("boot.root_stacks[%d]", i), "%.64q is not known", stack)
		}
	}
	for i := range m.Frames {
		if m.Frames[i].Zero {
			return fieldErrorf(fmt.Sprintf("frames[%d].zero", i), "is set, but every frame of a rootfs image is stored")
		}
	}
	return nil
}

func (o OS) validate() error {
	for _, text := range []struct{ field, value string }{
		{"os.id", o.ID}, {"os.version", o.Version}, {"os.pretty_name", o.PrettyName},
	} {
		if err := validateText(text.field, text.value, 256); err != nil {
			return err
		}
	}
	return nil
}

func (b Boot) validate() error {
	if b.RootPartition < 0 || b.RootPartition > maxPartition {
		return fieldErrorf("boot.root_partition", "%d is not between 0 and %d", b.RootPartition, maxPartition)
	}
	if b.ESPPartition < 0 || b.ESPPartition > maxPartition {
		return fieldErrorf("boot.esp_partition", "%d is not between 0 and %d", b.ESPPartition, maxPartition)
	}
	if b.RootPartitionGUID != "" && !isGUID(b.RootPartitionGUID) {
		return fieldErrorf("boot.root_partition_guid", "%.64q is not a GUID", b.RootPartitionGUID)
	}
	switch b.Seed {
	case "", SeedFile, SeedCIDATA, SeedConfigDrive:
	default:
		return fieldErrorf("boot.seed", "%.64q, want %q, %q or %q", b.Seed, SeedFile, SeedCIDATA, SeedConfigDrive)
	}
	for _, file := range []struct{ field, value string }{{"boot.kernel", b.Kernel}, {"boot.initrd", b.Initrd}} {
		if err := validateText(file.field, file.value, maxTextLength); err != nil {
			return err
		}
		if file.value != "" && (!path.IsAbs(file.value) || path.Clean(file.value) != file.value) {
			return fieldErrorf(file.field, "%.256q is not a clean absolute path", file.value)
		}
	}
	if b.Kexec && b.Kernel == "" {
		return fieldErrorf("boot.kernel", "is empty, but boot.kexec is set")
	}
	if b.MinMemory < 0 {
		return fieldErrorf("boot.min_memory", "%d is negative", b.MinMemory)
	}
	return validateText("boot.cmdline", b.Cmdline, maxTextLength)
}

// validateText refuses control characters, because these values end up on consoles and in kernel arguments.
func validateText(field, value string, limit int) error {
	if len(value) > limit {
		return fieldErrorf(field, "has %d bytes, at most %d are allowed", len(value), limit)
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fieldErrorf(field, "has a control character")
	}
	return nil
}

func isGUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F') {
				return false
			}
		}
	}
	return true
}

func (m *Manifest) validateFrames() error {
	if len(m.Frames) > maxFrames {
		return fieldErrorf("frames", "%d frames are more than the limit of %d", len(m.Frames), maxFrames)
	}
	var offset, dataOffset int64
	for i := range m.Frames {
		f := &m.Frames[i]
		field := func(name string) string { return fmt.Sprintf("frames[%d].%s", i, name) }
		if f.Offset != offset {
			return fieldErrorf(field("offset"), "%d, want %d, the end of the frame before", f.Offset, offset)
		}
		if f.Length <= 0 || f.Length > m.Size-f.Offset {
			return fieldErrorf(field("length"), "%d is not between 1 and the %d bytes that are left of the disk", f.Length, m.Size-f.Offset)
		}
		isLast := f.Offset+f.Length == m.Size
		if f.Zero {
			if f.Length%m.FrameSize != 0 && !isLast {
				return fieldErrorf(field("length"), "%d is not a multiple of frame_size %d", f.Length, m.FrameSize)
			}
			if f.DataOffset != 0 || f.DataLength != 0 || f.SHA256 != (Digest{}) || f.RawSHA256 != (Digest{}) {
				return fieldErrorf(field("zero"), "a run of zeros has no data_offset, data_length, sha256 or raw_sha256")
			}
			offset += f.Length
			continue
		}
		if f.Length != m.FrameSize && (f.Length > m.FrameSize || !isLast) {
			return fieldErrorf(field("length"), "%d, want frame_size %d", f.Length, m.FrameSize)
		}
		if f.DataOffset != dataOffset {
			return fieldErrorf(field("data_offset"), "%d, want %d, the end of the data before", f.DataOffset, dataOffset)
		}
		if f.DataLength <= 0 || f.DataLength > f.Length+maxFrameOverhead {
			return fieldErrorf(field("data_length"), "%d is not between 1 and %d", f.DataLength, f.Length+maxFrameOverhead)
		}
		if f.SHA256 == (Digest{}) {
			return fieldErrorf(field("sha256"), "is missing")
		}
		if f.RawSHA256 == (Digest{}) {
			return fieldErrorf(field("raw_sha256"), "is missing")
		}
		offset += f.Length
		dataOffset += f.DataLength
	}
	if offset != m.Size {
		return fieldErrorf("frames", "end at byte %d of the disk, want size %d", offset, m.Size)
	}
	return nil
}
