package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// LogPosition is the newest entry of the replicated log that is on a node's disk. Of two nodes the one with the later
// term has the newer data, in the same term the one with the higher index.
type LogPosition struct{ Term, Index uint64 }

// Before says that another position is newer.
func (p LogPosition) Before(other LogPosition) bool {
	return p.Term < other.Term || p.Term == other.Term && p.Index < other.Index
}

// Sizes of raft's files on disk (libraft 0.15, src/uv_encoding.c): all numbers are 64-bit little-endian words unless said.
const (
	raftWord = 8
	// batchPreamble is two 32-bit checksums and the number of entries, entryHeader each entry's term, type and 32-bit size.
	batchPreamble = 2 * raftWord
	entryHeader   = 2 * raftWord
	// maxBatch bounds the entries of one batch of a segment file.
	maxBatch = 1 << 20
	// raftFormat begins segments, snapshots' descriptions and metadata.
	raftFormat = 1
)

// Position is the newest entry on this node's disk.
func (s *Store) Position() (LogPosition, error) { return positionIn(s.dir) }

// positionIn reads the names of snapshots and closed segments, and walks the open segments, which may be written meanwhile.
func positionIn(dir string) (LogPosition, error) {
	files, err := listRaft(dir)
	if err != nil {
		return LogPosition{}, err
	}
	var p LogPosition
	if n := len(files.snapshots); n > 0 {
		p = LogPosition{files.snapshots[n-1].term, files.snapshots[n-1].index}
	}
	if n := len(files.closed); n > 0 && files.closed[n-1].last >= p.Index {
		p.Index = files.closed[n-1].last
		_, term, err := walkSegment(files.closed[n-1].path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			return LogPosition{}, fmt.Errorf("the log moves on: %w", err)
		}
		if err != nil {
			return LogPosition{}, err
		}
		p.Term = max(p.Term, term)
	}
	for _, path := range files.open {
		n, term, err := walkSegment(path, nil)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return LogPosition{}, err
		}
		p.Index += n
		p.Term = max(p.Term, term)
	}
	return p, nil
}

// raftFiles are the files of a node's replicated log, in their order.
type raftFiles struct {
	snapshots []snapshotFile
	closed    []closedSegment
	open      []string
}

type snapshotFile struct {
	path        string
	term, index uint64
}

type closedSegment struct {
	path        string
	first, last uint64
}

func listRaft(dir string) (raftFiles, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return raftFiles{}, err
	}
	var f raftFiles
	type counted struct {
		path string
		n    uint64
	}
	var open []counted
	for _, e := range entries {
		path, name := filepath.Join(dir, e.Name()), e.Name()
		var a, b, c uint64
		switch {
		case strings.HasPrefix(name, "snapshot-") && strings.HasSuffix(name, ".meta"):
			if n, err := fmt.Sscanf(name, "snapshot-%d-%d-%d.meta", &a, &b, &c); n == 3 && err == nil {
				f.snapshots = append(f.snapshots, snapshotFile{path, a, b})
			}
		case strings.HasPrefix(name, "open-"):
			if n, err := fmt.Sscanf(name, "open-%d", &a); n == 1 && err == nil {
				open = append(open, counted{path, a})
			}
		case len(name) == 33 && name[16] == '-':
			if n, err := fmt.Sscanf(name, "%016d-%016d", &a, &b); n == 2 && err == nil {
				f.closed = append(f.closed, closedSegment{path, a, b})
			}
		}
	}
	slices.SortFunc(f.snapshots, func(x, y snapshotFile) int {
		if (LogPosition{x.term, x.index}).Before(LogPosition{y.term, y.index}) {
			return -1
		}
		return 1
	})
	slices.SortFunc(f.closed, func(x, y closedSegment) int { return int(int64(x.first) - int64(y.first)) })
	slices.SortFunc(open, func(x, y counted) int { return int(int64(x.n) - int64(y.n)) })
	for _, o := range open {
		f.open = append(f.open, o.path)
	}
	return f, nil
}

// walkSegment counts the entries of a segment file up to its end or to the zeros after them, and gives the last one's term.
// check is called with each batch, its checksums and where it stands, unless it is nil; without it, data is not read.
func walkSegment(path string, check func(at int64, sums [2]uint32, header, data []byte) error) (n, term uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	at, size := int64(raftWord), info.Size()
	for at+batchPreamble <= size {
		preamble := make([]byte, batchPreamble)
		if _, err := f.ReadAt(preamble, at); err != nil {
			return n, term, fmt.Errorf("%s: %w", path, err)
		}
		count := binary.LittleEndian.Uint64(preamble[raftWord:])
		if count == 0 {
			return n, term, nil
		}
		if count > maxBatch || at+raftWord*2+int64(count)*entryHeader > size {
			return n, term, fmt.Errorf("%s is corrupt: at byte %d a batch claims %d entries", path, at, count)
		}
		header := make([]byte, raftWord+count*entryHeader)
		if _, err := f.ReadAt(header, at+raftWord); err != nil {
			return n, term, fmt.Errorf("%s: %w", path, err)
		}
		length := int64(0)
		for i := range count {
			entry := header[raftWord+i*entryHeader:]
			term = binary.LittleEndian.Uint64(entry)
			length += (int64(binary.LittleEndian.Uint32(entry[raftWord+4:])) + raftWord - 1) / raftWord * raftWord
		}
		begin := at + raftWord + int64(len(header))
		if begin+length > size {
			return n, term, fmt.Errorf("%s is corrupt: the batch at byte %d is longer than the file", path, at)
		}
		if check != nil {
			data := make([]byte, length)
			if _, err := io.ReadFull(io.NewSectionReader(f, begin, length), data); err != nil {
				return n, term, fmt.Errorf("%s: %w", path, err)
			}
			sums := [2]uint32{binary.LittleEndian.Uint32(preamble), binary.LittleEndian.Uint32(preamble[4:])}
			if err := check(at, sums, header, data); err != nil {
				return n, term, err
			}
		}
		n += count
		at = begin + length
	}
	return n, term, nil
}
