package images

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

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
	if _, err := s.Begin("debian-12", f.read(t, ManifestFile), f.read(t, SignatureFile)); !errors.Is(err, ErrExists) {
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
		u, err := s.BeginReplacing("debian-12", f.read(t, ManifestFile), f.read(t, SignatureFile))
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
	if _, err := open(t, other).Begin("debian-12", manifest, signature); !errors.Is(err, ErrSignature) {
		t.Errorf("wrong key: %v, want ErrSignature", err)
	}
	changed := append([]byte(nil), manifest...)
	changed[len(changed)/2] ^= 1
	if _, err := open(t, f.public).Begin("debian-12", changed, signature); !errors.Is(err, ErrSignature) {
		t.Errorf("changed manifest: %v, want ErrSignature", err)
	}
	if _, err := open(t, f.public).Begin("debian-13", manifest, signature); err == nil {
		t.Error("an image was stored under another name")
	}
	spoiled := append([]byte(nil), data...)
	spoiled[len(spoiled)-1] ^= 1
	for name, bytes := range map[string][]byte{"truncated": data[:len(data)-1], "too long": append(data[:len(data):len(data)], 0), "flipped": spoiled, "empty": nil} {
		t.Run(name, func(t *testing.T) {
			s := open(t, f.public)
			u, err := s.Begin("debian-12", manifest, signature)
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
