package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"sync/atomic"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"bloomery/images"
)

// writeOurs does all that an installing machine does with an image.
func writeOurs(ctx context.Context, t task) error {
	key, err := images.LoadPublicKey(t.Key)
	if err != nil {
		return err
	}
	source := source(t)
	manifest, signature, err := source.FetchManifest(ctx, t.Name)
	if err != nil {
		return err
	}
	m, err := images.VerifyManifest(manifest, signature, key)
	if err != nil {
		return err
	}
	disk, err := images.OpenDisk(t.Out)
	if err != nil {
		return err
	}
	_, err = images.Write(ctx, images.WriteOptions{Manifest: m, Source: source, Device: disk})
	return errors.Join(err, disk.Close())
}

func source(t task) *images.HTTPSource {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 16 // as the agent has it
	return &images.HTTPSource{BaseURLs: []string{t.URL}, Client: &http.Client{Transport: transport}}
}

func importOurs(ctx context.Context, t task) error {
	file, err := os.Open(t.File)
	if err == nil {
		_, err = images.Import(ctx, file, images.ImportOptions{Name: "bench", Out: t.Out})
		err = errors.Join(err, file.Close())
	}
	return err
}

// writeGo is what a Go program does without much thought: one stream from HTTP through zstd to the disk, in blocks of 4 MiB past the cache.
func writeGo(ctx context.Context, t task) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, t.URL, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return errors.New(response.Status)
	}
	decoder, err := zstd.NewReader(response.Body)
	if err != nil {
		return err
	}
	defer decoder.Close()
	disk, err := os.OpenFile(t.Out, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	block, err := unix.Mmap(-1, 0, images.FrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return errors.Join(err, disk.Close())
	}
	for err == nil {
		var n int
		n, err = io.ReadFull(decoder, block)
		if n > 0 {
			if _, failed := disk.Write(block[:n]); failed != nil {
				err = failed
			}
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = disk.Sync()
	}
	return errors.Join(err, disk.Close())
}

// manifest reads an image's manifest, which was verified when the bench put it into its store.
func manifest(folder string) (*images.Manifest, error) {
	data, err := os.ReadFile(folder + "/" + images.ManifestFile)
	if err != nil {
		return nil, err
	}
	return images.DecodeManifest(data)
}

// eachFrame calls use for the frames of the image in t.File, in as many goroutines as start was called for.
func eachFrame(ctx context.Context, t task, workers int, start func() (use func(f *images.Frame) error, err error)) error {
	m, err := manifest(t.File)
	if err != nil {
		return err
	}
	var next atomic.Int64
	tasks, ctx := errgroup.WithContext(ctx)
	for range workers {
		use, err := start()
		if err != nil {
			return err
		}
		tasks.Go(func() error {
			for i := next.Add(1) - 1; int(i) < len(m.Frames); i = next.Add(1) - 1 {
				if err := errors.Join(ctx.Err(), use(&m.Frames[i])); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return tasks.Wait()
}

// The limits: each part of the work alone, done as well as the whole does it.

// onlyNetwork fetches all compressed bytes.
func onlyNetwork(ctx context.Context, t task) error {
	source := source(t)
	return eachFrame(ctx, t, 3, func() (func(*images.Frame) error, error) {
		buffer := make([]byte, images.FrameSize+1<<20)
		return func(f *images.Frame) error {
			if f.Zero {
				return nil
			}
			return source.ReadRange(ctx, t.Name, buffer[:f.DataLength], f.DataOffset)
		}, nil
	})
}

// onlyDecompress decompresses all frames of a file in the cache, without verifying them.
func onlyDecompress(ctx context.Context, t task) error {
	file, err := os.Open(t.File + "/" + images.DataFile)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	data, err := unix.Mmap(int(file.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return err
	}
	return eachFrame(ctx, t, runtime.NumCPU(), func() (func(*images.Frame) error, error) {
		decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.IgnoreChecksum(true))
		buffer := make([]byte, images.FrameSize+256<<10)
		return func(f *images.Frame) error {
			if f.Zero {
				return nil
			}
			_, err := decoder.DecodeAll(data[f.DataOffset:][:f.DataLength], buffer[:0])
			return err
		}, err
	})
}

// onlyDisk writes as many bytes as the image has in its data frames to where they belong, but not the image's, zeroes its runs of zeros, and syncs.
func onlyDisk(ctx context.Context, t task) error {
	disk, err := images.OpenDisk(t.Out)
	if err != nil {
		return err
	}
	block, err := unix.Mmap(-1, 0, images.FrameSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return errors.Join(err, disk.Close())
	}
	for i := 0; i < len(block); i += 8 {
		binary.LittleEndian.PutUint64(block[i:], uint64(i)*0x9e3779b97f4a7c15+1)
	}
	err = eachFrame(ctx, t, 4, func() (func(*images.Frame) error, error) {
		return func(f *images.Frame) error {
			if f.Zero {
				return disk.Zero(ctx, f.Offset, f.Length)
			}
			if _, err := disk.WriteAt(block[:f.Length], f.Offset); err != nil {
				return fmt.Errorf("writing: %w", err)
			}
			return nil
		}, nil
	})
	return errors.Join(err, disk.Sync(), disk.Close())
}
