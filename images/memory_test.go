package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// memoryLimit is the most that a process that writes an image may need, in bytes.
const memoryLimit = 64 << 20

// A write of incompressible frames over TLS stays within its memory, whatever their number: a process of its own writes 512 MiB and says what it took.
func TestWriteMemory(t *testing.T) {
	const frames = 128
	dir := t.TempDir()
	block := repeatedBlock()
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	stored := encoder.EncodeAll(block, nil)
	m := &Manifest{
		Format: Format, Name: "noise", Kind: KindDisk, Size: frames * FrameSize, SectorSize: SectorSize, FrameSize: FrameSize, Created: time.Unix(1700000000, 0).UTC(),
	}
	for i := range int64(frames) {
		m.Frames = append(m.Frames, Frame{
			Offset: i * FrameSize, Length: FrameSize, DataOffset: i * int64(len(stored)), DataLength: int64(len(stored)),
			SHA256: sha256.Sum256(stored), RawSHA256: sha256.Sum256(block),
		})
	}
	manifest, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	private, public := filepath.Join(dir, "key"), filepath.Join(dir, "key.pub")
	if _, err := GenerateKeyFiles(private, public); err != nil {
		t.Fatal(err)
	}
	key, err := LoadPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	signature, err := Sign(manifest, key)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var content = manifest
		switch filepath.Base(r.URL.Path) {
		case SignatureFile:
			content = signature
		case DataFile: // two copies of the frame, in which every range of the image's data is somewhere
			var first, last int64
			if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-%d", &first, &last); err != nil || first%int64(len(stored)) != 0 {
				http.Error(w, "range", http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, m.DataLength()))
			w.Header().Set("Content-Length", strconv.FormatInt(last+1-first, 10))
			w.WriteHeader(http.StatusPartialContent)
			for n := last + 1 - first; n > 0; n -= int64(len(stored)) {
				_, _ = w.Write(stored[:min(n, int64(len(stored)))])
			}
			return
		}
		_, _ = w.Write(content)
	}))
	defer server.Close()
	described, err := json.Marshal(child{URL: server.URL, Name: m.Name, Key: public})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), childVariable+"="+string(described))
	out, err := cmd.CombinedOutput()
	var peak int64
	if _, scan := fmt.Sscanf(string(out), "peak %d", &peak); err != nil || scan != nil {
		t.Fatalf("child: %v: %s", err, out)
	}
	t.Logf("%d MiB of disk with %.1f MiB of memory", m.Size>>20, float64(peak)/(1<<20))
	if peak > memoryLimit {
		t.Errorf("a write needed %.1f MiB of memory, want at most %d", float64(peak)/(1<<20), memoryLimit>>20)
	}
}

func repeatedBlock() []byte {
	block := make([]byte, FrameSize)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(block)
	return block
}

// repeatingDevice has the same block of a frame's size over and over, and keeps nothing.
type repeatingDevice struct{ block []byte }

func (d *repeatingDevice) ReadAt(p []byte, offset int64) (int, error) {
	return copy(p, d.block[offset%int64(len(d.block)):]), nil
}
func (d *repeatingDevice) WriteAt(p []byte, _ int64) (int, error)   { return len(p), nil }
func (d *repeatingDevice) Zero(context.Context, int64, int64) error { return nil }
func (d *repeatingDevice) Sync() error                              { return nil }
func (d *repeatingDevice) Size() int64                              { return 1 << 40 }
func (d *repeatingDevice) SectorSize() int                          { return SectorSize }

// insecure trusts the test's server, whose certificate nobody signed.
func insecure() *http.Client {
	return &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
}

// peakMemory is what this process had resident at most; with the race detector, what Go's runtime and the buffers have now.
func peakMemory(m *Manifest) (int64, error) {
	if raceDetector {
		samples := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
		metrics.Read(samples)
		return int64(samples[0].Value.Uint64()-samples[1].Value.Uint64()) + maxFetched*m.Frames[0].DataLength + maxDecoded*m.FrameSize, nil
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(status) {
		if rest, ok := strings.CutPrefix(string(line), "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no VmHWM in /proc/self/status")
}
