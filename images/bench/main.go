// Bench compares the writing and the importing of images with what an administrator would use instead, in the same run on the same host, and
// writes the ratios as JSON. It judges nothing: slow is not an error.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
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
	memory := flags.String("memory", "/dev/shm", "folder of a tmpfs for the disk that is written to, which is a loop device")
	runs := flags.Int("runs", 5, "runs of each side, whose median counts")
	only := flags.String("only", "", "measure only this: debian-12, incompressible or import")
	task := flags.String("task", "", "do one timed task, described in JSON, and print what it took: how the bench starts its sides")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *runs < 1 || flags.NArg() > 0 {
		return fmt.Errorf("--runs is %d with arguments %q: want at least 1 and none", *runs, flags.Args())
	}
	if *task != "" {
		used, err := doTask(ctx, *task)
		return errors.Join(err, json.NewEncoder(out).Encode(used))
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
	b := &bench{dir: dir, memory: *memory, image: *image, raw: *raw, runs: *runs, log: os.Stderr}
	rows, err := b.measure(ctx, *only)
	if err != nil {
		return err
	}
	return errors.Join(figures.Write(*path, figures.Report{Host: host, Rows: rows}), figures.Table(out, rows))
}
