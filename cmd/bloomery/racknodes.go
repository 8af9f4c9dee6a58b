package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func newRackStatus(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the rack's coordinators: leader, roles, lag, versions, certificates, disks",
		Long: `Status asks one coordinator, which asks all the others at once. It works without a majority: then it shows what can
be seen from the coordinator that answered. It fails (exit 1) when there is no majority.

LAG is how many entries of the replicated log a coordinator's disk is behind the leader's at the moment it was asked; a few
are usual while the rack works.`,
		Example: `  bloomery rack status
  bloomery rack status -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			status, err := ask(cmd.Context(), c.rack.GetRackStatus, &bloomeryv1.GetRackStatusRequest{})
			if err != nil {
				return err
			}
			if err := set.printMessage(cmd.OutOrStdout(), status, func(w io.Writer) { rackTable(w, status) }); err != nil {
				return err
			}
			return hasMajority(status)
		},
	}
}

func hasMajority(s *bloomeryv1.GetRackStatusResponse) error {
	if s.GetQuorum() {
		return nil
	}
	return errors.New("the rack has no majority of its coordinators: nothing can be changed")
}

func rackTable(w io.Writer, s *bloomeryv1.GetRackStatusResponse) {
	for _, cells := range cells(nodeColumns(), s.GetNodes()) {
		row(w, cells...)
	}
	for _, warning := range s.GetWarnings() {
		row(w, "! "+warning)
	}
}

func nodeColumns() []column[*bloomeryv1.Node] {
	// What a coordinator says of itself is there when it answers.
	own := func(value func(n *bloomeryv1.Node) string) func(*bloomeryv1.Node) string {
		return func(n *bloomeryv1.Node) string {
			if !n.GetReachable() {
				return ""
			}
			return value(n)
		}
	}
	return []column[*bloomeryv1.Node]{
		{"name", "NAME", (*bloomeryv1.Node).GetName},
		{"role", "ROLE", func(n *bloomeryv1.Node) string {
			switch {
			case n.GetRole() == bloomeryv1.NodeRole_NODE_ROLE_UNSPECIFIED:
				return ""
			case n.GetLeader():
				return "leader"
			}
			return enumWord("NODE_ROLE_", n.GetRole())
		}},
		{"lag", "LAG", func(n *bloomeryv1.Node) string {
			if !n.GetReachable() {
				return "no answer"
			}
			return fmt.Sprint(n.GetLogLag())
		}},
		{"clock", "CLOCK", own(func(n *bloomeryv1.Node) string { return fmt.Sprintf("%+.1f s", n.GetClockOffsetSeconds()) })},
		{"disk-free", "DISK FREE", own(func(n *bloomeryv1.Node) string {
			if n.GetDiskTotalBytes() == 0 {
				return ""
			}
			return fmt.Sprintf("%s (%d%%)", bytesText(n.GetDiskFreeBytes()), 100*n.GetDiskFreeBytes()/n.GetDiskTotalBytes())
		})},
		{"database", "DATABASE", own(func(n *bloomeryv1.Node) string { return bytesText(n.GetDatabaseBytes()) })},
		{"certificate", "CERTIFICATE", own(func(n *bloomeryv1.Node) string { return n.GetCertificateNotAfter().AsTime().Format(time.DateOnly) })},
		{"version", "VERSION", own(func(n *bloomeryv1.Node) string { return shortVersion(n.GetVersion()) })},
	}
}

// shortVersion keeps a version's column narrow: a commit's hash is cut as git does.
func shortVersion(v string) string {
	if len(v) == 40 && !strings.ContainsAny(v, ".") {
		return v[:12]
	}
	return v
}

func newRackToken(set *settings) *cobra.Command {
	return group("token", "Let new coordinators join", newRackTokenCreate(set))
}

func newRackTokenCreate(set *settings) *cobra.Command {
	var node, out string
	var valid time.Duration
	cmd := &cobra.Command{
		Use:   "create --node NAME",
		Short: "Make a token with which one new coordinator joins, once",
		Long: `Create makes a token for one coordinator, by name. Whoever has it becomes that coordinator and gets the rack's secrets: give
it to that machine only. It works once, and for an hour unless told otherwise; a second one for the same name voids the first.`,
		Example: `  bloomery rack token create --node c2 --out c2.token
  bloomery rack token create --node c2 | ssh c2 sudo -u bloomery bloomery rack join --token-file -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needed(cmd, "node"); err != nil {
				return err
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.rack.CreateJoinToken, &bloomeryv1.CreateJoinTokenRequest{Node: node, ValidSeconds: int32(valid.Seconds())})
			if err != nil {
				return err
			}
			if out != "" {
				return writeToken(out, answer.GetToken())
			}
			if set.output != "table" {
				return set.printMessage(cmd.OutOrStdout(), answer, nil)
			}
			// The token alone, so that it can be piped.
			_, err = fmt.Fprintln(cmd.OutOrStdout(), answer.GetToken())
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&node, "node", "", "name of the coordinator that will join")
	flags.StringVar(&out, "out", "", "write the token into this new file, mode 0600, instead of printing it")
	flags.DurationVar(&valid, "valid", time.Hour, "how long it works, up to 24h")
	return cmd
}

