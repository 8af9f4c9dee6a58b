package qcow2

import (
	"bytes"
	"encoding/binary"
	"io"
)

// Magic are the first bytes of a file.
const Magic = "QFI\xfb"

const (
	headerV2 = 72
	headerV3 = 104
	// QEMU's own limits (block/qcow2.h): clusters of 512 bytes to 2 MiB, and 32 MiB of L1 table.
	minClusterBits = 9
	maxClusterBits = 21
	maxL1Bytes     = 32 << 20
	// maxSize keeps sums of offsets from overflowing; QEMU's offsets have 56 bits.
	maxSize = 1 << 56
)

// Incompatible features: a reader must know every bit that is set.
const (
	featureDirty        = 1 << 0 // reference counts may be wrong, which does not matter here
	featureCorrupt      = 1 << 1
	featureExternalData = 1 << 2
	featureCompression  = 1 << 3 // the header says which
	featureExtendedL2   = 1 << 4
	knownFeatures       = featureDirty | featureCorrupt | featureExternalData | featureCompression | featureExtendedL2
)

// Types of header extensions that matter to a reader; others may be passed over.
const (
	extensionEnd          = 0
	extensionEncryption   = 0x0537be77
	extensionExternalData = 0x44415441
)

const (
	compressedZlib = 0
	compressedZstd = 1
)

type header struct {
	version     uint32
	clusterBits uint32
	size        int64
	l1Entries   int64
	l1At        int64
	compression byte
	length      int64
}

func (h header) clusterSize() int64 { return 1 << h.clusterBits }

// tableEntries is how many clusters one L2 table describes.
func (h header) tableEntries() int64 { return h.clusterSize() / 8 }

func readHeader(file io.ReaderAt, size int64) (header, error) {
	raw := make([]byte, headerV3+8)
	n, err := file.ReadAt(raw, 0)
	if n < headerV2 {
		if err == nil || err == io.EOF {
			return header{}, corrupt(int64(n), "the file ends in its header")
		}
		return header{}, &Error{int64(n), err, "reading the header"}
	}
	if !bytes.HasPrefix(raw, []byte(Magic)) {
		return header{}, corrupt(0, "the file does not begin with % x", Magic)
	}
	word, long := binary.BigEndian.Uint32, binary.BigEndian.Uint64
	h := header{version: word(raw[4:]), clusterBits: word(raw[20:]), l1Entries: int64(word(raw[36:])), length: headerV2}
	if h.version != 2 && h.version != 3 {
		return header{}, unsupported(4, "version %d", h.version)
	}
	if h.clusterBits < minClusterBits || h.clusterBits > maxClusterBits {
		return header{}, corrupt(20, "cluster_bits is %d, not between %d and %d", h.clusterBits, minClusterBits, maxClusterBits)
	}
	if method := word(raw[32:]); method != 0 {
		return header{}, unsupported(32, "the disk is encrypted (method %d); decrypt it with: qemu-img convert", method)
	}
	if h.version == 3 {
		if n < headerV3 {
			return header{}, corrupt(int64(n), "the file ends in its header")
		}
		if err := h.readV3(raw[:n]); err != nil {
			return header{}, err
		}
	}
	if at := long(raw[8:]); at != 0 {
		return header{}, unsupported(8, "the image needs a backing file; make one that stands alone with: qemu-img convert -O qcow2")
	}
	if h.size, err = checkedOffset(long(raw[24:]), 24, "size"); err != nil {
		return header{}, err
	}
	if h.size == 0 {
		return header{}, corrupt(24, "the disk has no bytes")
	}
	if h.l1At, err = checkedOffset(long(raw[40:]), 40, "l1_table_offset"); err != nil {
		return header{}, err
	}
	if err := h.checkL1(size); err != nil {
		return header{}, err
	}
	return h, readExtensions(file, size, h)
}

func checkedOffset(v uint64, at int64, field string) (int64, error) {
	if v > maxSize {
		return 0, corrupt(at, "%s is %d, more than %d", field, v, int64(maxSize))
	}
	return int64(v), nil
}

func (h *header) readV3(raw []byte) error {
	features := binary.BigEndian.Uint64(raw[72:])
	switch {
	case features&^knownFeatures != 0:
		return unsupported(72, "incompatible features %#x are unknown", features&^knownFeatures)
	case features&featureCorrupt != 0:
		return corrupt(72, "QEMU has marked the image so; mend it with: qemu-img check -r all")
	case features&featureExternalData != 0:
		return unsupported(72, "the data is in another file; bring it into one with: qemu-img convert -O qcow2")
	case features&featureExtendedL2 != 0:
		return unsupported(72, "extended L2 entries; rewrite it with: qemu-img convert -O qcow2")
	}
	h.length = int64(binary.BigEndian.Uint32(raw[100:]))
	if h.length < headerV3 || h.length > h.clusterSize() || h.length%8 != 0 {
		return corrupt(100, "header_length is %d", h.length)
	}
	if h.length > headerV3 {
		if len(raw) <= headerV3 {
			return corrupt(int64(len(raw)), "the file ends in its header")
		}
		h.compression = raw[headerV3]
	}
	if h.compression > compressedZstd {
		return unsupported(headerV3, "compression type %d", h.compression)
	}
	if (features&featureCompression != 0) != (h.compression != compressedZlib) {
		return corrupt(headerV3, "compression type %d and incompatible features %#x do not agree", h.compression, features)
	}
	return nil
}

// checkL1 holds the L1 table against the file and the disk.
func (h *header) checkL1(size int64) error {
	perTable := h.tableEntries() << h.clusterBits
	if want := (h.size-1)/perTable + 1; h.l1Entries < want {
		return corrupt(36, "the L1 table has %d entries, %d bytes of disk need %d", h.l1Entries, h.size, want)
	}
	if h.l1Entries*8 > maxL1Bytes {
		return unsupported(36, "an L1 table of %d entries", h.l1Entries)
	}
	if h.l1At%h.clusterSize() != 0 || h.l1At == 0 {
		return corrupt(40, "the L1 table's offset %d is not that of a cluster after the first", h.l1At)
	}
	if h.l1At+h.l1Entries*8 > size {
		return corrupt(40, "the L1 table at %d of %d entries goes on after the file's end, which has %d bytes", h.l1At, h.l1Entries, size)
	}
	return nil
}

// readExtensions goes through what follows the header in the first cluster: type, length, data padded to 8 bytes.
func readExtensions(file io.ReaderAt, size int64, h header) error {
	end := min(h.clusterSize(), size)
	for at := h.length; at+8 <= end; {
		var raw [8]byte
		if _, err := file.ReadAt(raw[:], at); err != nil {
			return &Error{at, err, "reading a header extension"}
		}
		length := int64(binary.BigEndian.Uint32(raw[4:]))
		switch kind := binary.BigEndian.Uint32(raw[:]); kind {
		case extensionEnd:
			return nil
		case extensionEncryption:
			return unsupported(at, "the disk is encrypted; decrypt it with: qemu-img convert")
		case extensionExternalData:
			return unsupported(at, "the data is in another file; bring it into one with: qemu-img convert -O qcow2")
		default:
			if length > end-at-8 {
				return corrupt(at, "header extension %#x of %d bytes does not fit into the first cluster", kind, length)
			}
		}
		at += 8 + (length+7)&^7
	}
	return nil
}
