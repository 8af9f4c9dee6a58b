package figures

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
		if got := Median(c.times); got != c.want {
			t.Errorf("Median(%v) = %d, want %d", c.times, got, c.want)
		}
	}
}

func TestReportHasItsFields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := os.WriteFile(path, []byte("an older and longer report"), 0o600); err != nil {
		t.Fatal(err)
	}
	row := Row{Name: "write", Unit: "MB/s of disk", Ours: 1000, Peer: 667, PeerCommand: "dd", Ratio: 1.5, Goal: 1, Runs: 3, Note: "n"}
	if err := Write(path, Report{Host: Host{Cores: 2, Accel: "none", Kernel: "6.1"}, Rows: []Row{row}}); err != nil {
		t.Fatal(err)
	}
	other := Row{Name: "import", Unit: "s"}
	faster := row
	faster.Ours = 2000
	if err := Add(path, []Row{other}); err != nil {
		t.Fatal(err)
	}
	if err := Add(path, []Row{faster}); err != nil {
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
	fields := func(name, unit string, ours, peer float64, command string, ratio, goal, runs float64, note string) any {
		return map[string]any{"name": name, "unit": unit, "ours": ours, "peer": peer, "peer_command": command, "ratio": ratio, "goal": goal, "runs": runs, "note": note}
	}
	want := map[string]any{
		"host": map[string]any{"cores": 2.0, "accel": "none", "kernel": "6.1"},
		"rows": []any{fields("import", "s", 0, 0, "", 0, 0, 0, ""), fields("write", "MB/s of disk", 2000, 667, "dd", 1.5, 1, 3, "n")},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("report (-want +got):\n%s", diff)
	}
}

func TestAddBeginsAReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "bench.json")
	if err := Add(path, []Row{{Name: "a"}}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Add(path, []Row{{Name: "a"}}); err == nil {
		t.Error("a broken report was replaced")
	}
}
