package initramfs

import (
	"context"
	"log/slog"
	"os"
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
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	t.Cleanup(cancel)
	out := filepath.Join("..", "out", "agent-image-test")
	probe := filepath.Join(t.TempDir(), "toolprobe")
	if err := goBuild(ctx, "", "./testdata/toolprobe", probe); err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	manifest, err := BuildBase(ctx, Options{Sysroot: sysroot, AgentBinary: probe, Out: filepath.Join(out, "base"), Log: log})
	if err != nil {
		t.Fatal(err)
	}
	result, err := Assemble(ctx, AssembleOptions{Base: filepath.Join(out, "base"), Config: []byte(`{"probe":true}`), Out: filepath.Join(out, "rack")})
	if err != nil {
		t.Fatal(err)
	}
	return manifest, result
}
