package qcow2

import (
	"context"
	"encoding/binary"
)

// Contents counts the clusters of a disk by how they are stored.
type Contents struct {
	Plain, Packed, Zero int64
}

// The fewest bytes that a compressed cluster can have: deflate makes at most 1032 bytes of one (zlib's technical details), and a zstd frame
// with one block of one repeated byte has 9 (RFC 8878, section 3.1.1).
const (
	maxInflation = 1032
	minZstdFrame = 9
)

// Check goes through all tables, so that what can be known to be wrong is known before the first byte of the disk is used. In a sound image
// no two clusters of the disk, nor a cluster and a table, are in one place of the file; a small file that claims to be a large disk by naming the
// same cluster many times is refused here.
func (i *Image) Check(ctx context.Context) (Contents, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	c := check{image: i, used: make([]uint64, (i.size>>i.header.clusterBits)/64+1)}
	if err := c.claim(0, i.header.length, 0, "header"); err != nil {
		return Contents{}, err
	}
	if err := c.claim(i.header.l1At, i.header.l1Entries*8, 40, "L1 table"); err != nil {
		return Contents{}, err
	}
	for n, table := range i.l1 {
		if table == 0 {
			continue
		}
		if err := c.claim(int64(table), i.header.clusterSize(), i.header.l1At+int64(n)*8, "L2 table"); err != nil {
			return Contents{}, err
		}
	}
	clusters := (i.header.size-1)>>i.header.clusterBits + 1
	perTable := i.header.tableEntries()
	for n, table := range i.l1 {
		if err := ctx.Err(); err != nil {
			return Contents{}, err
		}
		first := int64(n) * perTable
		count := min(perTable, clusters-first)
		if table == 0 {
			c.found.Zero += count
			continue
		}
		if err := i.loadTable(int64(table)); err != nil {
			return Contents{}, err
		}
		if err := c.table(int64(table), first, count); err != nil {
			return Contents{}, err
		}
	}
	return c.found, nil
}

type check struct {
	image *Image
	// used has a bit for each cluster of the file.
	used  []uint64
	found Contents
	// packed is the sum of the fewest bytes that the compressed clusters can have.
	packed int64
}

// table checks the entries of the L2 table that is loaded, for count clusters of the disk.
func (c *check) table(at, first, count int64) error {
	i := c.image
	for slot := range count {
		raw := binary.BigEndian.Uint64(i.table[slot*8:])
		if raw == 0 {
			c.found.Zero++
			continue
		}
		e, err := i.parse(raw, at+slot*8)
		if err != nil {
			return err
		}
		switch e.kind {
		case zeroCluster:
			c.found.Zero++
		case plainCluster:
			c.found.Plain++
			length := min(i.header.clusterSize(), i.header.size-(first+slot)<<i.header.clusterBits)
			if e.at+length > i.size {
				return corrupt(e.from, "the data at %d of the disk's cluster %d goes on after the file's end, which has %d bytes", e.at, first+slot, i.size)
			}
			if err := c.claim(e.at, length, e.from, "data"); err != nil {
				return err
			}
		case packedCluster:
			c.found.Packed++
			least := i.header.clusterSize() / maxInflation
			if i.header.compression == compressedZstd {
				least = minZstdFrame
			}
			c.packed += max(e.length-sectorSize+1, least, 1)
			if c.packed > i.size {
				return corrupt(e.from, "the compressed clusters up to here have more bytes than the file, which has %d: some are used twice", i.size)
			}
		}
	}
	return nil
}

// claim takes clusters of the file for one use.
func (c *check) claim(at, length, from int64, what string) error {
	bits := c.image.header.clusterBits
	for n := at >> bits; n <= (at+length-1)>>bits; n++ {
		if c.used[n/64]&(1<<(n%64)) != 0 {
			return corrupt(from, "the %s at %d is in a cluster that has another use too", what, at)
		}
		c.used[n/64] |= 1 << (n % 64)
	}
	return nil
}
