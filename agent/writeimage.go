package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"syscall"
	"time"

	pb "bloomery/api/bloomery/v1"
	"bloomery/images"
)

// writtenImage is the result of a write_image step.
type writtenImage struct {
	Image string `json:"image"`
	// Bytes of disk, and compressed bytes that came over the network.
	Bytes        int64   `json:"bytes"`
	FetchedBytes int64   `json:"fetched_bytes"`
	Seconds      float64 `json:"seconds"`
	// MBPerSecond is disk bytes in units of 10^6 per second.
	MBPerSecond    float64 `json:"mb_per_second"`
	ResumedAt      int     `json:"resumed_at_frame"`
	RestartReason  string  `json:"restart_reason,omitempty"`
	FramesReadBack int     `json:"frames_read_back"`
}

// writeImage streams an image onto the disk. The manifest must be signed by the rack's key and be the very one that was checked when the job
// was created; whether the image fits is decided before the first write.
func (s *stepRun) writeImage(ctx context.Context, spec *pb.WriteImageStep) (any, error) {
	disk, err := s.disk(ctx, spec.Disk)
	if err != nil {
		return nil, err
	}
	source := s.agent.source()
	manifest, err := s.manifest(ctx, source, spec)
	if err != nil {
		return nil, err
	}
	if disk.SizeBytes < uint64(manifest.Size) {
		return nil, failed(reasonDiskTooSmall, fmt.Errorf("image %s needs %d bytes, disk %q has %d", manifest.Name, manifest.Size, disk.Serial, disk.SizeBytes))
	}
	options := images.WriteOptions{Manifest: manifest, Source: source, Progress: func(p images.Progress) {
		s.progress(&pb.Progress{
			Percent: writePercent(p), DoneBytes: p.DiskDone, TotalBytes: p.DiskTotal, BytesPerSecond: p.BytesPerSecond, ResumeFrame: int64(p.Watermark.Frame),
			Message: fmt.Sprintf("writing %s", manifest.Name),
		})
	}}
	if frame := s.step.GetProgress().GetResumeFrame(); frame > 0 && frame <= math.MaxInt32 {
		options.Resume = images.Watermark{ManifestSHA256: spec.ManifestSha256, Frame: int(frame)}
	}
	// Fetching the manifest took a while: look again at what is about to be overwritten.
	again, err := s.disk(ctx, spec.Disk)
	if err != nil {
		return nil, err
	}
	result, err := s.agent.options.Installer.WriteImage(ctx, again.Path, options)
	if err != nil {
		return nil, writeError(err)
	}
	written := writtenImage{
		Image: manifest.Name, Bytes: result.DiskBytes, FetchedBytes: result.DataBytes, Seconds: result.Elapsed.Seconds(),
		ResumedAt: result.ResumedAt, RestartReason: result.RestartReason, FramesReadBack: result.FramesReadBack,
	}
	if result.Elapsed > time.Millisecond {
		written.MBPerSecond = float64(result.DiskBytes) / 1e6 / result.Elapsed.Seconds()
	}
	return written, nil
}

// writePercent goes by compressed bytes: they are what takes time to fetch, decompress and write, while gigabytes of zeros are done in one call
// and would make the bytes of disk leap. An image of zeros only has none, and goes by its bytes of disk.
func writePercent(p images.Progress) float64 {
	if p.DataTotal <= 0 {
		return 0
	}
	return 100 * float64(p.DataDone) / float64(p.DataTotal)
}

// imageStep is a step that puts an image onto the machine.
type imageStep interface {
	GetImage() string
	GetManifestSha256() string
	GetImageKeys() []string
}

func (s *stepRun) manifest(ctx context.Context, source images.Source, spec imageStep) (*images.Manifest, error) {
	data, signature, err := source.FetchManifest(ctx, spec.GetImage())
	if errors.Is(err, images.ErrNotFound) {
		return nil, failed(reasonImageNotFound, err)
	}
	if err != nil {
		return nil, failed(reasonImageFetch, err)
	}
	keys, err := s.imageKeys(spec)
	if err != nil {
		return nil, failed(reasonImageSignature, err)
	}
	manifest, err := images.VerifyManifest(data, signature, keys...)
	if errors.Is(err, images.ErrSignature) {
		return nil, failed(reasonImageSignature, fmt.Errorf("image %s: %w", spec.GetImage(), err))
	}
	if err != nil {
		return nil, failed(reasonImageCorrupt, fmt.Errorf("image %s: %w", spec.GetImage(), err))
	}
	if manifest.Name != spec.GetImage() || manifest.SHA256().String() != spec.GetManifestSha256() {
		return nil, failed(reasonImageManifest, fmt.Errorf("image %s: its manifest has SHA-256 %s, the job was made for %s", spec.GetImage(), manifest.SHA256(), spec.GetManifestSha256()))
	}
	return manifest, nil
}

// maxImageKeys bounds the keys that come with a step.
const maxImageKeys = 64

// imageKeys are the keys that the image of a step may be signed by: those that came with it, which the rack trusts now, or the one that this agent
// was built with when a coordinator sends none.
func (s *stepRun) imageKeys(spec imageStep) ([]images.PublicKey, error) {
	sent := spec.GetImageKeys()
	if len(sent) == 0 {
		return []images.PublicKey{s.agent.options.Config.ImageKey}, nil
	}
	if len(sent) > maxImageKeys {
		return nil, fmt.Errorf("image %s: the step brings %d keys, more than %d", spec.GetImage(), len(sent), maxImageKeys)
	}
	keys := make([]images.PublicKey, len(sent))
	for i, text := range sent {
		if err := keys[i].UnmarshalText([]byte(text)); err != nil {
			return nil, fmt.Errorf("image %s: key %d of the step: %w", spec.GetImage(), i, err)
		}
	}
	return keys, nil
}

// writeError sorts what can go wrong by whose fault it is: the image's, the network's or the disk's.
func writeError(err error) error {
	var path *fs.PathError
	switch {
	case errors.Is(err, images.ErrDeviceTooSmall):
		return failed(reasonDiskTooSmall, err)
	case errors.Is(err, images.ErrSectorSize):
		return failed(reasonDiskSector, err)
	case errors.Is(err, images.ErrCorrupt):
		return failed(reasonImageCorrupt, err)
	case errors.Is(err, images.ErrNotFound):
		return failed(reasonImageNotFound, err)
	case errors.Is(err, syscall.EBUSY):
		return failed(reasonDiskInUse, err)
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.EREMOTEIO):
		return faulty(reasonDiskWrite, err)
	case errors.As(err, &path):
		return failed(reasonDiskWrite, err)
	}
	return failed(reasonImageFetch, err)
}
