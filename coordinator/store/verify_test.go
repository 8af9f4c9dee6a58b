package store

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// grownDatabase makes a database with snapshots, closed segments and an open one, as a crash leaves it.
func grownDatabase(t *testing.T) (dir string, written int) {
	t.Helper()
	dir = t.TempDir()
	s := open(t, dir)
	for ; written < 1300; written++ {
		update(t, s, func(tx *Tx) error {
			return tx.AppendEvent(&bloomeryv1.Event{Type: "x", Message: "m"}, fmt.Sprint("k", written))
		})
	}
	crashed := t.TempDir()
	if err := os.CopyFS(crashed, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(crashed, "key"), 0o600); err != nil {
		t.Fatal(err)
	}
	return crashed, written
}

// TestCorruptFilesAreNamed damages one file after the other. Each is named, and what was written is never given up silently.
func TestCorruptFilesAreNamed(t *testing.T) {
	t.Parallel()
	whole, written := grownDatabase(t)
	flip := func(at float64) func([]byte) []byte {
		return func(data []byte) []byte {
			data[int(at*float64(len(data)))] ^= 0x10
			return data
		}
	}
	cut := func(data []byte) []byte { return data[:len(data)/2] }
	cases := []struct {
		name, glob string
		damage     func([]byte) []byte
		// opens says that libraft can go on without a loss.
		opens bool
	}{
		{"nothing", "lock", func(d []byte) []byte { return d }, true},
		{"closed segment, begin", "0*-0*", flip(0.01), false},
		{"closed segment, middle", "0*-0*", flip(0.5), false},
		{"closed segment, end", "0*-0*", flip(0.99), false},
		{"closed segment cut", "0*-0*", cut, false},
		{"earlier closed segment lost", "0*-0*", nil, true}, // the snapshot has it
		{"open segment, begin", "open-*", flip(0.001), false},
		{"metadata, format", "metadata1", flip(0), false},
		{"metadata cut", "metadata*", cut, false},
		{"metadata lost", "metadata*", nil, false},
		{"snapshot's description", "snapshot-*.meta", flip(0.9), false},
		{"snapshot's description cut", "snapshot-*.meta", cut, false},
		{"snapshot", "snapshot-*[0-9]", flip(0.5), false},
		{"snapshot cut", "snapshot-*[0-9]", cut, false},
		{"snapshot lost", "snapshot-*[0-9]", nil, false},
		{"info.yaml", "info.yaml", flip(0.2), false},
		{"info.yaml cut", "info.yaml", cut, false},
		{"info.yaml lost", "info.yaml", nil, false},
		{"cluster.yaml", "cluster.yaml", func([]byte) []byte { return []byte("{") }, false},
		{"cluster.yaml lost", "cluster.yaml", nil, true},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.CopyFS(dir, os.DirFS(whole)); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(filepath.Join(dir, "key"), 0o600); err != nil {
				t.Fatal(err)
			}
			found, err := filepath.Glob(filepath.Join(dir, "db", tc.glob))
			if err != nil || len(found) == 0 {
				t.Fatalf("no file %s: %v", tc.glob, err)
			}
			switch {
			case strings.HasPrefix(tc.name, "earlier"):
				found = found[len(found)-2 : len(found)-1]
			case strings.HasPrefix(tc.glob, "0"):
				found = found[len(found)-1:]
			}
			for _, path := range found {
				damage(t, path, tc.damage)
			}
			s, err := Open(t.Context(), testOptions(dir))
			if err == nil {
				n := countEvents(t, s)
				if closeErr := s.Close(); closeErr != nil {
					t.Error(closeErr)
				}
				if !tc.opens || n != written {
					t.Errorf("opened, with %d of %d events", n, written)
				}
				return
			}
			if tc.opens {
				t.Fatal(err)
			}
			named := false
			for _, path := range found {
				named = named || strings.Contains(err.Error(), filepath.Base(path))
			}
			if !named && !strings.Contains(err.Error(), "a segment file is missing") {
				t.Errorf("the error does not name the file: %v", err)
			}
		})
	}
}

func damage(t *testing.T, path string, how func([]byte) []byte) {
	t.Helper()
	if how == nil {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, how(bytes.Clone(data)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func countEvents(t *testing.T, s *Store) (n int) {
	t.Helper()
	err := s.View(t.Context(), func(r *Reader) error {
		events, err := r.Events(EventFilter{Limit: 1_000_000})
		n = len(events)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCutWriteIsNoDamage cuts the last entries of the open segment, as a loss of power does: the node starts.
func TestCutWriteIsNoDamage(t *testing.T) {
	t.Parallel()
	dir, written := grownDatabase(t)
	var segment string
	err := filepath.WalkDir(filepath.Join(dir, "db"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && strings.HasPrefix(e.Name(), "open-") {
			if n, _, err := walkSegment(path, nil); err == nil && n > 0 {
				segment = path
			}
		}
		return err
	})
	if err != nil || segment == "" {
		t.Fatalf("no open segment: %v", err)
	}
	data, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	v, at, last := verifier{sums: newRaftSums()}, raftWord, 0
	for {
		size, ok := v.batch(data, at)
		if !ok {
			break
		}
		last = at
		at += size
	}
	clear(data[(last+at)/2 : at])
	if err := os.WriteFile(segment, data, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), testOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if n := countEvents(t, s); n < written-1 || n > written {
		t.Errorf("%d events are left of %d", n, written)
	}
}

func TestSecondProgramIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	_, err := Open(t.Context(), testOptions(dir))
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("in use by process %d", os.Getpid())) {
		t.Errorf("a second open: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := open(t, dir).Close(); err != nil {
		t.Error(err)
	}
}

// FuzzSegment reads files that anybody may have written.
func FuzzSegment(f *testing.F) {
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte("\x01\x00\x00\x00\x00\x00\x00\x00\x27\x01\x13\x7f\xc4\x52\x19\x4e\x01\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x20\x00\x00\x00\x01\x01\x00\x00\x00\x00\x00\x00\x00\xbe\x55\x31\x8c\x85\x71\xc1\x2d\x63\x6f\x6f\x72\x64\x69\x6e\x61\x74\x6f\x72\x2d\x31\x00\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "open-1")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		n, _, walkErr := walkSegment(path, nil)
		if walkErr == nil && n > uint64(len(data)) {
			t.Errorf("%d entries in %d bytes", n, len(data))
		}
		_ = verifier{sums: newRaftSums()}.open(path)
	})
}
