package images

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func TestStore(t *testing.T) {
	f := newFixture(t)
	s := f.store(t)
	list, err := s.List()
	if err != nil || len(list) != 1 {
		t.Fatalf("List = %d images, %v", len(list), err)
	}
	if diff := cmp.Diff(f.m, list[0].Manifest, cmpopts.IgnoreUnexported(Manifest{})); diff != "" {
		t.Error(diff)
	}
	if _, err := s.Verify(t.Context(), "debian-12"); err != nil {
		t.Error(err)
	}
	if _, err := s.Begin(t.Context(), "debian-12", f.read(t, ManifestFile), f.read(t, SignatureFile)); !errors.Is(err, ErrExists) {
		t.Errorf("second Begin: %v, want ErrExists", err)
	}
	for _, name := range []string{"../debian-12", "..", "", ".upload-1", "a/b", "absent"} {
		if _, err := s.Get(name); err == nil {
			t.Errorf("Get(%q) found an image", name)
		}
		if err := s.Remove(name); err == nil {
			t.Errorf("Remove(%q) succeeded", name)
		}
	}
	flip(t, filepath.Join(s.dir, "debian-12", DataFile), 1000)
	if _, err := s.Verify(t.Context(), "debian-12"); !errors.Is(err, ErrCorrupt) {
		t.Errorf("Verify of a flipped byte: %v, want ErrCorrupt", err)
	}
	if err := s.Remove("debian-12"); err != nil {
		t.Error(err)
	}
	if _, err := s.Get("debian-12"); !errors.Is(err, ErrNotFound) {
		t.Errorf("Get after Remove: %v, want ErrNotFound", err)
	}
}

