package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"bloomery/coordinator"
	"bloomery/internal/sdnotify"
)

// Exit codes of every Bloomery command.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

const defaultConfig = "/etc/bloomery/bloomeryd.yaml"

// process is what a command has of the world.
type process struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	level          slog.Level
}

// command is something that bloomeryd does instead of being a coordinator.
type command struct {
	name, short string
	// use is what follows the name; examples are whole command lines.
	use      string
	examples []string
	// run gets what follows the name. A usageError is answered with how the command is used.
	run func(ctx context.Context, p process, flags *flag.FlagSet, args []string) error
}

// usageError marks a mistake in how a command was called.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func commands() []command {
	return []command{checkCommand(), joinCommand(), restoreCommand(), recoverCommand()}
}

const usageHead = `bloomeryd is a rack's coordinator.

Usage:
  bloomeryd [--config FILE]           run the coordinator until SIGTERM
`

const usageExamples = `
Examples:
  bloomeryd --config /etc/bloomery/bloomeryd.yaml
  bloomeryd check --config /etc/bloomery/bloomeryd.yaml
  bloomeryd restore --passphrase-file backup.secret rack12.bloomery-backup
`

// run is the program; it returns its exit code.
func run(ctx context.Context, args []string, p process) int {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		for _, c := range commands() {
			if c.name == args[0] {
				return runCommand(ctx, p, c, args[1:])
			}
		}
		_, _ = fmt.Fprintf(p.stderr, "bloomeryd: unknown command %q (see \"bloomeryd --help\")\n", args[0])
		return exitUsage
	}
	flags := flag.NewFlagSet("bloomeryd", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	path := flags.String("config", defaultConfig, "configuration `file`")
	version := flags.Bool("version", false, "print the version and exit")
	debugging := flags.Bool("debug", false, "log more")
	format := flags.String("log", "text", "`format` of the log: text or json")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		writeUsage(p.stdout, flags)
		return exitDone
	case err != nil:
		_, _ = fmt.Fprintf(p.stderr, "bloomeryd: %v (see \"bloomeryd --help\")\n", err)
		return exitUsage
	case flags.NArg() > 0:
		_, _ = fmt.Fprintf(p.stderr, "bloomeryd: unexpected argument %q\n", flags.Arg(0))
		return exitUsage
	case *format != "text" && *format != "json":
		_, _ = fmt.Fprintf(p.stderr, "bloomeryd: --log %q: use text or json\n", *format)
		return exitUsage
	case *version:
		_, _ = fmt.Fprintln(p.stdout, "bloomeryd", coordinator.Version())
		return exitDone
	}
	if *debugging {
		p.level = slog.LevelDebug
	}
	log := newLogger(p.stderr, *format, p.level)
	config, err := coordinator.LoadConfig(*path)
	if err == nil {
		config.Ready = func() error { return sdnotify.Send("READY=1") }
		err = coordinator.Run(ctx, config, log)
	}
	if err != nil {
		_, _ = fmt.Fprintln(p.stderr, "bloomeryd:", err)
		return exitFailed
	}
	return exitDone
}

func newLogger(w io.Writer, format string, level slog.Level) *slog.Logger {
	options := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

func runCommand(ctx context.Context, p process, c command, args []string) int {
	flags := flag.NewFlagSet(c.name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	err := c.run(ctx, p, flags, args)
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.Is(err, flag.ErrHelp):
		_, _ = fmt.Fprintf(p.stdout, "%s\n\nUsage:\n  bloomeryd %s %s\n\nFlags:\n", c.short, c.name, c.use)
		writeFlags(p.stdout, flags)
		_, _ = fmt.Fprintf(p.stdout, "\nExamples:\n  %s\n", strings.Join(c.examples, "\n  "))
		return exitDone
	case errors.As(err, &usage):
		_, _ = fmt.Fprintf(p.stderr, "bloomeryd %s: %v (usage: bloomeryd %s %s)\n", c.name, err, c.name, c.use)
		return exitUsage
	}
	_, _ = fmt.Fprintf(p.stderr, "bloomeryd %s: %v\n", c.name, err)
	return exitFailed
}

// parse reads a command's flags and checks how many other arguments there are.
func parse(flags *flag.FlagSet, args []string, others int) error {
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return err
	case err != nil:
		return usageError{err}
	case flags.NArg() != others:
		return usageError{fmt.Errorf("%d argument(s) beside flags, want %d", flags.NArg(), others)}
	}
	return nil
}

func writeUsage(w io.Writer, flags *flag.FlagSet) {
	_, _ = io.WriteString(w, usageHead)
	for _, c := range commands() {
		_, _ = fmt.Fprintf(w, "  bloomeryd %-26s%s\n", c.name+" ...", c.short)
	}
	_, _ = io.WriteString(w, "\nFlags:\n")
	writeFlags(w, flags)
	_, _ = io.WriteString(w, usageExamples)
}

func writeFlags(w io.Writer, flags *flag.FlagSet) {
	flags.SetOutput(w)
	flags.PrintDefaults()
	flags.SetOutput(io.Discard)
}
