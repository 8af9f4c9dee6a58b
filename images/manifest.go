// Package images holds the OS images of a rack: their one signed format, the import of disk files into it,
// the store that serves them over HTTP, and the streaming writer that puts one on a machine's disk.
package images

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

const (
	// Format is the value of a manifest's format field.
	Format = "bloomery.image/v1"
	// FrameSize is the number of bytes of disk in each frame that Import writes.
	FrameSize = 4 << 20
	// KindDisk is an image of a whole disk with its partition table.
	KindDisk = "disk"
	// KindRootfs is an image of a root file system: its frames make up one uncompressed tar archive (POSIX.1-2017, pax), to be unpacked onto any layout.
	KindRootfs = "rootfs"
	// MaxManifestSize is the largest manifest that is read, in bytes.
	MaxManifestSize = 16 << 20
	// MaxSignatureSize is the largest signature file that is read, in bytes.
	MaxSignatureSize = 4 << 10
	// MaxDiskSize is the largest disk an image can describe, in bytes.
	MaxDiskSize = 16 << 40
	// SectorSize is the logical sector size of images, in bytes: their partition tables count in it.
	SectorSize = 512

	minFrameSize = 64 << 10
	maxFrames    = 1 << 20
	// A zstd frame of incompressible bytes is its input, 3 bytes for each 128 KiB block and a header (RFC 8878, section 3.1.1).
	maxFrameOverhead = 64 << 10
)

// Names of an image's files in its folder of the store and under its URL.
const (
	ManifestFile  = "manifest.json"
	SignatureFile = "manifest.json.minisig"
	DataFile      = "data"
)

// Manifest describes an image: what it is, how to boot it, and which frames make up its disk.
type Manifest struct {
	// Format is always "bloomery.image/v1".
	Format string `json:"format"`
	// Name of the image: [a-z0-9][a-z0-9.-]{0,62}.
	Name string `json:"name"`
	// Kind is "disk" or "rootfs".
	Kind string `json:"kind"`
	// Size is the number of bytes of disk, or of the tar archive, a multiple of SectorSize.
	Size int64 `json:"size"`
	// SectorSize is the logical sector size the partition table counts in, 512 bytes; for a rootfs tar's record size, 512 bytes too.
	SectorSize int `json:"sector_size"`
	// FrameSize is the number of bytes of disk in every data frame but the last.
	FrameSize int64 `json:"frame_size"`
	// Created is when the image was imported.
	Created time.Time `json:"created"`
	OS      OS        `json:"os"`
	Boot    Boot      `json:"boot"`
	// Frames cover [0, Size) in order without a gap.
	Frames []Frame `json:"frames"`

	digest Digest
}

// OS says which operating system an image holds, in the words of os-release(5).
type OS struct {
	ID         string `json:"id,omitempty"`
	Version    string `json:"version,omitempty"`
	PrettyName string `json:"pretty_name,omitempty"`
}

// Boot holds what an installer needs to know to grow, seed and start the installed system.
type Boot struct {
	// RootPartition is the number of the GPT partition with the root file system; 0 when unknown.
	RootPartition int `json:"root_partition,omitempty"`
	// RootPartitionGUID is that partition's unique GUID (UEFI 2.10, section 5.3.3).
	RootPartitionGUID string `json:"root_partition_guid,omitempty"`
	// ESPPartition is the number of the EFI system partition; 0 when there is none.
	ESPPartition int `json:"esp_partition,omitempty"`
	// Seed says how cloud-init's data reaches a disk image's system: SeedFile, also when empty, or a partition behind the image's own.
	Seed string `json:"seed,omitempty"`
	// Kexec says that the installed kernel may be started by kexec instead of through the firmware.
	Kexec bool `json:"kexec,omitempty"`
	// Kernel and Initrd are absolute paths in the root file system.
	Kernel string `json:"kernel,omitempty"`
	Initrd string `json:"initrd,omitempty"`
	// Cmdline is the kernel command line of a kexec.
	Cmdline string `json:"cmdline,omitempty"`
	// RootStacks are what a rootfs image's initial RAM filesystem can find its root on: see the Stack constants. A disk image has none.
	RootStacks []string `json:"root_stacks,omitempty"`
	// MinMemory is the least memory the system starts with, in bytes; 0 when unknown.
	MinMemory int64 `json:"min_memory,omitempty"`
}

// Ways to give an installed system its cloud-init data.
const (
	// SeedFile writes a NoCloud seed into the root file system; a disk image without a known root partition gets none.
	SeedFile = "file"
	// SeedCIDATA adds a NoCloud partition, which cloud-init and cloudbase-init find by its label.
	SeedCIDATA = "cidata"
	// SeedConfigDrive adds an OpenStack ConfigDrive partition, found by its label config-2.
	SeedConfigDrive = "config-2"
)

