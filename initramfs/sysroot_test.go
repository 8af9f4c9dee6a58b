package initramfs

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestSysrootCached shows that a sysroot with the right stamp is used as it is, without running anything.
func TestSysrootCached(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sysroot")
	if err := os.MkdirAll(filepath.Join(dir, ".bloomery"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, stampFile), []byte(sysrootStamp()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", t.TempDir()) // no mmdebstrap here
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := Sysroot(ctx, dir, slog.New(slog.DiscardHandler)); err != nil {
		t.Errorf("current sysroot: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, stampFile), []byte("old\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Sysroot(ctx, dir, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("outdated sysroot was taken as current")
	}
	if _, err := os.Stat(filepath.Join(dir, stampFile)); err != nil {
		t.Errorf("a failed refresh removed the old sysroot: %v", err)
	}
}
