package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func newTokenCommand(set *settings) *cobra.Command {
	return group("token", "Let machines of the information system call the rack", newTokenAdd(set), newTokenList(set), newTokenRevoke(set))
}

func newTokenAdd(set *settings) *cobra.Command {
	var role, out string
	var teams []string
	var days int
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Make a bearer token with a role",
		Long: `Add makes a token for a program that has no certificate: it sends "Authorization: Bearer SECRET" over TLS. The
secret is shown once, or written into a file that only you can read; the rack keeps a hash of it. A token opens no call that
hands out access.`,
		Example: `  bloomery token add gateway --role operator --out gateway.token
  bloomery token add billing --role viewer --days 30`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needed(cmd, "role"); err != nil {
				return err
			}
			wanted, err := roleOf(role)
			if err != nil {
				return err
			}
			if days < 1 || days > 366 {
				return usagef("--days %d: use 1 to 366", days)
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			var file *os.File
			if out != "" {
				// Before the token is made: its secret must have a place.
				if file, err = os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
					return err
				}
				defer func() { _ = file.Close() }()
			}
			token := &bloomeryv1.Token{Name: args[0], Role: wanted, Teams: teams, ExpiresAt: timestamppb.New(time.Now().Add(time.Duration(days) * 24 * time.Hour))}
			answer, err := ask(cmd.Context(), c.access.AddToken, &bloomeryv1.AddTokenRequest{Token: token})
			if err != nil {
				if file != nil {
					_ = os.Remove(out) // It is empty.
				}
				return err
			}
			if file != nil {
				if _, err := fmt.Fprintln(file, answer.GetSecret()); err != nil {
					return fmt.Errorf("token %s is made, but its secret could not be written; revoke it: %w", args[0], err)
				}
				answer.Secret = ""
				if err := file.Sync(); err != nil {
					return err
				}
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				fmt.Fprintf(w, "token %s is %s until %s\n", answer.GetToken().GetName(), role, day(answer.GetToken().GetExpiresAt()))
				if out == "" {
					fmt.Fprintf(w, "secret (shown once): %s\n", answer.GetSecret())
				} else {
					fmt.Fprintf(w, "its secret is in %s\n", out)
				}
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&role, "role", "", "viewer, operator, hardware, network or admin")
	flags.StringArrayVar(&teams, "team", nil, "team in whose name the token locks machines; may be repeated")
	flags.IntVar(&days, "days", 90, "how long the token is valid, at most 366")
	flags.StringVar(&out, "out", "", "file for the secret, made with mode 0600; shown when not given")
	return cmd
}

func newTokenList(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List tokens with their roles and when each was used, never their secrets",
		Example: `  bloomery token list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.access.ListTokens, &bloomeryv1.ListTokensRequest{})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				row(w, "NAME", "ROLE", "TEAMS", "ADDED BY", "EXPIRES", "USED", "REVOKED")
				for _, t := range answer.GetTokens() {
					row(w, t.GetName(), enumWord("ROLE_", t.GetRole()), strings.Join(t.GetTeams(), ","), t.GetCreatedBy(), day(t.GetExpiresAt()), day(t.GetUsedAt()), day(t.GetRevokedAt()))
				}
			})
		},
	}
}

func newTokenRevoke(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "revoke NAME",
		Short:   "End a token at once, on all coordinators",
		Example: `  bloomery token revoke gateway`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.RevokeTokenResponse, error) {
		return ask(ctx, c.access.RevokeToken, &bloomeryv1.RevokeTokenRequest{Name: name})
	}, func(w io.Writer, answer *bloomeryv1.RevokeTokenResponse) error {
		return set.printMessage(w, answer.GetToken(), func(w io.Writer) { fmt.Fprintf(w, "token %s was revoked\n", answer.GetToken().GetName()) })
	})
}

// day is a time as a date, for tables.
func day(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().Format(time.DateOnly)
}
