package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"bloomery/images"
	"bloomery/internal/figures"
)

func TestFiguresAreOfMedians(t *testing.T) {
	b := &bench{runs: 3}
	runs := func(seconds ...float64) []usage {
		var all []usage
		for _, s := range seconds {
			all = append(all, usage{Seconds: s, CPU: 2 * s, Peak: 10 * s})
		}
		return all
	}
	got := b.judge(subject{name: "x", qemu: "x.raw", manifest: &images.Manifest{Size: 2e9}}, map[string][]usage{
		"ours": runs(2, 9, 1), "shell": runs(3, 3, 8), "qemu-img": runs(4, 4, 4), "go": runs(1, 1, 1),
		"network": runs(1, 1, 1), "decompress": runs(1.8, 1.8, 9), "disk": runs(0.5, 0.5, 0.5),
	})
	if len(got) != 10 {
		t.Fatalf("%d rows, want speed, CPU and memory of three peers and the limit", len(got))
	}
	want := []figures.Row{
		{Name: "write x / shell", Unit: "MB/s of disk", Ours: 1000, Peer: 667, Ratio: 1.5, Goal: 1.5, Runs: 3},
		{Name: "CPU to write x / shell", Unit: "CPU seconds", Ours: 4, Peer: 6, Ratio: 1.5, Runs: 3},
		{Name: "memory to write x / shell", Unit: "MiB", Ours: 20, Peer: 30, Ratio: 1.5, Runs: 3},
		{Name: "write x / limit", Unit: "MB/s of disk", Ours: 1000, Peer: 1111, Ratio: 0.9, Goal: 0.95, Runs: 3},
	}
	if diff := cmp.Diff(want, append(got[:3:3], got[9]), cmpopts.IgnoreFields(figures.Row{}, "Note", "PeerCommand")); diff != "" {
		t.Errorf("rows (-want +got):\n%s", diff)
	}
	if want := "the slowest part alone: decompress"; got[9].PeerCommand != want {
		t.Errorf("limit is %q, want %q", got[9].PeerCommand, want)
	}
}
