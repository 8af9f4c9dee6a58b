package images

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
)

// MaxMetaSize is the largest meta file that is read, in bytes.
const MaxMetaSize = 64 << 10

// Meta is what a recipe knows of its file and the bytes do not say: the <out>.meta.json beside it.
type Meta struct {
	// Kind is what the file makes: KindDisk, also when empty, or KindRootfs, of a tar archive.
	Kind string `json:"kind,omitempty"`
	OS   OS     `json:"os"`
	Boot Boot   `json:"boot"`
}

// DecodeMeta reads a meta file strictly. Its parts go into ImportOptions.
func DecodeMeta(data []byte) (Meta, error) {
	if len(data) > MaxMetaSize {
		return Meta{}, fmt.Errorf("decoding image meta file: %d bytes are more than the limit of %d", len(data), MaxMetaSize)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var meta Meta
	if err := decoder.Decode(&meta); err != nil {
		return Meta{}, fmt.Errorf("decoding image meta file: %w", err)
	}
	if _, err := decoder.Token(); err != io.EOF {
		return Meta{}, fmt.Errorf("decoding image meta file: more bytes follow")
	}
	if meta.Kind != "" && meta.Kind != KindDisk && meta.Kind != KindRootfs {
		return Meta{}, fmt.Errorf("decoding image meta file: %w", fieldErrorf("kind", "%.64q, want %q or %q", meta.Kind, KindDisk, KindRootfs))
	}
	if err := meta.OS.validate(); err != nil {
		return Meta{}, fmt.Errorf("decoding image meta file: %w", err)
	}
	if err := meta.Boot.validate(); err != nil {
		return Meta{}, fmt.Errorf("decoding image meta file: %w", err)
	}
	return meta, nil
}
