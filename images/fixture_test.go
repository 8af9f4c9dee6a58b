package images

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"log/slog"
)

const mib = 1 << 20

// testDisk returns seeded disk bytes: data, a run of zeros, mixed frames, and a last frame that is short.
func testDisk(seed uint64) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	disk := make([]byte, 26*mib+3*SectorSize)
	fill := func(from, length int) {
		for i := from; i < from+length; i += 8 {
			binary.LittleEndian.PutUint64(disk[i:], random.Uint64()&0x3f3f3f3f3f3f3f3f)
		}
	}
	fill(0, 2*mib)
	fill(5*mib, 200<<10)
	fill(9*mib, 300<<10) // in a frame that is zero else
	fill(22*mib, 2*mib)
	fill(len(disk)-100<<10, 100<<10)
	return disk
}

type fixture struct {
	disk   []byte
	dir    string
	public PublicKey
	key    PrivateKey
	m      *Manifest
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	public, key, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{disk: testDisk(7), dir: filepath.Join(t.TempDir(), "image"), public: public, key: key}
	f.m, err = Import(t.Context(), bytes.NewReader(f.disk), ImportOptions{Name: "debian-12", Out: f.dir, Key: &key})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(f.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func (f *fixture) store(t *testing.T) *Store {
	t.Helper()
	s, err := OpenStore(filepath.Join(t.TempDir(), "store"), f.public)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	u, err := s.Begin(t.Context(), "debian-12", f.read(t, ManifestFile), f.read(t, SignatureFile))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := u.Write(f.read(t, DataFile)); err != nil {
		t.Fatal(err)
	}
	if err := u.Commit(); err != nil {
		t.Fatal(err)
	}
	return s
}

func (f *fixture) source(t *testing.T) *HTTPSource {
	t.Helper()
	server := httptest.NewServer(Handler(f.store(t), slog.New(slog.DiscardHandler)))
	t.Cleanup(server.Close)
	return &HTTPSource{BaseURLs: []string{server.URL}, Client: server.Client(), Patience: 5 * time.Second, IdleTimeout: time.Second}
}

// memorySource serves data from memory and can be made to go wrong.
type memorySource struct {
	data []byte
	// before is asked before each read, if set.
	before func(p []byte, offset int64) error
	// spoil may change what was read, if set.
	spoil func(p []byte, offset int64)
	mu    sync.Mutex
	reads []int64
}

func (s *memorySource) FetchManifest(context.Context, string) ([]byte, []byte, error) {
	return nil, nil, ErrNotFound
}

func (s *memorySource) ReadRange(_ context.Context, _ string, p []byte, offset int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads = append(s.reads, offset)
	if s.before != nil {
		if err := s.before(p, offset); err != nil {
			return err
		}
	}
	if offset+int64(len(p)) > int64(len(s.data)) {
		return io.ErrUnexpectedEOF
	}
	copy(p, s.data[offset:])
	if s.spoil != nil {
		s.spoil(p, offset)
	}
	return nil
}

// deviceOp is one call that changed a fake device.
type deviceOp struct {
	kind           string
	offset, length int64
}

// fakeDevice is a disk in memory that records what is done to it.
type fakeDevice struct {
	mu     sync.Mutex
	disk   []byte
	sector int
	ops    []deviceOp
	fail   func(op deviceOp) error
	// ignore makes writes there not reach the medium.
	ignore func(op deviceOp) bool
	// turn may change what is read, if set.
	turn func(p []byte, offset int64)
}

func newFakeDevice(size int) *fakeDevice {
	d := &fakeDevice{disk: bytes.Repeat([]byte{0xaa}, size), sector: SectorSize}
	return d
}

func (d *fakeDevice) do(op deviceOp) error {
	d.ops = append(d.ops, op)
	if d.fail != nil {
		return d.fail(op)
	}
	return nil
}

func (d *fakeDevice) ReadAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n, err := bytes.NewReader(d.disk).ReadAt(p, offset)
	if d.turn != nil {
		d.turn(p[:n], offset)
	}
	return n, err
}

func (d *fakeDevice) WriteAt(p []byte, offset int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	op := deviceOp{kind: "write", offset: offset, length: int64(len(p))}
	if err := d.do(op); err != nil {
		return 0, err
	}
	if d.ignore != nil && d.ignore(op) {
		return len(p), nil
	}
	return copy(d.disk[offset:], p), nil
}

func (d *fakeDevice) Zero(_ context.Context, offset, length int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if length == 0 {
		return nil
	}
	if err := d.do(deviceOp{kind: "zero", offset: offset, length: length}); err != nil {
		return err
	}
	clear(d.disk[offset : offset+length])
	return nil
}

func (d *fakeDevice) Sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.do(deviceOp{kind: "sync"})
}

func (d *fakeDevice) Size() int64     { return int64(len(d.disk)) }
func (d *fakeDevice) SectorSize() int { return d.sector }
