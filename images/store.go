package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrNotFound says that no image of that name is there.
	ErrNotFound = errors.New("image not found")
	// ErrExists says that an image of that name is already stored.
	ErrExists = errors.New("image exists already")
	// ErrCorrupt says that stored or received bytes are not those the signed manifest names.
	ErrCorrupt = errors.New("image data is corrupt")
	// ErrUploading says that an image is just being received from elsewhere.
	ErrUploading = errors.New("another upload of this image is under way")
	// ErrNoSpace says that the store's disk has no room for an image.
	ErrNoSpace = errors.New("no space is left for the image")
)

// spareSpace is what an upload leaves free, in bytes: the coordinator's database lies on the same disk.
const spareSpace = 256 << 20

// Names of images cannot begin with a dot, so that these folders are never taken for one.
const (
	uploadPrefix = ".upload-"
	removePrefix = ".removed-"
)

// Store keeps images as folders of one folder. One process owns it; its methods may be called concurrently.
type Store struct {
	dir  string
	root *os.Root
	keys atomic.Pointer[storeKeys]

	mu sync.Mutex
	// uploads are those under way, by their manifests.
	uploads map[Digest]*Upload
}

// Entry is one stored image.
type Entry struct {
	Manifest *Manifest
	// ManifestBytes and Signature are the files as they were signed.
	ManifestBytes []byte
	Signature     []byte
}

// OpenStore opens the store in dir, making the folder if need be and clearing what an interrupted removal left, and an upload that nobody went on with.
// Only images signed by one of the keys are accepted or returned.
func OpenStore(dir string, keys ...PublicKey) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening image store: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("opening image store: %w", err)
	}
	s := &Store{dir: dir, root: root, uploads: map[Digest]*Upload{}}
	s.SetKeys(keys, nil)
	if _, err := s.Sweep(time.Now()); err != nil {
		return nil, errors.Join(fmt.Errorf("opening image store: %w", err), root.Close())
	}
	return s, nil
}

// Close releases the store's folder.
func (s *Store) Close() error { return s.root.Close() }

func (s *Store) readDir() ([]fs.DirEntry, error) { return fs.ReadDir(s.root.FS(), ".") }

// List returns the stored images in the order of their names. Folders that are no valid image are reported in the error,
// beside the images that are sound.
func (s *Store) List() ([]*Entry, error) {
	dirs, err := s.readDir()
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	var (
		images []*Entry
		bad    []error
	)
	for _, dir := range dirs {
		if strings.HasPrefix(dir.Name(), ".") || !dir.IsDir() {
			continue
		}
		image, err := s.Get(dir.Name())
		if errors.Is(err, ErrNotFound) {
			continue // removed since the folder was read
		}
		if err != nil {
			bad = append(bad, err)
			continue
		}
		images = append(images, image)
	}
	return images, errors.Join(bad...)
}

// Get reads an image's manifest and verifies its signature. It does not read the data: see Verify.
func (s *Store) Get(name string) (*Entry, error) {
	manifest, signature, err := s.readFiles(name)
	if err != nil {
		return nil, err
	}
	m, err := s.manifest(manifest, signature)
	if err != nil {
		return nil, fmt.Errorf("reading image %s: %w", name, err)
	}
	if m.Name != name {
		return nil, fmt.Errorf("reading image %s: its manifest is of %s: %w", name, m.Name, ErrCorrupt)
	}
	return &Entry{Manifest: m, ManifestBytes: manifest, Signature: signature}, nil
}

func (s *Store) readFiles(name string) (manifest, signature []byte, err error) {
	if err := ValidateName(name); err != nil {
		return nil, nil, err
	}
	if manifest, err = s.readFile(name, ManifestFile, MaxManifestSize); err != nil {
		return nil, nil, err
	}
	if signature, err = s.readFile(name, SignatureFile, MaxSignatureSize); err != nil {
		return nil, nil, err
	}
	return manifest, signature, nil
}

