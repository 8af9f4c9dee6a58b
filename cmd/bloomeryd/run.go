package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"

	"bloomery/coordinator"
)

// Exit codes of every Bloomery command.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// run is the command; it returns its exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer, level slog.Level) int {
	flags := flag.NewFlagSet("bloomeryd", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = fmt.Fprintf(stderr, "bloomeryd is a rack's coordinator.\n\nUsage:\n  bloomeryd --config /etc/bloomery/bloomeryd.yaml\n\nFlags:\n")
		flags.PrintDefaults()
	}
	path := flags.String("config", "/etc/bloomery/bloomeryd.yaml", "configuration file")
	version := flags.Bool("version", false, "print the version and exit")
	debugging := flags.Bool("debug", false, "log more")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitDone
	case err != nil:
		return exitUsage
	case flags.NArg() > 0:
		_, _ = fmt.Fprintf(stderr, "bloomeryd: unexpected argument %q\n", flags.Arg(0))
		return exitUsage
	case *version:
		_, _ = fmt.Fprintln(stdout, "bloomeryd", buildVersion())
		return exitDone
	}
	if *debugging {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	config, err := coordinator.LoadConfig(*path)
	if err == nil {
		err = coordinator.Run(ctx, config, log)
	}
	if err != nil {
		_, _ = fmt.Fprintln(stderr, "bloomeryd:", err)
		return exitFailed
	}
	return exitDone
}

func buildVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		return info.Main.Version
	}
	return "unknown"
}
