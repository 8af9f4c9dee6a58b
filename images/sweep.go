package images

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
)

// keepUpload is for how long what an interrupted upload received is kept for the next one.
const keepUpload = 24 * time.Hour

// Sweep removes what interrupted removals left, and uploads that nobody went on with for a day. It returns the names of the folders.
func (s *Store) Sweep(now time.Time) ([]string, error) {
	entries, err := s.readDir()
	if err != nil {
		return nil, err
	}
	var swept []string
	for _, entry := range entries {
		gone, err := s.sweep(entry.Name(), now)
		if err != nil {
			return swept, fmt.Errorf("clearing %s: %w", entry.Name(), err)
		}
		if gone {
			swept = append(swept, entry.Name())
		}
	}
	return swept, nil
}

func (s *Store) sweep(name string, now time.Time) (bool, error) {
	s.mu.Lock() // no upload may begin in a folder that goes
	defer s.mu.Unlock()
	if !strings.HasPrefix(name, removePrefix) && !s.abandoned(name, now) {
		return false, nil
	}
	return true, s.root.RemoveAll(name)
}

// abandoned tells an upload's folder that is of no use.
func (s *Store) abandoned(name string, now time.Time) bool {
	text, ok := strings.CutPrefix(name, uploadPrefix)
	if !ok {
		return false
	}
	var digest Digest
	if err := digest.UnmarshalText([]byte(text)); err != nil || text != hex.EncodeToString(digest[:]) {
		return true
	}
	if s.uploads[digest] != nil {
		return false
	}
	info, err := s.root.Stat(filepath.Join(name, DataFile))
	return errors.Is(err, fs.ErrNotExist) || err == nil && now.Sub(info.ModTime()) > keepUpload
}

// Received is how much of the data of the image with this manifest an interrupted upload has left, up to the end of a frame; 0 when there is none.
// It is verified when the upload goes on.
func (s *Store) Received(digest Digest) (int64, error) {
	dir := uploadPrefix + digest.String()
	info, err := s.root.Stat(filepath.Join(dir, DataFile))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("looking for an interrupted upload: %w", err)
	}
	text, err := s.root.ReadFile(filepath.Join(dir, ManifestFile))
	if err != nil {
		return 0, fmt.Errorf("looking for an interrupted upload: %w", err)
	}
	m, err := DecodeManifest(text)
	if err != nil || m.SHA256() != digest {
		return 0, nil // it was cut off itself: the upload begins anew
	}
	var received int64
	for i := range m.Frames {
		if end := m.Frames[i].DataOffset + m.Frames[i].DataLength; !m.Frames[i].Zero && end <= info.Size() {
			received = end
		}
	}
	return received, nil
}
