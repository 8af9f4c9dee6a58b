package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime/debug"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// Exit codes of the command line.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError marks a mistake in how a command was called.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// settings are the flags that every command takes.
type settings struct {
	configPath string
	output     string
}

// run executes one command line and returns the process's exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	fmt.Fprintln(stderr, "error: "+explain(err))
	var usage usageError
	if errors.As(err, &usage) || strings.HasPrefix(err.Error(), "unknown command ") { // cobra's own, of "completion" and "help"
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	set := &settings{}
	root := &cobra.Command{
		Use:   "bloomery",
		Short: "Burn in, install and rescue the machines of a rack",
		Long: `bloomery talks to the coordinator of a rack of bare-metal machines.

It reads which rack, and with which certificate, from the file that
"bloomery rack init" made: --config, else $BLOOMERY_CONFIG, else
~/.config/bloomery/config.yaml.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       buildVersion(),
		Args:          cobra.ArbitraryArgs,
		RunE:          runGroup,
		Example: `  bloomery rack init --dir /var/lib/bloomery/pki --name rack12 --server-address 10.66.0.1
  bloomery machine list
  bloomery machine install node1 --image debian-12 --network customer-a --ssh-key ~/.ssh/id_ed25519.pub --wait`,
	}
	root.PersistentFlags().StringVar(&set.configPath, "config", "", "client configuration file")
	root.PersistentFlags().StringVarP(&set.output, "output", "o", "table", "output format: table, json or yaml; lists also wide or csv")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w (see %q)", err, cmd.CommandPath()+" --help")
	})
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error { return checkFormat(cmd, set.output) }
	root.AddCommand(
		newMachineCommand(set), newViewCommand(set), newJobCommand(set), newEventCommand(set), newWebhookCommand(set), newImageCommand(set), newLayoutCommand(set),
		newOperatorCommand(set), newTokenCommand(set), newWhoAmI(set), newRackCommand(set), newFleetCommand(set), newAgentImageCommand(set), newWipeCertificateCommand(set), newLabCommand(set),
	)
	return root
}

// group makes a command that only holds others; a word that is none of them is a usage error.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short, RunE: runGroup}
	var examples []string
	for _, child := range children {
		if !child.Hidden {
			examples = append(examples, firstExample(child.Example))
		}
	}
	cmd.Example = strings.Join(examples, "\n")
	cmd.AddCommand(children...)
	return cmd
}

func runGroup(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s has no command %q (see %q)", cmd.CommandPath(), args[0], cmd.CommandPath()+" --help")
	}
	return cmd.Help()
}

// firstExample is the first command line of an example, with the lines that continue it.
func firstExample(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		if !strings.HasSuffix(line, "\\") {
			return strings.Join(lines[:i+1], "\n")
		}
	}
	return text
}

// needed makes a usage error of flags that were left empty.
func needed(cmd *cobra.Command, names ...string) error {
	var missing []string
	for _, name := range names {
		flag := cmd.Flags().Lookup(name)
		if value := flag.Value.String(); value == "" || value == "[]" {
			missing = append(missing, "--"+name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return usagef("missing: %s (see %q)", strings.Join(missing, ", "), cmd.CommandPath()+" --help")
}

// noArgs and exactArgs are cobra's checks with usage errors.
func noArgs(cmd *cobra.Command, args []string) error { return exactArgs(0)(cmd, args) }

func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == n {
			return nil
		}
		return usagef("%s takes %d argument(s), not %d: usage: %s", cmd.CommandPath(), n, len(args), cmd.UseLine())
	}
}

// buildVersion is the module's version, or the commit that it was built from.
func buildVersion() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	for _, setting := range info.Settings {
		if setting.Key == "vcs.revision" {
			return setting.Value
		}
	}
	return "(devel)"
}

// explain turns an error into what an operator can act on: a coordinator's field errors first.
func explain(err error) string {
	var rpc *connect.Error
	if !errors.As(err, &rpc) {
		return err.Error()
	}
	text := rpc.Message()
	var fields []string
	for _, detail := range rpc.Details() {
		value, decodeErr := detail.Value()
		if decodeErr != nil {
			continue
		}
		if field, ok := value.(*bloomeryv1.FieldError); ok {
			fields = append(fields, fmt.Sprintf("%s: %s (%s)", field.GetField(), field.GetMessage(), field.GetReason()))
		}
	}
	if len(fields) > 0 {
		text = strings.Join(fields, "\n")
	}
	switch rpc.Code() {
	case connect.CodeUnavailable:
		return "no coordinator answers: " + text
	case connect.CodeUnauthenticated, connect.CodePermissionDenied:
		return "not allowed: " + text
	}
	return text
}