// TestReplacing puts a sound image into the place of a spoilt one, and refuses one that has no room.
func TestReplacing(t *testing.T) {
	f := newFixture(t)
	s := f.store(t)
	flip(t, filepath.Join(s.dir, "debian-12", DataFile), 1000)
	flip(t, filepath.Join(s.dir, "debian-12", SignatureFile), 60)
	for range 2 { // the second replaces a sound one
		u, err := s.BeginReplacing(t.Context(), "debian-12", f.read(t, ManifestFile), f.read(t, SignatureFile))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := u.Write(f.read(t, DataFile)); err != nil {
			t.Fatal(err)
		}
		if err := u.Commit(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Verify(t.Context(), "debian-12"); err != nil {
			t.Error(err)
		}
	}
	if err := s.roomFor(1 << 60); !errors.Is(err, ErrNoSpace) {
		t.Errorf("room for an exbibyte: %v", err)
	}
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	b := make([]byte, 1)
	if _, err := file.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := file.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

func TestUploadRefusals(t *testing.T) {
	f := newFixture(t)
	manifest, signature, data := f.read(t, ManifestFile), f.read(t, SignatureFile), f.read(t, DataFile)
	open := func(t *testing.T, keys ...PublicKey) *Store {
		s, err := OpenStore(t.TempDir(), keys...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	other, _, err := GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, other).Begin(t.Context(), "debian-12", manifest, signature); !errors.Is(err, ErrSignature) {
		t.Errorf("wrong key: %v, want ErrSignature", err)
	}
	changed := append([]byte(nil), manifest...)
	changed[len(changed)/2] ^= 1
	if _, err := open(t, f.public).Begin(t.Context(), "debian-12", changed, signature); !errors.Is(err, ErrSignature) {
		t.Errorf("changed manifest: %v, want ErrSignature", err)
	}
	if _, err := open(t, f.public).Begin(t.Context(), "debian-13", manifest, signature); err == nil {
		t.Error("an image was stored under another name")
	}
	spoiled := append([]byte(nil), data...)
	spoiled[len(spoiled)-1] ^= 1
	for name, bytes := range map[string][]byte{"truncated": data[:len(data)-1], "too long": append(data[:len(data):len(data)], 0), "flipped": spoiled, "empty": nil} {
		t.Run(name, func(t *testing.T) {
			s := open(t, f.public)
			u, err := s.Begin(t.Context(), "debian-12", manifest, signature)
			if err != nil {
				t.Fatal(err)
			}
			_, writeErr := u.Write(bytes)
			if err := errors.Join(writeErr, u.Commit()); !errors.Is(err, ErrCorrupt) {
				t.Errorf("error = %v, want ErrCorrupt", err)
			}
			entries, err := os.ReadDir(s.dir)
			if err != nil || len(entries) != 0 {
				t.Errorf("%d things were left, %v", len(entries), err)
			}
		})
	}
}

// TestUploadGoesOn interrupts an upload at many places, and spoils what was kept.
func TestUploadGoesOn(t *testing.T) {
	f := newFixture(t)
	manifest, signature, data := f.read(t, ManifestFile), f.read(t, SignatureFile), f.read(t, DataFile)
	var ends []int64
	for _, frame := range f.m.Frames {
		if !frame.Zero {
			ends = append(ends, frame.DataOffset+frame.DataLength)
		}
	}
	first, second := ends[0], ends[1]
	for name, tc := range map[string]struct {
		sent  int64
		spoil func(t *testing.T, path string)
		// said is what Received tells, and kept what is sound.
		said, kept int64
	}{
		"nothing":         {0, nil, 0, 0},
		"in the first":    {first - 1, nil, 0, 0},
		"after the first": {first, nil, first, first},
		"in the third":    {second + 100, nil, second, second},
		"all":             {int64(len(data)), nil, int64(len(data)), int64(len(data))},
		"a flipped byte":  {second + 100, func(t *testing.T, path string) { flip(t, path, first+10) }, second, first},
		"cut off":         {second + 100, func(t *testing.T, path string) { truncate(t, path, first+10) }, first, first},
		"longer": {second, func(t *testing.T, path string) {
			truncate(t, path, second)
			truncate(t, path, int64(len(data))+1000)
		}, int64(len(data)), second},
		"without its manifest": {second, func(t *testing.T, path string) { truncate(t, filepath.Join(filepath.Dir(path), ManifestFile), 100) }, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "store")
			s, err := OpenStore(dir, f.public)
			if err != nil {
				t.Fatal(err)
			}
			u, err := s.Begin(t.Context(), "debian-12", manifest, signature)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := u.Write(data[:tc.sent]); err != nil {
				t.Fatal(err)
			}
			if tc.spoil != nil {
				tc.spoil(t, filepath.Join(u.dir, DataFile))
			}
			u.Abort()
			if err := s.Close(); err != nil { // as the process that ends
				t.Fatal(err)
			}
			if s, err = OpenStore(dir, f.public); err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if said, err := s.Received(f.m.SHA256()); err != nil || said != tc.said {
				t.Errorf("received %d, %v; want %d", said, err, tc.said)
			}
			if u, err = s.Begin(t.Context(), "debian-12", manifest, signature); err != nil {
				t.Fatal(err)
			}
			if u.Offset() != tc.kept {
				t.Errorf("it goes on at %d, want %d", u.Offset(), tc.kept)
			}
			if _, err := u.Write(data[u.Offset():]); err != nil {
				t.Fatal(err)
			}
			if err := u.Commit(); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Verify(t.Context(), "debian-12"); err != nil {
				t.Error(err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
				t.Errorf("%d things are there, %v; want the image only", len(left), err)
			}
		})
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}

// TestOneUploadAtATime lets a second upload of an image wait until the first stands still, and then go on in its place.
func TestOneUploadAtATime(t *testing.T) {
	f := newFixture(t)
	manifest, signature, data := f.read(t, ManifestFile), f.read(t, SignatureFile), f.read(t, DataFile)
	s, err := OpenStore(t.TempDir(), f.public)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	begin := func() (*Upload, error) { return s.Begin(t.Context(), "debian-12", manifest, signature) }
	first, err := begin()
	if err != nil {
		t.Fatal(err)
	}
	frame := f.m.Frames[0].DataLength
	if _, err := first.Write(data[:frame]); err != nil {
		t.Fatal(err)
	}
	first.mu.Lock()
	first.moved = time.Now().Add(time.Hour) // however slow this machine is
	first.mu.Unlock()
	if _, err := begin(); !errors.Is(err, ErrUploading) {
		t.Errorf("while the first moves: %v, want ErrUploading", err)
	}
	if swept, err := s.Sweep(time.Now().Add(48 * time.Hour)); err != nil || len(swept) != 0 {
		t.Errorf("an upload under way was swept: %v, %v", swept, err)
	}
	first.mu.Lock()
	first.moved = time.Now().Add(-takeOverAfter)
	first.mu.Unlock()
	second, err := begin()
	if err != nil || second.Offset() != frame {
		t.Fatalf("after it: %v, want it to go on at %d", err, frame)
	}
	if _, err := first.Write(data[frame:]); !errors.Is(err, errTakenOver) {
		t.Errorf("the first goes on: %v", err)
	}
	if err := first.Commit(); !errors.Is(err, errTakenOver) {
		t.Errorf("the first commits: %v", err)
	}
	if err := second.Restart(); err != nil || second.Offset() != 0 {
		t.Errorf("restart: %v, at %d", err, second.Offset())
	}
	if _, err := second.Write(data[:frame]); err != nil {
		t.Fatal(err)
	}
	second.Abort()
	if swept, err := s.Sweep(time.Now()); err != nil || len(swept) != 0 {
		t.Errorf("what can be gone on with was swept: %v, %v", swept, err)
	}
	if swept, err := s.Sweep(time.Now().Add(keepUpload + time.Minute)); err != nil || len(swept) != 1 {
		t.Errorf("swept after a day: %v, %v; want the upload", swept, err)
	}
	if third, err := begin(); err != nil || third.Offset() != 0 {
		t.Errorf("after that: %v", err)
	} else {
		third.Discard()
	}
}
