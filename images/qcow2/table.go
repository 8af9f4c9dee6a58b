package qcow2

import "encoding/binary"

// Bits of L1 and L2 entries.
const (
	flagZero       = 1 << 0
	flagCompressed = 1 << 62
	offsetMask     = 0x00fffffffffffe00
	reservedL1     = 0x7f000000000001ff
	reservedL2     = 0x3f000000000001fe
)

const sectorSize = 512

type clusterKind int

const (
	zeroCluster clusterKind = iota
	plainCluster
	packedCluster
)

// entry says where a cluster of the disk is.
type entry struct {
	kind clusterKind
	// raw is the L2 entry, and from its own offset in the file.
	raw  uint64
	from int64
	// at is the data's offset in the file, and length, of a compressed cluster, the most bytes it has.
	at, length int64
}

func (i *Image) readL1() ([]uint64, error) {
	h := i.header
	// Entries beyond those that the disk needs are of no use, and of old snapshots.
	perTable := h.tableEntries() << h.clusterBits
	raw := make([]byte, ((h.size-1)/perTable+1)*8)
	if err := i.read(raw, h.l1At, "the L1 table"); err != nil {
		return nil, err
	}
	l1 := make([]uint64, len(raw)/8)
	for n := range l1 {
		l1[n] = binary.BigEndian.Uint64(raw[n*8:])
		at := h.l1At + int64(n)*8
		if l1[n]&reservedL1 != 0 {
			return nil, corrupt(at, "L1 entry %d is %#x, with reserved bits", n, l1[n])
		}
		l1[n] &= offsetMask
		if table := int64(l1[n]); table != 0 {
			if err := i.inside(table, at, "L2 table"); err != nil {
				return nil, err
			}
			if table+h.clusterSize() > i.size {
				return nil, corrupt(at, "the L2 table at %d goes on after the file's end, which has %d bytes", table, i.size)
			}
		}
	}
	return l1, nil
}

// inside checks the offset of a cluster in the file that the entry at from names.
func (i *Image) inside(at, from int64, what string) error {
	if at&(i.header.clusterSize()-1) != 0 {
		return corrupt(from, "the offset %d of the %s is not that of a cluster", at, what)
	}
	if at == 0 || at >= i.size {
		return corrupt(from, "the offset %d of the %s is not in the file, which has %d bytes", at, what, i.size)
	}
	return nil
}

// lookUp finds a cluster of the disk.
func (i *Image) lookUp(index int64) (entry, error) {
	table := int64(i.l1[index/i.header.tableEntries()])
	if table == 0 {
		return entry{}, nil
	}
	if err := i.loadTable(table); err != nil {
		return entry{}, err
	}
	slot := index % i.header.tableEntries() * 8
	return i.parse(binary.BigEndian.Uint64(i.table[slot:]), table+slot)
}

func (i *Image) loadTable(at int64) error {
	if i.tableAt == at {
		return nil
	}
	if i.table == nil {
		i.table = make([]byte, i.header.clusterSize())
	}
	i.tableAt = 0
	if err := i.read(i.table, at, "an L2 table"); err != nil {
		return err
	}
	i.tableAt = at
	return nil
}

// parse reads an L2 entry, which stands at from.
func (i *Image) parse(raw uint64, from int64) (entry, error) {
	if raw&flagCompressed != 0 {
		return i.parsePacked(raw, from)
	}
	if raw&reservedL2 != 0 {
		return entry{}, corrupt(from, "L2 entry %#x has reserved bits", raw)
	}
	e := entry{raw: raw, from: from, at: int64(raw & offsetMask)}
	if e.at != 0 {
		if err := i.inside(e.at, from, "data"); err != nil {
			return entry{}, err
		}
	}
	if raw&flagZero != 0 {
		if i.header.version < 3 {
			return entry{}, corrupt(from, "a cluster of zeros in version %d", i.header.version)
		}
		return e, nil
	}
	if e.at != 0 {
		e.kind = plainCluster
	}
	return e, nil
}

// parsePacked reads the entry of a compressed cluster: an offset of any alignment, and the number of sectors that its data reaches into beyond
// the first. How the bits are shared between the two depends on the size of clusters.
func (i *Image) parsePacked(raw uint64, from int64) (entry, error) {
	offsetBits := 62 - (i.header.clusterBits - 8)
	e := entry{kind: packedCluster, raw: raw, from: from, at: int64(raw & (1<<offsetBits - 1))}
	sectors := int64(raw &^ (3 << 62) >> offsetBits)
	e.length = (sectors+1)*sectorSize - e.at%sectorSize
	if e.at < headerV2 || e.at >= i.size {
		return entry{}, corrupt(from, "the offset %d of compressed data is not in the file, which has %d bytes", e.at, i.size)
	}
	// The last sector need not be whole: what is compressed ends where it ends.
	if e.at+e.length >= i.size+sectorSize {
		return entry{}, corrupt(from, "compressed data at %d of %d bytes goes on after the file's end, which has %d bytes", e.at, e.length, i.size)
	}
	e.length = min(e.length, i.size-e.at)
	return e, nil
}
