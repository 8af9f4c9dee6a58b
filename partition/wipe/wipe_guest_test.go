//go:build guest

package wipe

import (
	"bytes"
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"bloomery/internal/run"
	"bloomery/lab/guest"
	"bloomery/partition"
)

// On QEMU's NVMe disks, which can be formatted and not sanitized, and on one of 4096-byte sectors: a pattern, then the wipe, and no piece of it is
// found again. Every fourth chunk stands for all of them, since the machine is slow; TestWipeOfLoopDevice looks at every byte.
func TestGuestWipe(t *testing.T) {
	for _, c := range []struct {
		kind      guest.Kind
		transport string
		level     Level
		method    Method
	}{
		{guest.NVMe, "nvme", Erase, MethodFormatErase},
		{guest.Sector4K, "sas", Erase, MethodOverwrite},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			disk := guest.Take(t, c.kind, 1)[0]
			fillDisk(t, disk.Path, disk.SizeBytes)
			start := time.Now()
			result, err := Wiper{Runner: run.Exec{}}.Wipe(t.Context(), Target{Path: disk.Path, SizeBytes: disk.SizeBytes, Transport: c.transport}, c.level, nil)
			if err != nil {
				t.Fatalf("%v (%+v)", err, result)
			}
			t.Logf("%d MiB in %.1f s: %+v", disk.SizeBytes/mebibyte, time.Since(start).Seconds(), result)
			if result.Method != c.method {
				t.Errorf("wiped by %s, want %s", result.Method, c.method)
			}
			scanDisk(t, disk.Path, disk.SizeBytes)
			if _, err := partition.PartitionInfo(disk.Path, 1); !errors.Is(err, partition.ErrTable) {
				t.Errorf("the table: %v, want ErrTable", err)
			}
		})
	}
}

func fillDisk(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := bytes.Repeat([]byte(secret), 4*mebibyte/len(secret))
	for off := int64(0); off < size; off += 4 * int64(len(chunk)) {
		if _, err := f.WriteAt(chunk[:min(int64(len(chunk)), size-off)], off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func scanDisk(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	chunk := make([]byte, 4*mebibyte)
	for off := int64(0); off < size; off += 4 * int64(len(chunk)) {
		n := min(int64(len(chunk)), size-off)
		if _, err := io.ReadFull(io.NewSectionReader(f, off, n), chunk[:n]); err != nil {
			t.Fatal(err)
		}
		gone(t, chunk[:n])
	}
}
