package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"

	"bloomery/coordinator"
)

// maxTokenFile is more than any join token has.
const maxTokenFile = 64 << 10

func joinCommand() command {
	return command{
		name: "join", short: "Make this new machine one of a rack's coordinators", use: "[--config FILE] --token-file FILE|- [--server-address ADDRESS]...",
		examples: []string{"bloomeryd join --config /etc/bloomery/bloomeryd.yaml --token-file join.token"},
		run:      runJoin,
	}
}

func runJoin(ctx context.Context, p process, flags *flag.FlagSet, args []string) error {
	path := flags.String("config", defaultConfig, "configuration `file` of this machine")
	tokenFile := flags.String("token-file", "", "`file` with the token that \"bloomery rack token create\" printed; - reads standard input")
	var names []string
	flags.Func("server-address", "further `address` or DNS name at which this coordinator is reached; may be repeated", func(s string) error {
		names = append(names, s)
		return nil
	})
	if err := parse(flags, args, 0); err != nil {
		return err
	}
	if *tokenFile == "" {
		return usageError{errors.New("--token-file is missing")}
	}
	config, err := coordinator.LoadConfig(*path)
	if err != nil {
		return err
	}
	in := p.stdin
	if *tokenFile != "-" {
		f, err := os.Open(*tokenFile)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		in = f
	}
	token, err := io.ReadAll(io.LimitReader(in, maxTokenFile))
	if err != nil {
		return fmt.Errorf("read the join token: %w", err)
	}
	if err := coordinator.Join(ctx, config, string(token), names); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(p.stdout, "Coordinator %s is let into the rack. Start bloomeryd: its database joins the others'.\n", config.Node)
	return nil
}

func recoverCommand() command {
	return command{
		name: "recover", short: "Make this node the only one of a rack that has lost the majority of its coordinators for good", use: "[--config FILE] [--yes]",
		examples: []string{"bloomeryd recover --config /etc/bloomery/bloomeryd.yaml", "bloomeryd recover --config /etc/bloomery/bloomeryd.yaml --yes"},
		run:      runRecover,
	}
}

const recoverWarning = `
This is the last resort. Use it only when the other coordinators are lost for good, or so many that no majority can
come back: while one may come back, repair it instead, nothing is lost then.

  - What was acknowledged by others and had not reached this node's disk is lost: reports of agents, jobs, locks, events.
  - Run this command without --yes on every node that is left, and recover the one with the highest term, and among
    those of the same term with the highest index. Recover one node only.
  - The data of every other node is worthless afterwards. Empty their data folders and let them join again; never
    start one with its old data where it can reach machines: it would not know what has happened here.
  - Look at running jobs before you trust them: "bloomery job list".
`

func runRecover(_ context.Context, p process, flags *flag.FlagSet, args []string) error {
	path := flags.String("config", defaultConfig, "configuration `file` of this node")
	yes := flags.Bool("yes", false, "do it; without it, this node's state is shown and nothing is changed")
	if err := parse(flags, args, 0); err != nil {
		return err
	}
	config, err := coordinator.LoadConfig(*path)
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { _, _ = fmt.Fprintf(p.stdout, format+"\n", args...) }
	state, err := coordinator.ReadRecovery(config)
	if err != nil {
		return err
	}
	say("Coordinator %s, database %s at %s", config.Node, state.Dir, state.Address)
	say("Newest entry on its disk: term %d, index %d", state.Term, state.Index)
	say("Nodes that it knew:       %s", strings.Join(state.Members, ", "))
	_, _ = fmt.Fprint(p.stdout, recoverWarning)
	if !*yes {
		say("\nNothing was changed. To go on: bloomeryd recover --config %s --yes", *path)
		return nil
	}
	if err := coordinator.Recover(config); err != nil {
		return err
	}
	say("\nCoordinator %s is the only one of the rack now. Start bloomeryd, then let others join: \"bloomery rack token create\".", config.Node)
	return nil
}
