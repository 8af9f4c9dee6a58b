package images

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func TestReader(t *testing.T) {
	f := newFixture(t)
	r, err := OpenReader(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	random := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		offset := random.Int64N(int64(len(f.disk)))
		p := make([]byte, random.Int64N(FrameSize+FrameSize/2))
		n, err := r.ReadAt(p, offset)
		want := f.disk[offset:min(int64(len(f.disk)), offset+int64(len(p)))]
		if !bytes.Equal(p[:n], want) {
			t.Errorf("%d bytes at %d are not those of the disk", len(p), offset)
		}
		if short := len(want) < len(p); short != (err == io.EOF) || !short && err != nil {
			t.Errorf("%d bytes at %d: %d, %v", len(p), offset, n, err)
		}
	}
	if _, err := r.ReadAt(make([]byte, 1), -1); err == nil {
		t.Error("a negative offset was read")
	}
}

func TestReaderFindsRot(t *testing.T) {
	f := newFixture(t)
	path := filepath.Join(f.dir, DataFile)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := OpenReader(f.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, io.NewSectionReader(r, 0, r.Manifest.Size)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a flipped bit: %v", err)
	}
}
