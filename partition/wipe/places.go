package wipe

import (
	"cmp"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"slices"

	"bloomery/partition"
)

const (
	kibibyte = 1 << 10
	mebibyte = 1 << 20
	gibibyte = 1 << 30

	// edge is looked at on both ends of a disk: GUID tables, md superblocks (0.90: within the last 128 KiB; 1.0: the last 12 KiB; 1.1: 0; 1.2: 4 KiB),
	// IMSM and DDF anchors in the last sectors, both LUKS2 headers (0 and at most 4 MiB), LVM labels (the first 4 sectors), the four ZFS labels.
	edge = 16 * mebibyte
	// partitionEdge is the same for a partition; its own LUKS2 backup header may be at 4 MiB.
	partitionEdge = 5 * mebibyte
	block         = 4 * kibibyte

	samples     = 128
	sampleBytes = 64 * kibibyte
	// maxGroups bounds the copies of XFS's superblock that are looked at: one in each allocation group.
	maxGroups = 4096
)

type place struct{ off, n int64 }

func totalBytes(places []place) (n int64) {
	for _, p := range places {
		n += p.n
	}
	return n
}

// metadataPlaces are where a partition table, an array's, a volume's or a filesystem's own records may lie: both ends of the disk and of each old
// partition, and the copies of superblocks within. The disk's beginning comes last: as long as it is there, an interrupted wipe finds the rest.
func metadataPlaces(r io.ReaderAt, size int64, sector int) []place {
	places := []place{{0, edge}, {size - edge, edge}}
	add := func(span partition.Span) {
		for _, p := range superblocks(r, span) {
			if p.off+p.n <= span.Start+span.Size {
				places = append(places, p)
			}
		}
	}
	add(partition.Span{Size: size})
	for _, span := range partition.Spans(r, size, sector) {
		n := min(span.Size, partitionEdge)
		places = append(places, place{span.Start, n}, place{span.Start + span.Size - n, n})
		add(span)
	}
	return merge(places, size, int64(max(sector, block)))
}

// superblocks are the copies of superblocks of what may be on a stretch of the disk.
func superblocks(r io.ReaderAt, span partition.Span) []place {
	// btrfs (fs/btrfs/disk-io.h, btrfs_sb_offset).
	places := []place{{span.Start + 64*mebibyte, block}, {span.Start + 256*gibibyte, block}}
	// ext2 to ext4 with sparse_super: block groups 1 and the powers of 3, 5 and 7, of 8 blocks for each of a block's bytes (fs/ext4/balloc.c,
	// ext4_bg_has_super). Blocks of 1 KiB count from 1.
	for _, blockSize := range []int64{kibibyte, 2 * kibibyte, 4 * kibibyte} {
		group := blockSize * blockSize * 8
		for _, base := range []int64{3, 5, 7} {
			for n := int64(1); n*group < span.Size; n *= base {
				places = append(places, place{span.Start + n*group, block})
			}
		}
	}
	head := make([]byte, block)
	if _, err := r.ReadAt(head, span.Start); err == nil && string(head[:4]) == "XFSB" {
		// fs/xfs/libxfs/xfs_format.h, xfs_dsb: sb_blocksize, sb_agblocks and sb_agcount.
		blockSize, blocks, groups := int64(binary.BigEndian.Uint32(head[4:])), int64(binary.BigEndian.Uint32(head[84:])), int64(binary.BigEndian.Uint32(head[88:]))
		for i := int64(1); i < min(groups, maxGroups) && blockSize*blocks > 0 && i < span.Size/(blockSize*blocks); i++ {
			places = append(places, place{span.Start + i*blockSize*blocks, block})
		}
	}
	return places
}

// merge rounds places outward to whole units, cuts them to the disk, and joins those that touch; the one at 0 comes last.
func merge(places []place, size, unit int64) []place {
	slices.SortFunc(places, func(a, b place) int { return cmp.Compare(a.off, b.off) })
	var merged []place
	for _, p := range places {
		off, end := max(p.off, 0)/unit*unit, min((p.off+p.n+unit-1)/unit*unit, size)
		if end <= off {
			continue
		}
		if n := len(merged); n > 0 && off <= merged[n-1].off+merged[n-1].n {
			merged[n-1].n = max(merged[n-1].n, end-merged[n-1].off)
			continue
		}
		merged = append(merged, place{off, end - off})
	}
	if len(merged) > 1 {
		merged = append(merged[1:], merged[0])
	}
	return merged
}

// samplePlaces draws the pieces that are looked at before and after: both ends, and one from each of equal stretches so that none is left out.
func samplePlaces(size int64, seed [32]byte) []place {
	draw := rand.New(rand.NewChaCha8(seed))
	places := []place{{0, sampleBytes}, {size - sampleBytes, sampleBytes}}
	stretch := size / samples
	for i := range int64(samples) {
		at := i * stretch
		if room := stretch - sampleBytes; room > 0 {
			at += draw.Int64N(room)
		}
		places = append(places, place{at / block * block, sampleBytes})
	}
	return merge(places, size, block)
}
