package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"bloomery/images"
)

// incompressibleSize is that of the Debian image.
const incompressibleSize = 2 << 30

// debian is the image that the recipe made.
func (b *bench) debian(ctx context.Context, key images.PrivateKey) (subject, error) {
	s := subject{name: "debian-12", raw: b.raw, zst: filepath.Join(b.dir, "debian-12.zst"), qemu: filepath.Join(b.dir, "debian-12.qcow2")}
	for _, t := range []task{{Do: "shell", Command: importPeer, File: s.raw, Out: s.zst}, {Do: "shell", Command: makeQcow2, File: s.raw, Out: s.qemu}} {
		if _, err := t.start(ctx); err != nil {
			return s, err
		}
	}
	var err error
	s.manifest, err = b.fill(b.image, key)
	return s, err
}

// incompressible is a disk of seeded bytes without a zero or a repetition in them.
func (b *bench) incompressible(ctx context.Context, key images.PrivateKey) (subject, error) {
	s := subject{name: "incompressible", raw: filepath.Join(b.dir, "noise.raw"), zst: filepath.Join(b.dir, "noise.zst")}
	s.qemu = s.raw
	if err := noise(s.raw, incompressibleSize); err != nil {
		return s, err
	}
	folder := filepath.Join(b.dir, "bench")
	for _, t := range []task{{Do: "shell", Command: importPeer, File: s.raw, Out: s.zst}, {Do: "import", File: s.raw, Out: folder}} {
		if _, err := t.start(ctx); err != nil {
			return s, err
		}
	}
	var err error
	if s.manifest, err = b.fill(folder, key); err != nil {
		return s, err
	}
	return s, os.RemoveAll(folder)
}

func noise(path string, size int64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	out, random := bufio.NewWriterSize(file, 1<<20), rand.New(rand.NewPCG(1, 2))
	var word [8]byte
	for range size / 8 {
		binary.LittleEndian.PutUint64(word[:], random.Uint64())
		if _, err := out.Write(word[:]); err != nil {
			return errors.Join(err, file.Close())
		}
	}
	return errors.Join(out.Flush(), file.Close())
}

// fill puts a copy of the image into the store, signed by key whether it was signed or not.
func (b *bench) fill(image string, key images.PrivateKey) (*images.Manifest, error) {
	m, err := manifest(image)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(image, images.ManifestFile))
	if err != nil {
		return nil, err
	}
	signature, err := images.Sign(data, key)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(b.dir, "store", m.Name)
	if err := os.CopyFS(folder, os.DirFS(image)); err != nil {
		return nil, fmt.Errorf("storing image %s: %w", m.Name, err)
	}
	return m, os.WriteFile(filepath.Join(folder, images.SignatureFile), signature, 0o600)
}
