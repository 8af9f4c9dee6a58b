package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		times []time.Duration
		want  time.Duration
	}{
		{[]time.Duration{7}, 7},
		{[]time.Duration{9, 1, 5}, 5},
		{[]time.Duration{100, 2, 4, 1}, 3},
		{[]time.Duration{5, 4, 3, 2, 1000}, 4},
	} {
		if got := median(c.times); got != c.want {
			t.Errorf("median(%v) = %d, want %d", c.times, got, c.want)
		}
	}
}

func TestReportHasItsFields(t *testing.T) {
	figures := row{Name: "write", PeerCommand: "dd", Goal: 1, Note: "n"}.withFigures(2e9,
		[]time.Duration{2 * time.Second, 9 * time.Second, time.Second}, []time.Duration{3 * time.Second, 3 * time.Second, 8 * time.Second})
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := os.WriteFile(path, []byte("an older and longer report"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := report{Rows: []row{figures}}
	r.Host.Cores, r.Host.Accel, r.Host.Kernel = 2, "none", "6.1"
	if err := write(path, r); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"host": map[string]any{"cores": 2.0, "accel": "none", "kernel": "6.1"},
		"rows": []any{map[string]any{
			"name": "write", "unit": "MB/s of disk", "ours": 1000.0, "peer": 667.0, "peer_command": "dd",
			"ratio": 1.5, "goal": 1.0, "runs": 3.0, "note": "n",
		}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}
