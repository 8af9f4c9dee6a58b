package main

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"bloomery/internal/figures"
)

func TestFiguresAreRatesOfMedians(t *testing.T) {
	got := withFigures(figures.Row{Name: "write", PeerCommand: "dd", Goal: 1, Note: "n"}, 2e9,
		[]time.Duration{2 * time.Second, 9 * time.Second, time.Second}, []time.Duration{3 * time.Second, 3 * time.Second, 8 * time.Second})
	want := figures.Row{Name: "write", Unit: "MB/s of disk", Ours: 1000, Peer: 667, PeerCommand: "dd", Ratio: 1.5, Goal: 1, Runs: 3, Note: "n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("row (-want +got):\n%s", diff)
	}
}
