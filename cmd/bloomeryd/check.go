package main

import (
	"context"
	"flag"
	"fmt"

	"bloomery/coordinator"
)

func checkCommand() command {
	return command{
		name: "check", short: "Read a configuration, say what it makes bloomeryd do, and look for what is missing", use: "[--config FILE]",
		examples: []string{"bloomeryd check --config /etc/bloomery/bloomeryd.yaml"},
		run: func(_ context.Context, p process, flags *flag.FlagSet, args []string) error {
			path := flags.String("config", defaultConfig, "configuration `file`")
			if err := parse(flags, args, 0); err != nil {
				return err
			}
			config, err := coordinator.LoadConfig(*path)
			if err != nil {
				return err
			}
			for _, line := range config.Describe() {
				_, _ = fmt.Fprintln(p.stdout, line)
			}
			problems := config.Problems()
			for _, problem := range problems {
				_, _ = fmt.Fprintln(p.stderr, "problem:", problem)
			}
			if len(problems) > 0 {
				return fmt.Errorf("%s can be read, but bloomeryd would not start or not do its work: %d problem(s)", *path, len(problems))
			}
			return nil
		},
	}
}