func (s *Store) readFile(name, file string, limit int64) ([]byte, error) {
	f, err := s.open(name, file)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading image %s: %w", name, err)
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("reading image %s: %s has more than %d bytes: %w", name, file, limit, ErrCorrupt)
	}
	return data, nil
}

func (s *Store) open(name, file string) (*os.File, error) {
	if err := ValidateName(name); err != nil {
		return nil, err
	}
	f, err := s.root.Open(filepath.Join(name, file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading image %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("reading image %s: %w", name, err)
	}
	return f, nil
}

// Remove deletes an image. Downloads that are under way go on to their end.
func (s *Store) Remove(name string) error {
	if err := ValidateName(name); err != nil {
		return err
	}
	// Renamed first, so that a crash never leaves half an image under its name.
	trash := removePrefix + name
	if err := s.root.RemoveAll(trash); err != nil {
		return fmt.Errorf("removing image %s: %w", name, err)
	}
	if err := s.root.Rename(name, trash); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing image %s: %w", name, ErrNotFound)
		}
		return fmt.Errorf("removing image %s: %w", name, err)
	}
	if err := errors.Join(syncDir(s.dir), s.root.RemoveAll(trash)); err != nil {
		return fmt.Errorf("removing image %s: %w", name, err)
	}
	return nil
}

// Verify reads a stored image again in full: the signature, the length of the data, and of every frame the sum of the stored
// bytes, their decompression, and the sum of the disk bytes.
func (s *Store) Verify(ctx context.Context, name string) (*Entry, error) {
	image, err := s.Get(name)
	if err != nil {
		return nil, err
	}
	data, err := s.open(name, DataFile)
	if err != nil {
		return nil, err
	}
	defer data.Close() // read only
	info, err := data.Stat()
	if err != nil {
		return nil, fmt.Errorf("verifying image %s: %w", name, err)
	}
	if want := image.Manifest.DataLength(); info.Size() != want {
		return nil, fmt.Errorf("verifying image %s: data has %d bytes, want %d: %w", name, info.Size(), want, ErrCorrupt)
	}
	decoder, err := newFrameDecoder(image.Manifest)
	if err != nil {
		return nil, fmt.Errorf("verifying image %s: %w", name, err)
	}
	defer decoder.close()
	var stored, raw []byte
	for i := range image.Manifest.Frames {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("verifying image %s: %w", name, err)
		}
		f := &image.Manifest.Frames[i]
		if f.Zero {
			continue
		}
		stored = slices.Grow(stored[:0], int(f.DataLength))[:f.DataLength]
		if _, err := io.ReadFull(data, stored); err != nil {
			return nil, fmt.Errorf("verifying image %s: reading frame %d: %w", name, i, err)
		}
		if raw, err = decoder.decode(i, stored, raw[:0]); err != nil {
			return nil, fmt.Errorf("verifying image %s: %w", name, err)
		}
		if sha256.Sum256(raw) != f.RawSHA256 {
			return nil, fmt.Errorf("verifying image %s: frame %d at byte %d of the disk is not what was imported: %w", name, i, f.Offset, ErrCorrupt)
		}
	}
	return image, nil
}

// has says whether name is stored with exactly this manifest.
func (s *Store) has(name string, manifest []byte) (exists, same bool, err error) {
	stored, _, err := s.readFiles(name)
	if errors.Is(err, ErrNotFound) {
		return false, false, nil
	}
	if err != nil {
		return true, false, err
	}
	return true, bytes.Equal(stored, manifest), nil
}

// roomFor is ErrNoSpace when the disk has no room for so many bytes.
func (s *Store) roomFor(size int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.dir, &fs); err != nil {
		return fmt.Errorf("looking for free space: %w", err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; size > free-spareSpace {
		return fmt.Errorf("it has %d bytes, and %d are free of which %d stay so: %w", size, free, spareSpace, ErrNoSpace)
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
