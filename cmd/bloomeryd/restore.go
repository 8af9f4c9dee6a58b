package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"time"

	"bloomery/coordinator"
	"bloomery/coordinator/backup"
)

func restoreCommand() command {
	return command{
		name: "restore", short: "Make this empty node the only coordinator of the rack that a backup was made of",
		use: "[--config FILE] --passphrase-file FILE|- [--running-jobs continue|fail] BACKUP",
		examples: []string{
			"bloomeryd restore --config /etc/bloomery/bloomeryd.yaml --passphrase-file backup.secret rack12.bloomery-backup",
		},
		run: runRestore,
	}
}

func runRestore(ctx context.Context, p process, flags *flag.FlagSet, args []string) (err error) {
	path := flags.String("config", defaultConfig, "configuration `file` of the node")
	secret := flags.String("passphrase-file", "", "`file` with the backup's passphrase; - reads standard input")
	jobs := flags.String("running-jobs", "", "what becomes of jobs that ran when the backup was made: \"continue\" powers their machines and may write their disks again,\n\"fail\" makes the machines faulty until somebody has looked at them")
	if err := parse(flags, args, 1); err != nil {
		return err
	}
	choice := coordinator.RunningJobs(*jobs)
	switch {
	case *secret == "":
		return usageError{errors.New("--passphrase-file is missing")}
	case choice != "" && choice != coordinator.ContinueJobs && choice != coordinator.FailJobs:
		return usageError{fmt.Errorf("--running-jobs %q: want continue or fail", *jobs)}
	}
	config, err := coordinator.LoadConfig(*path)
	if err != nil {
		return err
	}
	passphrase, err := readPassphrase(*secret, p.stdin)
	if err != nil {
		return err
	}
	in, err := os.Open(flags.Arg(0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, in.Close()) }()
	log := slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	done, err := coordinator.Restore(ctx, config, in, coordinator.RestoreOptions{Passphrase: passphrase, RunningJobs: choice, Logger: log})
	if err != nil {
		return fmt.Errorf("%s: %w; nothing was changed", flags.Arg(0), err)
	}
	report(p.stdout, config, done, choice)
	return nil
}

// readPassphrase reads one line of a file or of standard input.
func readPassphrase(path string, stdin io.Reader) (string, error) {
	in := stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, backup.MaxPassphrase+3))
	if err != nil {
		return "", fmt.Errorf("read the passphrase: %w", err)
	}
	return strings.TrimRight(string(data), "\r\n"), nil
}

func report(w io.Writer, config coordinator.Config, done coordinator.Restored, jobs coordinator.RunningJobs) {
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }
	h := done.Header
	say("Rack %s is restored into %s as coordinator %s made it on %s (bloomeryd %s): %d rows.", h.GetRack(), config.Data, h.GetNode(), h.GetCreatedAt().AsTime().Format(time.RFC3339), h.GetVersion(), done.Rows)
	say("What happened after that is forgotten: machines may have been installed, moved or locked since. Compare before you order anything.")
	if len(done.Jobs) > 0 {
		say("Jobs that were running then, told to %s: %s.", jobs, strings.Join(done.Jobs, ", "))
	}
	if len(done.Images) > 0 {
		say("Images whose data is not in a backup, to be added again with \"bloomery image add\": %s.", strings.Join(done.Images, ", "))
		say("Their manifests are in %s: with an old node's data file beside it, such a folder can be added as it is.", done.Manifests)
	}
	if done.EventsLost > 0 {
		say("Events up to number %d were in the old nodes' archives, which are not here, and cannot be read any more.", done.EventsLost)
	}
	if len(done.Unnamed) > 0 {
		say("The coordinator's certificate does not have this node's addresses %s, and ca.key is not in the backup: clients refuse it there until it was signed anew.", strings.Join(done.Unnamed, ", "))
	}
	say("Never start a coordinator of the old rack again. Start this one, then let others join: \"bloomery rack token create\", \"bloomery rack join\".")
}
