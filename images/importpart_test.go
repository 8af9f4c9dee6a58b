package images

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// TestImportGoesOn interrupts an import after each of its frames: the next one ends with the same image as one that nothing stopped.
func TestImportGoesOn(t *testing.T) {
	disk := testDisk(5)
	whole := importedFiles(t, disk, filepath.Join(t.TempDir(), "whole"))
	out := filepath.Join(t.TempDir(), "image")
	for stop := int64(4 * mib); stop < int64(len(disk)); stop += 4 * mib {
		ctx, cancel := context.WithCancel(t.Context())
		_, err := Import(ctx, bytes.NewReader(disk), ImportOptions{Name: "d", Out: out, Created: time.Unix(0, 0), Progress: func(_, done int64) {
			if done >= stop {
				cancel()
			}
		}})
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("stopped at %d: %v", stop, err)
		}
		if frames, err := readJournal(filepath.Join(filepath.Dir(out), ".import-image", journalFile)); err != nil || len(frames) == 0 {
			t.Fatalf("stopped at %d: %d frames are kept, %v", stop, len(frames), err)
		}
	}
	if got := importedFiles(t, disk, out); got != whole {
		t.Error("the image differs from one that nothing stopped")
	}
	if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) != 1 {
		t.Errorf("%d things are there, %v; want the image only", len(left), err)
	}
}

func importedFiles(t *testing.T, disk []byte, out string) string {
	t.Helper()
	if _, err := Import(t.Context(), bytes.NewReader(disk), ImportOptions{Name: "d", Out: out, Created: time.Unix(0, 0)}); err != nil {
		t.Fatal(err)
	}
	var all strings.Builder
	for _, file := range []string{ManifestFile, DataFile} {
		data, err := os.ReadFile(filepath.Join(out, file))
		if err != nil {
			t.Fatal(err)
		}
		all.Write(data)
	}
	return all.String()
}

// TestImportUsesWhatIsKept leaves frames that another compressor made, so that it shows which of them are used.
func TestImportUsesWhatIsKept(t *testing.T) {
	disk := testDisk(5)[:8*mib]
	encoder, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	var stored []byte
	var frames []Frame
	for at := int64(0); at < 8*mib; at += 4 * mib {
		packed := encoder.EncodeAll(disk[at:at+4*mib], nil)
		frames = append(frames, Frame{Offset: at, Length: 4 * mib, DataOffset: int64(len(stored)), DataLength: int64(len(packed)), SHA256: sha256.Sum256(packed), RawSHA256: sha256.Sum256(disk[at : at+4*mib])})
		stored = append(stored, packed...)
	}
	for name, tc := range map[string]struct {
		spoil func(data []byte, frames []Frame) []Frame
		want  int // of two
	}{
		"all":             {func(_ []byte, f []Frame) []Frame { return f }, 2},
		"bytes flipped":   {func(data []byte, f []Frame) []Frame { data[100] ^= 1; return f }, 1},
		"another disk":    {func(_ []byte, f []Frame) []Frame { f[0].RawSHA256[0] ^= 1; return f }, 1},
		"past the end":    {func(_ []byte, f []Frame) []Frame { f[1].DataOffset = 1 << 40; return f }, 1},
		"negative":        {func(_ []byte, f []Frame) []Frame { f[0].DataOffset, f[1].DataLength = -1, -1; return f }, 0},
		"huge":            {func(_ []byte, f []Frame) []Frame { f[1].DataLength = 1 << 40; return f }, 1},
		"no journal":      {func([]byte, []Frame) []Frame { return nil }, 0},
		"another's place": {func(_ []byte, f []Frame) []Frame { f[0].DataOffset = f[1].DataOffset; return f }, 1},
	} {
		t.Run(name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "image")
			dir := filepath.Join(filepath.Dir(out), partPrefix+"image")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			data := bytes.Clone(stored)
			var journal bytes.Buffer
			for _, f := range tc.spoil(data, append([]Frame(nil), frames...)) {
				line, err := json.Marshal(&f)
				if err != nil {
					t.Fatal(err)
				}
				journal.Write(append(line, '\n'))
			}
			journal.WriteString(`{"offset": 0, "len`)
			for file, content := range map[string][]byte{DataFile: data, journalFile: journal.Bytes(), "spool-1": nil} {
				if err := os.WriteFile(filepath.Join(dir, file), content, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			m, err := Import(t.Context(), bytes.NewReader(disk), ImportOptions{Name: "d", Out: out})
			if err != nil {
				t.Fatal(err)
			}
			used := 0
			for i := range m.Frames {
				if m.Frames[i].SHA256 == frames[i].SHA256 {
					used++
				}
			}
			if used != tc.want {
				t.Errorf("%d frames were used, want %d", used, tc.want)
			}
			device := newFakeDevice(len(disk))
			got, err := os.ReadFile(filepath.Join(out, DataFile))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Write(t.Context(), WriteOptions{Manifest: m, Source: &memorySource{data: got}, Device: device}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(device.disk, disk) {
				t.Error("the disk differs")
			}
		})
	}
}

// TestOneImportAtATime refuses a second one into the same folder.
func TestOneImportAtATime(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image")
	part, err := openPart(filepath.Join(filepath.Dir(out), partPrefix+"image"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Import(t.Context(), bytes.NewReader(make([]byte, 512)), ImportOptions{Name: "d", Out: out}); err == nil || !strings.Contains(err.Error(), "another import") {
		t.Errorf("error = %v, want another import named", err)
	}
	if err := part.close(true, false); err != nil {
		t.Fatal(err)
	}
}