func writeToken(path, token string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, token)
	return errors.Join(err, f.Close())
}

func newRackJoin(*settings) *cobra.Command {
	var tokenFile, token string
	var names []string
	var daemon daemon
	cmd := &cobra.Command{
		Use:   "join --token-file FILE|-",
		Short: "Make this new machine one of a rack's coordinators",
		Long: `Join runs "bloomeryd join" on this host, as the user that bloomeryd runs as. The configuration names this coordinator
(node) and where the others reach its database (cluster.address). It asks a present coordinator, which the token names and
whose certificate it proves, for a certificate and the rack's secrets; bloomeryd does the rest when it starts. It can be
repeated with the same token when it was interrupted.

A token on the command line (--token) can be seen by other users of this host while the command runs: prefer --token-file.`,
		Example: `  sudo -u bloomery bloomery rack join --token-file c2.token
  sudo -u bloomery bloomery rack join --token-file - --server-address c2.rack12.example.net <c2.token`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if (tokenFile == "") == (token == "") {
				return usagef("give the token by --token-file, or by --token")
			}
			words := []string{"join", "--token-file", tokenFile}
			in := cmd.InOrStdin()
			if token != "" {
				words[2], in = "-", strings.NewReader(token)
			}
			for _, n := range names {
				words = append(words, "--server-address", n)
			}
			return daemon.run(cmd, in, words...)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&tokenFile, "token-file", "", "file with the token; - reads standard input")
	flags.StringVar(&token, "token", "", "the token itself; other users of this host can see it")
	flags.StringSliceVar(&names, "server-address", nil, "further address or DNS name at which this coordinator is reached; may be repeated")
	daemon.flags(cmd)
	return cmd
}

// daemon is how bloomeryd is run for what needs the database's library, which this program does without.
type daemon struct{ program, config string }

func (d *daemon) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&d.config, "coordinator-config", "/etc/bloomery/bloomeryd.yaml", "configuration of this node's coordinator")
	cmd.Flags().StringVar(&d.program, "bloomeryd", "bloomeryd", "coordinator's program")
}

func (d *daemon) run(cmd *cobra.Command, in io.Reader, words ...string) error {
	child := exec.CommandContext(cmd.Context(), d.program, append([]string{words[0], "--config", d.config}, words[1:]...)...)
	child.Stdin, child.Stdout, child.Stderr = in, cmd.OutOrStdout(), cmd.ErrOrStderr()
	if err := child.Run(); err != nil {
		return fmt.Errorf("%s %s: %w", d.program, words[0], err)
	}
	return nil
}

func newRackRemoveNode(set *settings) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "remove-node NAME",
		Short: "Take a coordinator out of the rack for good, alive or dead",
		Long: `Remove-node takes a coordinator out of the database and voids its certificate. One that runs stops by itself. To replace a
dead coordinator, remove it and let another join, under the same name or another. It is refused when those that are left and
answer would be no majority; --force does it all the same, and the rack may then need "bloomery rack recover".`,
		Example: `  bloomery rack remove-node c2
  bloomery rack remove-node c2 --force`,
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when no majority would be left")
	return oneThing(set, cmd, func(ctx context.Context, c *client, name string) (string, error) {
		_, err := ask(ctx, c.rack.RemoveNode, &bloomeryv1.RemoveNodeRequest{Name: name, Force: force})
		return name, err
	}, func(w io.Writer, name string) error {
		return set.printValue(w, map[string]string{"removed": name}, func(w io.Writer) { row(w, "Removed", name) })
	})
}

func newRackRecover(*settings) *cobra.Command {
	var yes bool
	var daemon daemon
	cmd := &cobra.Command{
		Use:   "recover [--yes]",
		Short: "Make this node the only coordinator of a rack that has lost the majority for good",
		Long: `Recover runs "bloomeryd recover" on this host, as the user that bloomeryd runs as; bloomeryd must be stopped. Without --yes it
shows how far this node's copy of the data goes and what may be lost, and changes nothing: run it on every node that is left,
and recover the one that is furthest.`,
		Example: `  sudo -u bloomery bloomery rack recover
  sudo -u bloomery bloomery rack recover --yes`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			words := []string{"recover"}
			if yes {
				words = append(words, "--yes")
			}
			return daemon.run(cmd, cmd.InOrStdin(), words...)
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do it")
	daemon.flags(cmd)
	return cmd
}
