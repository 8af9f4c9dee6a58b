// Package figures is the report of measurements, out/bench.json: rows of ours beside a peer's, from one run on one host.
package figures

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what was measured on a host.
type Report struct {
	Host Host  `json:"host"`
	Rows []Row `json:"rows"`
}

// Host is where it was measured.
type Host struct {
	Cores  int    `json:"cores"`
	Accel  string `json:"accel"` // of a virtual machine: "none", since nothing runs in one
	Kernel string `json:"kernel"`
}

// Row is one comparison. Ours and Peer are medians of Runs each; Ratio above 1 means ours is better, Goal is the least wanted.
// Where nothing can be a peer, Peer is what is wanted and PeerCommand says so.
type Row struct {
	Name        string  `json:"name"`
	Unit        string  `json:"unit"`
	Ours        float64 `json:"ours"`
	Peer        float64 `json:"peer"`
	PeerCommand string  `json:"peer_command"`
	Ratio       float64 `json:"ratio"`
	Goal        float64 `json:"goal"`
	Runs        int     `json:"runs"`
	Note        string  `json:"note"`
}

// ThisHost describes the host.
func ThisHost() (Host, error) {
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return Host{}, fmt.Errorf("read the kernel's release: %w", err)
	}
	return Host{Cores: runtime.NumCPU(), Accel: "none", Kernel: strings.TrimSpace(string(kernel))}, nil
}

// Median is the middle of one or more times, or the mean of the middle two.
func Median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Write replaces the report as a whole, so that a reader never sees half of one.
func Write(path string, r Report) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// Add puts rows into the report that is there, in place of those of the same names; a report that is not there is begun.
func Add(path string, rows []Row) error {
	var r Report
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if r.Host, err = ThisHost(); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("read the report: %w", err)
	default:
		if err := json.Unmarshal(data, &r); err != nil {
			return fmt.Errorf("read the report %s: %w", path, err)
		}
	}
	r.Rows = slices.DeleteFunc(r.Rows, func(old Row) bool {
		return slices.ContainsFunc(rows, func(row Row) bool { return row.Name == old.Name })
	})
	r.Rows = append(r.Rows, rows...)
	return Write(path, r)
}

// Table prints rows for people.
func Table(out io.Writer, rows []Row) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tours\tpeer\tratio\tunit\truns\tpeer's command")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%.4g\t%.4g\t%.2f\t%s\t%d\t%s\n", r.Name, r.Ours, r.Peer, r.Ratio, r.Unit, r.Runs, r.PeerCommand)
	}
	return w.Flush()
}
