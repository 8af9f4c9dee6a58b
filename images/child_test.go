package images

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// childVariable holds, as JSON, what a process that a test started of this binary is to do.
const childVariable = "BLOOMERY_IMAGES_CHILD"

// child writes an image in a process of its own.
type child struct {
	URL, Name, Key string
	// Disk is where to; where it is empty, to a disk that keeps nothing.
	Disk string
	// StopAfter is after how many bytes the disk takes no more, and the process waits to be killed.
	StopAfter int64
}

func TestMain(m *testing.M) {
	described := os.Getenv(childVariable)
	if described == "" {
		os.Exit(m.Run())
	}
	var c child
	err := json.Unmarshal([]byte(described), &c)
	if err == nil {
		err = c.write()
	}
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

func (c child) write() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	source := &HTTPSource{BaseURLs: []string{c.URL}, Client: insecure()}
	manifest, signature, err := source.FetchManifest(ctx, c.Name)
	if err != nil {
		return err
	}
	key, err := LoadPublicKey(c.Key)
	if err != nil {
		return err
	}
	m, err := VerifyManifest(manifest, signature, key)
	if err != nil {
		return err
	}
	if c.Disk == "" {
		if _, err := Write(ctx, WriteOptions{Manifest: m, Source: source, Device: &repeatingDevice{repeatedBlock()}, ReadBack: ReadBackFull, Workers: maxWorkers}); err != nil {
			return err
		}
		peak, err := peakMemory(m)
		fmt.Println("peak", peak)
		return err
	}
	disk, err := OpenDisk(c.Disk)
	if err != nil {
		return err
	}
	defer disk.Close()
	_, err = Write(ctx, WriteOptions{Manifest: m, Source: source, Device: &stoppingDevice{Device: disk, left: c.StopAfter}, pace: quick(), Progress: func(p Progress) {
		fmt.Println("watermark", p.Watermark.Frame)
	}})
	return err
}

// stoppingDevice takes so many bytes and then none any more.
type stoppingDevice struct {
	Device
	left int64
}

func (d *stoppingDevice) WriteAt(p []byte, offset int64) (int, error) {
	d.take(int64(len(p)))
	return d.Device.WriteAt(p, offset)
}

func (d *stoppingDevice) Zero(ctx context.Context, offset, length int64) error {
	d.take(length)
	return d.Device.Zero(ctx, offset, length)
}

func (d *stoppingDevice) take(n int64) {
	if atomic.AddInt64(&d.left, -n) < 0 {
		fmt.Println("stopped")
		select {}
	}
}

// killAt kills a process that writes when so much of the image is written, and resumes in this one.
func killAt(t *testing.T, image *smallImage, percent int, path string) (found string, err error) {
	server := newFaultServer(t, image)
	if err := refill(path); err != nil {
		return "", err
	}
	described, err := json.Marshal(child{
		URL: "http://" + server.address, Name: image.m.Name, Key: image.keyFile, Disk: path, StopAfter: int64(len(image.disk)) * int64(percent) / 100,
	})
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+string(described))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	mark, err := untilStopped(out)
	err = errors.Join(err, cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	if err != nil {
		return "", err
	}
	disk, err := OpenDisk(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	got := make([]byte, len(image.disk))
	if _, err := disk.ReadAt(got, 0); err != nil {
		return "", err
	}
	if !allZero(got[:headSize]) {
		return "", errors.New("the disk has a partition table after the process was killed")
	}
	server.mu.Lock()
	server.ranges = nil
	server.mu.Unlock()
	result, err := Write(ctx, WriteOptions{
		Manifest: image.m, Source: server.source(20 * time.Second), Device: disk, ReadBack: ReadBackFull,
		Resume: Watermark{ManifestSHA256: image.m.SHA256().String(), Frame: mark},
	})
	if err != nil {
		return "", err
	}
	if _, err := disk.ReadAt(got, 0); err != nil {
		return "", err
	}
	if result.ResumedAt != mark || string(got) != string(image.disk) {
		return "", fmt.Errorf("resumed at frame %d, want %d: %s; disk as the image: %t", result.ResumedAt, mark, result.RestartReason, string(got) == string(image.disk))
	}
	server.mu.Lock()
	defer server.mu.Unlock()
	for _, r := range server.ranges {
		if from := dataFrom(image.m, mark); r[1] > dataFrom(image.m, headSize/minFrameSize) && r[0] < from {
			return "", fmt.Errorf("bytes %d-%d were fetched again, which lie below the watermark's %d", r[0], r[1], from)
		}
	}
	return fmt.Sprintf("no table; resumed at frame %d of %d, complete", mark, len(image.m.Frames)), nil
}

// dataFrom is where the data of the first stored frame from i on begins.
func dataFrom(m *Manifest, i int) int64 {
	for ; i < len(m.Frames); i++ {
		if !m.Frames[i].Zero {
			return m.Frames[i].DataOffset
		}
	}
	return m.DataLength()
}

// untilStopped reads what a child says until it takes no more bytes and has reported a watermark.
func untilStopped(out io.Reader) (mark int, err error) {
	lines := bufio.NewScanner(out)
	stopped := false
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "stopped":
			stopped = true
		case strings.HasPrefix(line, "error"):
			return 0, errors.New(line)
		default:
			if _, err := fmt.Sscanf(line, "watermark %d", &mark); err != nil {
				return 0, fmt.Errorf("child said %q: %w", line, err)
			}
		}
		if stopped && mark > 0 {
			return mark, nil
		}
	}
	return 0, errors.Join(errors.New("child ended before it was killed"), lines.Err())
}
