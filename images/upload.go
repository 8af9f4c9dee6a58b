package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// takeOverAfter is for how long an upload must have stood still before another one of the same image goes on in its place: the connection of a
// client that comes again may not be known to be dead yet.
const takeOverAfter = 3 * time.Second

var errTakenOver = errors.New("another upload of this image has gone on in its place")

// Upload receives the data of one image in order. It checks each frame as it arrives, and the image exists only after Commit. What an upload
// that was interrupted has received is kept for the next one of the very same image, which goes on from there.
// It is for one goroutine; Abort may be called at any time, also after Commit, which makes it fit for defer.
type Upload struct {
	store    *Store
	manifest *Manifest
	// replace lets Commit remove what has the image's name.
	replace bool

	mu   sync.Mutex
	dir  string
	file *os.File
	// frame is the index of the data frame that is being received, and got its bytes so far.
	frame int
	got   int64
	sum   hash.Hash
	moved time.Time
	err   error
	over  bool
}

// Begin starts storing an image under the name that its manifest has, which must be name. The signature is verified first; what an
// interrupted upload has left of the same image is verified again, and Offset says where its data goes on.
// An image that is already there is ErrExists, one that is just being received ErrUploading, one that the disk has no room for ErrNoSpace.
func (s *Store) Begin(ctx context.Context, name string, manifest, signature []byte) (*Upload, error) {
	return s.begin(ctx, name, manifest, signature, false)
}

// BeginReplacing is Begin where another image of that name, or a spoilt one, may be there: Commit puts the new one into its place.
func (s *Store) BeginReplacing(ctx context.Context, name string, manifest, signature []byte) (*Upload, error) {
	return s.begin(ctx, name, manifest, signature, true)
}

func (s *Store) begin(ctx context.Context, name string, manifest, signature []byte, replace bool) (*Upload, error) {
	m, err := s.manifest(manifest, signature)
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
	u := &Upload{store: s, manifest: m, replace: replace, sum: sha256.New(), moved: time.Now()}
	if err := s.register(u); err != nil {
		return nil, fmt.Errorf("storing image %s: %w", name, err)
	}
	if err := u.open(ctx, manifest, signature); err != nil {
		if ctx.Err() == nil {
			u.fail(err)
		}
		return nil, errors.Join(fmt.Errorf("storing image %s: %w", name, err), u.close())
	}
	return u, nil
}

// register makes an upload the only one of its image, in the place of one that stands still.
func (s *Store) register(u *Upload) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	digest := u.manifest.SHA256()
	if old := s.uploads[digest]; old != nil && !old.giveWay() {
		return ErrUploading
	}
	s.uploads[digest] = u
	return nil
}

// giveWay ends an upload that stands still and leaves what it has received to another.
func (u *Upload) giveWay() bool {
	if !u.mu.TryLock() {
		return false // it is being written to
	}
	defer u.mu.Unlock()
	if u.over {
		return true
	}
	if time.Since(u.moved) < takeOverAfter {
		return false
	}
	u.over = true
	u.err = fmt.Errorf("storing image %s: %w", u.manifest.Name, errTakenOver)
	if u.file != nil {
		_ = u.file.Close() // what it holds is verified by the other
	}
	return true
}

// open makes the upload's folder, or goes on in the one that is there.
func (u *Upload) open(ctx context.Context, manifest, signature []byte) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return u.err
	}
	u.dir = filepath.Join(u.store.dir, uploadPrefix+u.manifest.SHA256().String())
	if there, err := os.ReadFile(filepath.Join(u.dir, ManifestFile)); err != nil || !bytes.Equal(there, manifest) {
		if err := os.RemoveAll(u.dir); err != nil {
			return err
		}
		if err := os.Mkdir(u.dir, 0o700); err != nil {
			return err
		}
		if err := writeNewFile(filepath.Join(u.dir, ManifestFile), manifest, 0o600); err != nil {
			return err
		}
	}
	if err := os.Remove(filepath.Join(u.dir, SignatureFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := writeNewFile(filepath.Join(u.dir, SignatureFile), signature, 0o600); err != nil {
		return err
	}
	var err error
	if u.file, err = os.OpenFile(filepath.Join(u.dir, DataFile), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := u.resume(ctx); err != nil {
		return err
	}
	u.moved = time.Now()
	return u.store.roomFor(u.manifest.DataLength() - u.offset())
}

// resume verifies the frames that are there and cuts off what follows the last sound one.
func (u *Upload) resume(ctx context.Context) error {
	u.skipZeros()
	var stored []byte
	for u.frame < len(u.manifest.Frames) {
		if err := ctx.Err(); err != nil {
			return err
		}
		f := &u.manifest.Frames[u.frame]
		stored = slices.Grow(stored[:0], int(f.DataLength))[:f.DataLength]
		if _, err := io.ReadFull(u.file, stored); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		} else if err != nil {
			return fmt.Errorf("reading what was received before: %w", err)
		}
		if sha256.Sum256(stored) != f.SHA256 {
			break // a machine that lost power may have kept the length and not the bytes
		}
		u.frame++
		u.skipZeros()
	}
	return u.cut(u.offset())
}

func (u *Upload) cut(offset int64) error {
	if err := u.file.Truncate(offset); err != nil {
		return err
	}
	_, err := u.file.Seek(offset, io.SeekStart)
	return err
}

// offset is how much of the data was received.
func (u *Upload) offset() int64 {
	if u.frame == len(u.manifest.Frames) {
		return u.manifest.DataLength()
	}
	return u.manifest.Frames[u.frame].DataOffset + u.got
}

// Offset is where in the image's data the next Write belongs.
func (u *Upload) Offset() int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.offset()
}

// Restart forgets what was received, for a client that begins at the beginning.
func (u *Upload) Restart() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err != nil {
		return u.err
	}
	u.frame, u.got = 0, 0
	u.sum.Reset()
	u.skipZeros()
	if err := u.cut(0); err != nil {
		u.err = fmt.Errorf("storing image %s: %w", u.manifest.Name, err)
	}
	return u.err
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
	u.mu.Lock()
	defer u.mu.Unlock()
	u.moved = time.Now()
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
	err := u.commit()
	return errors.Join(err, u.close())
}

func (u *Upload) commit() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.moved = time.Now()
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

// Abort ends the upload. What it has received is kept, unless it was wrong or committed.
func (u *Upload) Abort() {
	// What cannot be removed now is cleared by Sweep.
	_ = u.close()
}

// Discard ends the upload and removes what was received.
func (u *Upload) Discard() {
	u.fail(fmt.Errorf("storing image %s: the upload was given up", u.manifest.Name))
	u.Abort()
}

func (u *Upload) fail(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.err == nil {
		u.err = err
	}
}

// close ends the upload once. Its folder goes when there is no use in it, unless another upload has it.
func (u *Upload) close() error {
	err := u.end()
	u.store.mu.Lock()
	defer u.store.mu.Unlock()
	if u.store.uploads[u.manifest.SHA256()] == u {
		delete(u.store.uploads, u.manifest.SHA256())
	}
	return err
}

func (u *Upload) end() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return nil
	}
	u.over = true
	if u.file != nil {
		_ = u.file.Close() // what it holds is verified by whoever goes on
	}
	useless := u.err != nil || u.offset() == 0
	if u.err == nil {
		u.err = fmt.Errorf("storing image %s: the upload was aborted", u.manifest.Name)
	}
	if u.dir == "" || !useless {
		return nil
	}
	return os.RemoveAll(u.dir) // gone already after Commit
}
