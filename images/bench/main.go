// Bench compares the writing and the importing of an image with the commands an administrator would use instead, in the
// same run on the same host, and writes the ratios as JSON. It judges nothing: slow is not an error.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"bloomery/internal/figures"
)

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
	host, err := figures.ThisHost()
	if err != nil {
		return err
	}
	dir := filepath.Join(filepath.Dir(*path), "bench")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("making a folder for this run alone: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	rows, err := measure(ctx, *image, *raw, dir, *runs)
	if err != nil {
		return err
	}
	return errors.Join(figures.Write(*path, figures.Report{Host: host, Rows: rows}), figures.Table(out, rows))
}

// withFigures fills in what the times of the runs over size bytes of disk say.
func withFigures(r figures.Row, size int64, ours, peer []time.Duration) figures.Row {
	rate := func(t []time.Duration) float64 { return float64(size) / 1e6 / figures.Median(t).Seconds() }
	r.Unit, r.Runs = "MB/s of disk", len(ours)
	r.Ours, r.Peer = math.Round(rate(ours)), math.Round(rate(peer))
	r.Ratio = math.Round(100*rate(ours)/rate(peer)) / 100
	return r
}
