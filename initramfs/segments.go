package initramfs

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// compressionFormat is part of the cache's key: raise it when compress makes other bytes of the same input.
const compressionFormat = "zstd-best-8M-1"

// writeBase writes BaseFile: the agent's segment first, so that a truncated image still starts an agent that can say so,
// then the much larger system segment.
func writeBase(ctx context.Context, o Options, log *slog.Logger, agent, system *tree) ([]Segment, error) {
	var parts [][]byte
	var segments []Segment
	for _, part := range []struct {
		name string
		tree *tree
	}{{"agent", agent}, {"system", system}} {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("compress %s segment: %w", part.name, err)
		}
		data, segment, err := compressedSegment(o, log, part.name, part.tree)
		if err != nil {
			return nil, fmt.Errorf("make %s segment: %w", part.name, err)
		}
		parts, segments = append(parts, data), append(segments, segment)
	}
	err := writeAtomic(filepath.Join(o.Out, BaseFile), func(w io.Writer) error {
		_, err := w.Write(bytes.Join(parts, nil))
		return err
	})
	return segments, err
}

// compressedSegment returns t as a padded zstd frame, from the cache in o.Out when the same archive was compressed before.
func compressedSegment(o Options, log *slog.Logger, name string, t *tree) ([]byte, Segment, error) {
	var raw bytes.Buffer
	if err := writeCPIO(&raw, t, o.SourceDateEpoch); err != nil {
		return nil, Segment{}, err
	}
	sum := sha256.Sum256(raw.Bytes())
	key := compressionFormat + " " + hex.EncodeToString(sum[:])
	cache := filepath.Join(o.Out, "."+name+".cpio.zst")
	segment := Segment{Name: name, RawBytes: int64(raw.Len())}

	data, err := readCache(cache, key)
	if err != nil {
		start := time.Now()
		var compressed bytes.Buffer
		if err := compress(&compressed, &raw); err != nil {
			return nil, Segment{}, err
		}
		data = compressed.Bytes()
		if err := writeCache(cache, key, data); err != nil {
			return nil, Segment{}, err
		}
		log.Info("compressed a segment of the agent image", "segment", name, "raw_bytes", segment.RawBytes, "bytes", len(data), "seconds", time.Since(start).Seconds())
	}
	sum = sha256.Sum256(data)
	segment.Bytes, segment.SHA256 = int64(len(data)), hex.EncodeToString(sum[:])
	return data, segment, nil
}

// readCache returns the data stored under key; the key file also holds the data's checksum, for a cache that was
// damaged must not end up in an image.
func readCache(file, key string) ([]byte, error) {
	want, err := os.ReadFile(file + ".key")
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if string(want) != cacheKey(key, data) {
		return nil, fmt.Errorf("%s was made of something else", file)
	}
	return data, nil
}

func writeCache(file, key string, data []byte) error {
	if err := writeAtomic(file, func(w io.Writer) error { _, err := w.Write(data); return err }); err != nil {
		return err
	}
	return writeAtomic(file+".key", func(w io.Writer) error {
		_, err := io.WriteString(w, cacheKey(key, data))
		return err
	})
}

func cacheKey(key string, data []byte) string {
	sum := sha256.Sum256(data)
	return key + " " + hex.EncodeToString(sum[:]) + "\n"
}

// allFiles describes the files of the trees, which share no path but directories.
func allFiles(trees ...*tree) ([]File, error) {
	whole := newTree()
	for _, t := range trees {
		for _, e := range t.sorted() {
			if err := whole.put(e); err != nil {
				return nil, err
			}
		}
	}
	return whole.files()
}

func readManifest(file string) (*Manifest, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read manifest of agent image: %w", err)
	}
	var m Manifest
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("read manifest %s: %w", file, err)
	}
	return &m, nil
}

// checkBase refuses a base whose kernel or archive is not what its manifest says: half copied, or of another build.
func checkBase(m *Manifest, kernel, archive []byte) error {
	if sum := sha256.Sum256(kernel); hex.EncodeToString(sum[:]) != m.Kernel.SHA256 {
		return fmt.Errorf("%s does not match %s (%d bytes, want %d): build the image again", KernelFile, ManifestFile, len(kernel), m.Kernel.Bytes)
	}
	offset := int64(0)
	for _, s := range m.Segments {
		end := offset + s.Bytes
		if s.Bytes < 0 || end > int64(len(archive)) {
			return fmt.Errorf("%s is cut short in its %s segment: build the image again", BaseFile, s.Name)
		}
		if sum := sha256.Sum256(archive[offset:end]); !strings.EqualFold(hex.EncodeToString(sum[:]), s.SHA256) {
			return fmt.Errorf("%s segment of %s does not match %s: build the image again", s.Name, BaseFile, ManifestFile)
		}
		offset = end
	}
	if offset != int64(len(archive)) {
		return fmt.Errorf("%s has %d bytes that %s does not know: build the image again", BaseFile, int64(len(archive))-offset, ManifestFile)
	}
	return nil
}
