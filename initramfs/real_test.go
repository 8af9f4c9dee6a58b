package initramfs

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// realSysroot is the sysroot that `bloomery agent-image build` keeps, or the one BLOOMERY_SYSROOT names.
func realSysroot(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("BLOOMERY_SYSROOT")
	if dir == "" {
		dir = filepath.Join("..", "out", "agent-sysroot")
	}
	if _, err := os.Stat(filepath.Join(dir, stampFile)); err != nil {
		t.Skipf("no sysroot of Debian packages (build the agent image once, or set BLOOMERY_SYSROOT): %v", err)
	}
	return dir
}

// probeImage builds the image of the real sysroot with toolprobe for the agent. It shares the compressed system segment
// with other builds under out/, so that only the first one is slow.
func probeImage(t *testing.T) (*Manifest, *Result) {
	t.Helper()
	sysroot := realSysroot(t)
	out := filepath.Join("..", "out", "agent-image-test")
	shareSegment(t, filepath.Join("..", "out", "agent-image"), filepath.Join(out, "base"))
	manifest := buildProbe(t, sysroot, filepath.Join(out, "base"))
	result, err := Assemble(t.Context(), AssembleOptions{Base: filepath.Join(out, "base"), Config: []byte(`{"probe":true}`), Out: filepath.Join(out, "rack")})
	if err != nil {
		t.Fatal(err)
	}
	return manifest, result
}

// buildProbe builds the image's base by the command: compressing it takes several times as long in a test binary with the race detector, and
// BuildBase's own tests have that.
func buildProbe(t *testing.T, sysroot, out string) *Manifest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	command := filepath.Join("..", "out", "agent-image-test", "bloomery")
	probe := filepath.Join(t.TempDir(), "toolprobe")
	for pkg, to := range map[string]string{"./testdata/toolprobe": probe, "bloomery/cmd/bloomery": command} {
		if err := goBuild(ctx, "", pkg, to); err != nil {
			t.Fatal(err)
		}
	}
	text, err := exec.CommandContext(ctx, command, "agent-image", "build", "--agent", probe, "--sysroot", sysroot, "--out", out).CombinedOutput()
	if err != nil {
		t.Fatalf("bloomery agent-image build: %v: %s", err, text)
	}
	manifest, err := readManifest(filepath.Join(out, ManifestFile))
	if err != nil {
		t.Fatal(err)
	}
	return manifest
}

// shareSegment takes the compressed system segment of the image that make has built; BuildBase looks at its checksum and its key.
func shareSegment(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".system.cpio.zst", ".system.cpio.zst.key"} {
		data, err := os.ReadFile(filepath.Join(from, name))
		if errors.Is(err, fs.ErrNotExist) {
			return
		}
		if err == nil {
			err = writeAtomic(filepath.Join(to, name), func(w io.Writer) error { _, err := w.Write(data); return err })
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
