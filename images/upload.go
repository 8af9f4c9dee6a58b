package images

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// Upload receives the data of one image in order. It checks each frame as it arrives, and the image exists only after Commit.
// It is for one goroutine; Abort may be called at any time, also after Commit, which makes it fit for defer.
type Upload struct {
	store    *Store
	manifest *Manifest
	dir      string
	file     *os.File
	// replace lets Commit remove what has the image's name.
	replace bool
	// frame is the index of the data frame that is being received, and got its bytes so far.
	frame int
	got   int64
	sum   hash.Hash
	err   error
	once  sync.Once
}

// Begin starts storing an image under the name that its manifest has, which must be name. The signature is verified first.
// An image that is already there is ErrExists, one that the disk has no room for ErrNoSpace.
func (s *Store) Begin(name string, manifest, signature []byte) (*Upload, error) {
	return s.begin(name, manifest, signature, false)
}

// BeginReplacing is Begin where another image of that name, or a spoilt one, may be there: Commit puts the new one into its place.
func (s *Store) BeginReplacing(name string, manifest, signature []byte) (*Upload, error) {
	return s.begin(name, manifest, signature, true)
}

func (s *Store) begin(name string, manifest, signature []byte, replace bool) (*Upload, error) {
	m, err := VerifyManifest(manifest, signature, s.keys...)
	if err != nil {
		return nil, fmt.Errorf("storing image %.64s: %w", name, err)
	}
	if m.Name != name {
		return nil, fmt.Errorf("storing image: %w", fieldErrorf("name", "%.64q, want %q, as in the manifest", name, m.Name))
	}
	if !replace {
		if exists, same, err := s.has(name, manifest); err != nil {
			return nil, fmt.Errorf("storing image %s: %w", name, err)
		} else if exists && same {
			return nil, fmt.Errorf("storing image %s: the same image: %w", name, ErrExists)
		} else if exists {
			return nil, fmt.Errorf("storing image %s: a different image: %w", name, ErrExists)
		}
	}
	if err := s.roomFor(m.DataLength()); err != nil {
		return nil, fmt.Errorf("storing image %s: %w", name, err)
	}
	dir, err := os.MkdirTemp(s.dir, uploadPrefix)
	if err != nil {
		return nil, fmt.Errorf("storing image %s: %w", name, err)
	}
	u := &Upload{store: s, manifest: m, dir: dir, replace: replace, sum: sha256.New()}
	if err := u.open(manifest, signature); err != nil {
		return nil, errors.Join(fmt.Errorf("storing image %s: %w", name, err), os.RemoveAll(dir))
	}
	u.skipZeros()
	return u, nil
}

func (u *Upload) open(manifest, signature []byte) error {
	if err := writeNewFile(filepath.Join(u.dir, ManifestFile), manifest, 0o600); err != nil {
		return err
	}
	if err := writeNewFile(filepath.Join(u.dir, SignatureFile), signature, 0o600); err != nil {
		return err
	}
	file, err := os.OpenFile(filepath.Join(u.dir, DataFile), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	u.file = file
	return err
}

// Manifest is what the upload has to become.
func (u *Upload) Manifest() *Manifest { return u.manifest }

func (u *Upload) skipZeros() {
	for u.frame < len(u.manifest.Frames) && u.manifest.Frames[u.frame].Zero {
		u.frame++
	}
}

// Write takes the next bytes of the image's data. A frame with a wrong sum is ErrCorrupt, and then every later call fails the same way.
func (u *Upload) Write(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	if err := u.check(p); err != nil {
		u.err = fmt.Errorf("storing image %s: %w", u.manifest.Name, err)
		return 0, u.err
	}
	n, err := u.file.Write(p)
	if errors.Is(err, syscall.ENOSPC) {
		err = errors.Join(ErrNoSpace, err)
	}
	if err != nil {
		u.err = fmt.Errorf("storing image %s: %w", u.manifest.Name, err)
	}
	return n, u.err
}

func (u *Upload) check(p []byte) error {
	for len(p) > 0 {
		if u.frame == len(u.manifest.Frames) {
			return fmt.Errorf("data goes on after the %d bytes that the manifest names: %w", u.manifest.DataLength(), ErrCorrupt)
		}
		f := &u.manifest.Frames[u.frame]
		n := min(int64(len(p)), f.DataLength-u.got)
		u.sum.Write(p[:n])
		u.got += n
		p = p[n:]
		if u.got < f.DataLength {
			continue
		}
		if sum := Digest(u.sum.Sum(nil)); sum != f.SHA256 {
			return fmt.Errorf("frame %d at byte %d of the data has sha256 %s, want %s: %w", u.frame, f.DataOffset, sum, f.SHA256, ErrCorrupt)
		}
		u.sum.Reset()
		u.got = 0
		u.frame++
		u.skipZeros()
	}
	return nil
}

// Commit makes the image appear in the store, once every byte of it has arrived. After any error nothing is stored.
func (u *Upload) Commit() error {
	defer u.Abort()
	if u.err != nil {
		return u.err
	}
	name := u.manifest.Name
	if u.frame < len(u.manifest.Frames) {
		f := &u.manifest.Frames[u.frame]
		u.err = fmt.Errorf("storing image %s: data ends at byte %d, want %d: %w", name, f.DataOffset+u.got, u.manifest.DataLength(), ErrCorrupt)
		return u.err
	}
	if err := errors.Join(u.file.Sync(), syncDir(u.dir)); err != nil {
		u.err = fmt.Errorf("storing image %s: %w", name, err)
		return u.err
	}
	if u.replace {
		if err := u.store.Remove(name); err != nil && !errors.Is(err, ErrNotFound) {
			u.err = err
			return u.err
		}
	}
	// rename(2) onto a folder that is not empty fails, which makes the second of two uploads of one name lose.
	err := os.Rename(u.dir, filepath.Join(u.store.dir, name))
	if errors.Is(err, fs.ErrExist) {
		err = ErrExists
	}
	if err == nil {
		err = syncDir(u.store.dir)
	}
	if err != nil {
		u.err = fmt.Errorf("storing image %s: %w", name, err)
		return u.err
	}
	u.err = fmt.Errorf("storing image %s: the upload is over", name)
	return nil
}

// Abort ends the upload and removes what was received, unless it was committed.
func (u *Upload) Abort() {
	u.once.Do(func() {
		// What cannot be removed now is cleared when the store is opened next.
		_ = u.file.Close()
		_ = os.RemoveAll(u.dir)
		if u.err == nil {
			u.err = fmt.Errorf("storing image %s: the upload was aborted", u.manifest.Name)
		}
	})
}
