package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/pierrec/lz4/v4"
)

// raftPolynomial is that of libraft's checksums (src/byte.c): CRC-32 without reflection, beginning at zero.
const raftPolynomial = 0x04c11db7

const (
	metadataSize = 4 * raftWord
	// snapshotHeader is format, checksum, index of the configuration and its length.
	snapshotHeader = 4 * raftWord
	// maxSnapshotMeta bounds a snapshot's description: a few nodes.
	maxSnapshotMeta = 1 << 20
)

// raftSums computes libraft's checksums.
type raftSums [256]uint32

func newRaftSums() *raftSums {
	var t raftSums
	for i := range t {
		c := uint32(i) << 24
		for range 8 {
			if c&(1<<31) != 0 {
				c = c<<1 ^ raftPolynomial
			} else {
				c <<= 1
			}
		}
		t[i] = c
	}
	return &t
}

func (t *raftSums) sum(data []byte) uint32 {
	var c uint32
	for _, b := range data {
		c = c<<8 ^ t[byte(c>>24)^b]
	}
	return c
}

// verify reads a node's files before libraft does. libraft moves a damaged segment aside and goes on without what was in it, which
// may have been acknowledged; here a damaged file is an error that names it. What only looks like the end of a write that the loss
// of power has cut is left to libraft.
func verify(dir string, log *slog.Logger) error {
	files, err := listRaft(dir)
	if err != nil {
		return err
	}
	if err := setAside(dir); err != nil {
		return err
	}
	sums := newRaftSums()
	v := verifier{sums: sums, log: log}
	if err := v.metadata(dir, len(files.closed)+len(files.open)+len(files.snapshots) > 0); err != nil {
		return err
	}
	for _, s := range files.snapshots {
		if err := v.snapshot(s); err != nil {
			return err
		}
	}
	return v.segments(files)
}

// lz4Magic begins an LZ4 frame (LZ4 frame format 1.6, general structure).
const lz4Magic = 0x184d2204

// snapshotData reads a snapshot's data, compressed by LZ4 with a checksum over all of it.
func snapshotData(path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	in := bufio.NewReaderSize(f, 1<<20)
	begin, err := in.Peek(4)
	if err != nil || binary.LittleEndian.Uint32(begin) != lz4Magic {
		return fmt.Errorf("%s is corrupt: it is no LZ4 frame", path)
	}
	if _, err := io.Copy(io.Discard, lz4.NewReader(in)); err != nil {
		return fmt.Errorf("%s is corrupt: %w", path, err)
	}
	return nil
}

// setAside finds segments that libraft has moved out of its way.
func setAside(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, "corrupt-*"))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("%s is corrupt, and what was in it is missing: remove this coordinator from the rack and join it again, or restore a backup", left[0])
	}
	return nil
}

type verifier struct {
	sums *raftSums
	log  *slog.Logger
}

// metadata checks the two files that hold term and vote in turn. One may be short: libraft writes the other first.
func (v verifier) metadata(dir string, needed bool) error {
	whole := 0
	for n := uint64(1); n <= 2; n++ {
		path := filepath.Join(dir, fmt.Sprintf("metadata%d", n))
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if len(data) < metadataSize {
			v.log.Warn("a write of the database's metadata was cut; the other copy counts", "file", path)
			continue
		}
		format, version := binary.LittleEndian.Uint64(data), binary.LittleEndian.Uint64(data[raftWord:])
		if len(data) != metadataSize || format != raftFormat || version == 0 || version%2 != n%2 {
			return fmt.Errorf("%s is corrupt: format %d, version %d, %d bytes", path, format, version, len(data))
		}
		whole++
	}
	if whole == 0 && needed {
		return fmt.Errorf("%s and metadata2 are missing or cut, but the log is there: the database is damaged", filepath.Join(dir, "metadata1"))
	}
	return nil
}

func (v verifier) snapshot(s snapshotFile) error {
	info, err := os.Stat(s.path)
	if err != nil {
		return err
	}
	if info.Size() < snapshotHeader || info.Size() > maxSnapshotMeta {
		return fmt.Errorf("%s is corrupt: %d bytes", s.path, info.Size())
	}
	meta, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	want := binary.LittleEndian.Uint64(meta[raftWord:])
	if binary.LittleEndian.Uint64(meta) != raftFormat || uint64(v.sums.sum(meta[2*raftWord:])) != want {
		return fmt.Errorf("%s is corrupt: wrong checksum", s.path)
	}
	return snapshotData(strings.TrimSuffix(s.path, ".meta"))
}

// segments checks that every entry has its checksum, and that the log has no gap after the snapshot.
func (v verifier) segments(files raftFiles) error {
	next, before := uint64(1), uint64(0)
	if n := len(files.snapshots); n > 0 {
		next = files.snapshots[n-1].index + 1
	}
	for _, s := range files.closed {
		n, _, err := walkSegment(s.path, func(at int64, sums [2]uint32, header, data []byte) error {
			if v.sums.sum(header) != sums[0] || v.sums.sum(data) != sums[1] {
				return fmt.Errorf("%s is corrupt: wrong checksum at byte %d", s.path, at)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if n != s.last-s.first+1 {
			return fmt.Errorf("%s is corrupt: it holds %d entries, its name says %d", s.path, n, s.last-s.first+1)
		}
		if s.first > before+1 && s.first > next {
			return fmt.Errorf("the log has a gap before %s: a segment file is missing", s.path)
		}
		before = s.last
	}
	for _, path := range files.open {
		if err := v.open(path); err != nil {
			return err
		}
	}
	return nil
}

// open tells damage in the middle of an open segment from a last write that was cut: after the latter nothing valid follows.
func (v verifier) open(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(data) < raftWord || binary.LittleEndian.Uint64(data) == 0 {
		return nil // never written
	}
	at := raftWord
	for {
		size, ok := v.batch(data, at)
		if !ok {
			break
		}
		at += size
	}
	for later := at + raftWord; later+batchPreamble <= len(data); later += raftWord {
		if _, ok := v.batch(data, later); ok {
			return fmt.Errorf("%s is corrupt: wrong checksum at byte %d, and there are entries after it", path, at)
		}
	}
	return nil
}

// batch says whether a valid batch of entries stands at a place, and how long it is.
func (v verifier) batch(data []byte, at int) (size int, ok bool) {
	if at+batchPreamble > len(data) {
		return 0, false
	}
	count := binary.LittleEndian.Uint64(data[at+raftWord:])
	if count == 0 || count > maxBatch {
		return 0, false
	}
	begin := at + batchPreamble + int(count)*entryHeader
	if begin > len(data) || v.sums.sum(data[at+raftWord:begin]) != binary.LittleEndian.Uint32(data[at:]) {
		return 0, false
	}
	length := 0
	for i := range int(count) {
		length += (int(binary.LittleEndian.Uint32(data[at+batchPreamble+i*entryHeader+raftWord+4:])) + raftWord - 1) / raftWord * raftWord
	}
	if begin+length > len(data) || v.sums.sum(data[begin:begin+length]) != binary.LittleEndian.Uint32(data[at+4:]) {
		return 0, false
	}
	return begin + length - at, true
}
