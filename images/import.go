package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"
)

const (
	// DefaultMaxImportSize is the most bytes of disk that Import accepts when ImportOptions.MaxSize is 0.
	DefaultMaxImportSize = 64 << 30
	defaultImportWorkers = 2
	maxImportWorkers     = 16
)

// ImportOptions say what Import makes of a disk file. Name and Out must be set.
type ImportOptions struct {
	Name string
	// Out is the folder to make, with the files of one image in it. It must not exist.
	Out  string
	OS   OS
	Boot Boot
	// Created is the manifest's time; time.Now when zero. A fixed one makes the same input give the same bytes.
	Created time.Time
	// Key signs the manifest when it is set. Without it there is no signature file yet: see Sign.
	Key *PrivateKey
	// MaxSize is the most bytes of disk to accept, and about the most that is kept in a temporary file beside Out; DefaultMaxImportSize when 0.
	MaxSize int64
	// Workers compress in parallel; 2 when 0.
	Workers int
	// Progress is called from one goroutine after each frame with the bytes read of the input and the bytes of disk stored so far.
	Progress func(in, disk int64)
}

// Import turns a disk file, raw or qcow2, plain or compressed as .zst, .gz, .xz or .bz2 (found by its first bytes), into an image in the
// folder options.Out. It streams with bounded memory; a qcow2 that is no file of its own is first copied to one beside the folder, since it
// is read here and there. The folder appears complete or not at all. What an import that was interrupted has compressed is kept beside it, and used by
// the next one where the input is the same.
func Import(ctx context.Context, r io.Reader, options ImportOptions) (*Manifest, error) {
	m, err := importTo(ctx, r, options, diskInput{})
	if err != nil {
		return nil, fmt.Errorf("importing image %.64s: %w", options.Name, err)
	}
	return m, nil
}

// input is what one kind of image is made of.
type input interface {
	kind() string
	// open gives the bytes that the frames hold, of which there may be limit. What it starts belongs to the group; folder takes its
	// temporary files.
	open(ctx context.Context, group *errgroup.Group, r io.Reader, folder string, limit int64) (*diskReader, error)
}

// diskInput is a disk file: its bytes are the disk's.
type diskInput struct{}

func (diskInput) kind() string { return KindDisk }

func (diskInput) open(ctx context.Context, _ *errgroup.Group, r io.Reader, folder string, limit int64) (*diskReader, error) {
	return openDisk(ctx, r, folder, limit)
}

func importTo(ctx context.Context, r io.Reader, options ImportOptions, from input) (m *Manifest, err error) {
	if err := ValidateName(options.Name); err != nil {
		return nil, err
	}
	if options.MaxSize == 0 {
		options.MaxSize = DefaultMaxImportSize
	}
	if options.MaxSize < 0 || options.MaxSize > MaxDiskSize {
		return nil, fieldErrorf("max_size", "%d is not between 1 and %d", options.MaxSize, int64(MaxDiskSize))
	}
	if options.Workers <= 0 {
		options.Workers = defaultImportWorkers
	}
	options.Workers = min(options.Workers, maxImportWorkers)
	if options.Created.IsZero() {
		options.Created = time.Now()
	}
	if _, err := os.Lstat(options.Out); err == nil {
		return nil, fmt.Errorf("%s: %w", options.Out, ErrExists)
	}
	parent := filepath.Dir(filepath.Clean(options.Out))
	part, err := openPart(filepath.Join(parent, partPrefix+filepath.Base(options.Out)))
	if err != nil {
		return nil, err
	}
	defer func() {
		err = errors.Join(err, part.close(err != nil, ctx.Err() != nil))
	}()
	m = &Manifest{
		Format: Format, Name: options.Name, Kind: from.kind(), SectorSize: SectorSize, FrameSize: FrameSize,
		Created: options.Created.UTC().Truncate(time.Second), OS: options.OS, Boot: options.Boot,
	}
	if err := writeData(ctx, r, part, m, options, from); err != nil {
		return nil, err
	}
	manifest, err := m.Encode()
	if err != nil {
		return nil, err
	}
	if err := writeNewFile(filepath.Join(part.dir, ManifestFile), manifest, 0o644); err != nil {
		return nil, err
	}
	if options.Key != nil {
		signature, err := Sign(manifest, *options.Key)
		if err != nil {
			return nil, err
		}
		if err := writeNewFile(filepath.Join(part.dir, SignatureFile), signature, 0o644); err != nil {
			return nil, err
		}
	}
	if err := os.Rename(part.dir, options.Out); err != nil {
		return nil, err
	}
	return m, syncDir(parent)
}

func writeData(ctx context.Context, r io.Reader, part *part, m *Manifest, options ImportOptions, from input) error {
	if err := part.open(); err != nil {
		return err
	}
	err := compressFrames(ctx, r, part, m, options, from)
	if err == nil {
		err = part.finish(m.DataLength())
	}
	return errors.Join(err, part.closeFiles())
}

