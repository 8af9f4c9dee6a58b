// Bench compares the writing and the importing of an image with the commands an administrator would use instead, in the
// same run on the same host, and writes the ratios as JSON. It judges nothing: slow is not an error.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

type report struct {
	Host struct {
		Cores  int    `json:"cores"`
		Accel  string `json:"accel"` // of a virtual machine: "none", since nothing runs in one
		Kernel string `json:"kernel"`
	} `json:"host"`
	Rows []row `json:"rows"`
}

// row is one comparison. Ours and Peer are medians of Runs each; Ratio above 1 means ours is better, Goal is the least wanted.
type row struct {
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

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	err := run(ctx, os.Args[1:], os.Stdout)
	cancel()
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	image := flags.String("image", "out/images/debian-12", "folder of the converted image")
	raw := flags.String("raw", "out/images/debian-12.raw", "disk file that the image was converted from")
	path := flags.String("report", "out/bench.json", "file to write; what is measured is in the folder bench beside it, for the time of the run")
	runs := flags.Int("runs", 5, "runs of each side, whose median counts")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *runs < 1 || flags.NArg() > 0 {
		return fmt.Errorf("--runs is %d with arguments %q: want at least 1 and none", *runs, flags.Args())
	}
	kernel, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return fmt.Errorf("reading the kernel's release: %w", err)
	}
	dir := filepath.Join(filepath.Dir(*path), "bench")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("making a folder for this run alone: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var r report
	r.Host.Cores, r.Host.Accel, r.Host.Kernel = runtime.NumCPU(), "none", strings.TrimSpace(string(kernel))
	if r.Rows, err = measure(ctx, *image, *raw, dir, *runs); err != nil {
		return err
	}
	return errors.Join(write(*path, r), table(out, r))
}

// withFigures fills in what the times of the runs over size bytes of disk say.
func (r row) withFigures(size int64, ours, peer []time.Duration) row {
	rate := func(t []time.Duration) float64 { return float64(size) / 1e6 / median(t).Seconds() }
	r.Unit, r.Runs = "MB/s of disk", len(ours)
	r.Ours, r.Peer = math.Round(rate(ours)), math.Round(rate(peer))
	r.Ratio = math.Round(100*rate(ours)/rate(peer)) / 100
	return r
}

// median is the middle of one or more times, or the mean of the middle two.
func median(times []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(times))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// write replaces the report as a whole, so that a reader never sees half of one.
func write(path string, r report) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", append(data, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func table(out io.Writer, r report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tours\tpeer\tratio\tunit\truns\tpeer's command")
	for _, r := range r.Rows {
		fmt.Fprintf(w, "%s\t%.0f\t%.0f\t%.2f\t%s\t%d\t%s\n", r.Name, r.Ours, r.Peer, r.Ratio, r.Unit, r.Runs, r.PeerCommand)
	}
	return w.Flush()
}