// What a root file system may stand on or be, beside a plain partition and ext4, which every rootfs image can do.
const (
	StackMD      = "md"
	StackLVM     = "lvm"
	StackLVMThin = "lvm-thin"
	StackLUKS    = "luks"
	// StackTPM2 is LUKS2 opened by a key that is sealed in the machine's TPM 2.0.
	StackTPM2  = "tpm2"
	StackXFS   = "xfs"
	StackBtrfs = "btrfs"
)

// Frame is a run of disk bytes: either FrameSize bytes stored as one zstd frame, or a run of zeros of any number of frames that is not stored.
type Frame struct {
	// Offset of the run on the disk in bytes, a multiple of FrameSize.
	Offset int64 `json:"offset"`
	// Length of the run on the disk in bytes.
	Length int64 `json:"length"`
	// Zero marks a run of zeros; the fields below are absent then.
	Zero bool `json:"zero,omitempty"`
	// DataOffset and DataLength say where the zstd frame is in the data file.
	DataOffset int64 `json:"data_offset,omitempty"`
	DataLength int64 `json:"data_length,omitempty"`
	// SHA256 is of the stored, compressed bytes.
	SHA256 Digest `json:"sha256,omitzero"`
	// RawSHA256 is of the disk bytes.
	RawSHA256 Digest `json:"raw_sha256,omitzero"`
}

// Digest is a SHA-256 sum; in JSON 64 lower-case hexadecimal digits.
type Digest [sha256.Size]byte

// String returns the digest as hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText implements encoding.TextMarshaler.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Digest) UnmarshalText(text []byte) error {
	if len(text) != hex.EncodedLen(len(d)) {
		return fmt.Errorf("a sha256 has %d characters, want %d", len(text), hex.EncodedLen(len(d)))
	}
	if _, err := hex.Decode(d[:], text); err != nil {
		return fmt.Errorf("a sha256 is not hexadecimal: %w", err)
	}
	return nil
}

// SHA256 is the digest of the manifest's bytes as they were decoded or encoded; zero for a Manifest made by hand.
func (m *Manifest) SHA256() Digest { return m.digest }

// DataLength is the number of bytes of the image's data file.
func (m *Manifest) DataLength() int64 {
	for i := len(m.Frames) - 1; i >= 0; i-- {
		if !m.Frames[i].Zero {
			return m.Frames[i].DataOffset + m.Frames[i].DataLength
		}
	}
	return 0
}

// dataFrames is the number of frames that are stored.
func (m *Manifest) dataFrames() int {
	n := 0
	for i := range m.Frames {
		if !m.Frames[i].Zero {
			n++
		}
	}
	return n
}

// DecodeManifest reads a manifest strictly: size caps, no unknown field, nothing after it, and every rule of Validate.
// The signature is not looked at: use VerifyManifest for bytes from elsewhere.
func DecodeManifest(data []byte) (*Manifest, error) {
	if len(data) > MaxManifestSize {
		return nil, fmt.Errorf("decoding image manifest: %d bytes are more than the limit of %d", len(data), MaxManifestSize)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	m := &Manifest{}
	if err := decoder.Decode(m); err != nil {
		return nil, fmt.Errorf("decoding image manifest: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("decoding image manifest: more bytes follow the manifest")
	}
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("decoding image manifest: %w", err)
	}
	m.digest = sha256.Sum256(data)
	return m, nil
}

// Encode returns the manifest's JSON, one frame a line, after checking it with Validate.
func (m *Manifest) Encode() ([]byte, error) {
	if err := m.Validate(); err != nil {
		return nil, fmt.Errorf("encoding image manifest: %w", err)
	}
	head := *m
	head.Frames = []Frame{}
	data, err := json.MarshalIndent(&head, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding image manifest: %w", err)
	}
	const empty = "[]\n}"
	if !bytes.HasSuffix(data, []byte(empty)) {
		return nil, fmt.Errorf("encoding image manifest: frames is not its last field")
	}
	var out bytes.Buffer
	out.Write(data[:len(data)-len(empty)])
	out.WriteString("[\n")
	for i := range m.Frames {
		line, err := json.Marshal(&m.Frames[i])
		if err != nil {
			return nil, fmt.Errorf("encoding image manifest: frames[%d]: %w", i, err)
		}
		out.WriteString("    ")
		out.Write(line)
		if i < len(m.Frames)-1 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
	}
	out.WriteString("  ]\n}\n")
	if out.Len() > MaxManifestSize {
		return nil, fmt.Errorf("encoding image manifest: %d bytes are more than the limit of %d", out.Len(), MaxManifestSize)
	}
	m.digest = sha256.Sum256(out.Bytes())
	return out.Bytes(), nil
}