// importFrame is a frame on its way through the compressor.
type importFrame struct {
	raw    []byte // empty for zeros
	offset int64
	length int64
	in     int64
	stored []byte
	// kept says that stored is what an interrupted import left, where frame.DataOffset says.
	kept  bool
	frame Frame
	done  chan struct{}
}

// compressFrames reads, compresses in parallel and writes in order: every frame enters both the workers' queue and the
// writer's, whose length bounds the memory.
func compressFrames(ctx context.Context, r io.Reader, part *part, m *Manifest, options ImportOptions, from input) error {
	group, ctx := errgroup.WithContext(ctx)
	work := make(chan *importFrame)
	ordered := make(chan *importFrame, options.Workers)

	group.Go(func() error {
		defer close(work)
		defer close(ordered)
		disk, err := from.open(ctx, group, r, part.dir, options.MaxSize)
		if err != nil {
			return err
		}
		defer disk.Close()
		// A rootfs is read from its beginning to its end: runs of zeros are no different to it.
		return readFrames(ctx, disk, work, ordered, options.MaxSize, from.kind() == KindDisk)
	})
	for range options.Workers {
		group.Go(func() error {
			encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
				zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithWindowSize(FrameSize))
			if err != nil {
				return fmt.Errorf("starting zstd: %w", err)
			}
			for f := range work {
				if f.frame, f.stored, f.kept = part.kept(f.offset, f.raw); !f.kept {
					f.stored = encoder.EncodeAll(f.raw, nil)
					f.frame.DataLength, f.frame.SHA256 = int64(len(f.stored)), sha256.Sum256(f.stored)
				}
				f.raw = nil
				close(f.done)
			}
			return encoder.Close()
		})
	}
	group.Go(func() error { return storeFrames(ctx, ordered, part, m, options.Progress) })
	return group.Wait()
}

func readFrames(ctx context.Context, disk *diskReader, work, ordered chan<- *importFrame, limit int64, zeroRuns bool) error {
	zeros := make([]byte, FrameSize)
	var buffer []byte
	for offset := int64(0); ; {
		if buffer == nil {
			buffer = make([]byte, FrameSize)
		}
		n, err := io.ReadFull(disk, buffer)
		ended := err == io.EOF || err == io.ErrUnexpectedEOF && disk.ended()
		if err != nil && !ended {
			return fmt.Errorf("reading %s input at its byte %d, byte %d of the disk: %w", disk.kind, disk.consumed(), offset+int64(n), err)
		}
		if offset+int64(n) > limit {
			return fmt.Errorf("reading %s input: the disk goes on at byte %d, the limit", disk.kind, limit)
		}
		if ended && n >= SectorSize && bytes.HasPrefix(buffer[n-SectorSize:n], []byte(vhdCookie)) {
			return refusedFormat("VHD")
		}
		if n%SectorSize != 0 {
			return fmt.Errorf("reading %s input: the disk has %d bytes: size not a multiple of %d", disk.kind, offset+int64(n), SectorSize)
		}
		if n > 0 {
			f := &importFrame{offset: offset, length: int64(n), in: disk.consumed(), done: make(chan struct{})}
			if zeroRuns && bytes.Equal(buffer[:n], zeros[:n]) {
				f.frame = Frame{Offset: offset, Length: int64(n), Zero: true}
				close(f.done)
			} else {
				f.raw, buffer = buffer[:n], nil
				select {
				case work <- f:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			select {
			case ordered <- f:
			case <-ctx.Done():
				return ctx.Err()
			}
			offset += int64(n)
		}
		if ended && offset == 0 {
			return fmt.Errorf("reading %s input: it is empty", disk.kind)
		}
		if ended {
			return nil
		}
	}
}

func storeFrames(ctx context.Context, ordered <-chan *importFrame, part *part, m *Manifest, progress func(in, disk int64)) error {
	var dataOffset int64
	for f := range ordered {
		select {
		case <-f.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		last := len(m.Frames) - 1
		switch {
		case f.frame.Zero && last >= 0 && m.Frames[last].Zero:
			m.Frames[last].Length += f.length
		case f.frame.Zero:
			m.Frames = append(m.Frames, f.frame)
		default:
			isThere := f.kept && f.frame.DataOffset == dataOffset
			f.frame.DataOffset = dataOffset
			if err := part.store(f.frame, f.stored, isThere); err != nil {
				return err
			}
			dataOffset += f.frame.DataLength
			m.Frames = append(m.Frames, f.frame)
		}
		m.Size = f.offset + f.length
		if progress != nil {
			progress(f.in, m.Size)
		}
	}
	return ctx.Err()
}
