package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func newWebhookCommand(set *settings) *cobra.Command {
	return group("webhook", "Have events delivered to other systems", newWebhookAdd(set), newWebhookList(set), newWebhookTest(set),
		newWebhookRemove(set), newWebhookDeadLetters(set), newWebhookRetry(set))
}

func newWebhookAdd(set *settings) *cobra.Command {
	var url string
	var prefixes []string
	after := int64(-1)
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Deliver events as signed CloudEvents to a URL, in order and at least once",
		Long: `Deliver events as CloudEvents 1.0 (structured JSON) to a URL, in order and at
least once. The secret that deliveries are signed with is shown once, now.`,
		Example: `  bloomery webhook add infosys --url https://infosys.example.org/bloomery
  bloomery webhook add security --url https://siem.example.org/in --type security. --type audit. --after 0`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := needed(cmd, "url"); err != nil {
				return err
			}
			request := &bloomeryv1.AddWebhookRequest{Webhook: &bloomeryv1.Webhook{Name: args[0], Url: url, TypePrefixes: prefixes}}
			if cmd.Flags().Changed("after") {
				if after < 0 {
					return usagef("--after %d: use a sequence number, 0 or more", after)
				}
				request.After = &after
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.webhooks.AddWebhook, request)
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				fmt.Fprintf(w, "webhook %s delivers events after number %d\n", answer.GetWebhook().GetName(), answer.GetWebhook().GetDelivered())
				fmt.Fprintf(w, "secret (base64, shown once): %s\n", answer.GetSecret())
			})
		},
	}
	cmd.Flags().StringVar(&url, "url", "", "where to: https, or http with a loopback or private address")
	cmd.Flags().StringArrayVar(&prefixes, "type", nil, "only events whose type starts with this, for example security.; may be repeated")
	cmd.Flags().Int64Var(&after, "after", -1, "begin after this sequence number, 0 for all events; those from now on when not given")
	return cmd
}

func newWebhookList(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List webhooks and how far each has come",
		Example: `  bloomery webhook list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.webhooks.ListWebhooks, &bloomeryv1.ListWebhooksRequest{})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				row(w, "NAME", "URL", "TYPES", "DELIVERED", "LAG", "DEAD", "FAILURES", "LAST ERROR")
				for _, h := range answer.GetWebhooks() {
					row(w, h.GetName(), h.GetUrl(), strings.Join(h.GetTypePrefixes(), ","), fmt.Sprint(h.GetDelivered()), fmt.Sprint(h.GetLag()),
						fmt.Sprint(h.GetDeadLetters()), fmt.Sprint(h.GetFailures()), h.GetLastError())
				}
			})
		},
	}
}

func newWebhookTest(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "test NAME",
		Short:   "Deliver one event of type webhook.test now and say what the receiver answered",
		Example: `  bloomery webhook test infosys`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.TestWebhookResponse, error) {
		return ask(ctx, c.webhooks.TestWebhook, &bloomeryv1.TestWebhookRequest{Name: name})
	}, func(w io.Writer, answer *bloomeryv1.TestWebhookResponse) error {
		err := set.printMessage(w, answer, func(w io.Writer) {
			if answer.GetError() == "" {
				fmt.Fprintf(w, "the receiver answered %d in %.3f s\n", answer.GetHttpStatus(), answer.GetSeconds())
			}
		})
		if answer.GetError() != "" {
			return errors.Join(err, fmt.Errorf("the delivery failed: %s", answer.GetError()))
		}
		return err
	})
}

func newWebhookRemove(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "rm NAME",
		Short:   "Remove a webhook and its dead letters",
		Example: `  bloomery webhook rm infosys`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.RemoveWebhookResponse, error) {
		return ask(ctx, c.webhooks.RemoveWebhook, &bloomeryv1.RemoveWebhookRequest{Name: name})
	}, func(w io.Writer, answer *bloomeryv1.RemoveWebhookResponse) error {
		return set.printMessage(w, answer, func(w io.Writer) { fmt.Fprintln(w, "removed") })
	})
}

func newWebhookDeadLetters(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "dead-letters NAME",
		Short:   "List deliveries that were given up, oldest first",
		Example: `  bloomery webhook dead-letters infosys`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.ListDeadLettersResponse, error) {
		all := &bloomeryv1.ListDeadLettersResponse{}
		request := &bloomeryv1.ListDeadLettersRequest{Webhook: name}
		for {
			page, err := ask(ctx, c.webhooks.ListDeadLetters, request)
			if err != nil {
				return nil, err
			}
			all.DeadLetters = append(all.DeadLetters, page.GetDeadLetters()...)
			request.PageToken = page.GetNextPageToken()
			if request.GetPageToken() == "" {
				return all, nil
			}
		}
	}, func(w io.Writer, answer *bloomeryv1.ListDeadLettersResponse) error {
		return set.printMessage(w, answer, func(w io.Writer) {
			row(w, "SEQUENCE", "TYPE", "TRIES", "GIVEN UP", "ERROR")
			for _, d := range answer.GetDeadLetters() {
				row(w, fmt.Sprint(d.GetEvent().GetSequence()), d.GetEvent().GetType(), fmt.Sprint(d.GetTries()), d.GetGivenUpAt().AsTime().Format(eventTime), d.GetError())
			}
		})
	})
}

func newWebhookRetry(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "retry NAME",
		Short:   "Try each dead letter of a webhook once more, now",
		Example: `  bloomery webhook retry infosys`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.RetryDeadLettersResponse, error) {
		return ask(ctx, c.webhooks.RetryDeadLetters, &bloomeryv1.RetryDeadLettersRequest{Webhook: name})
	}, func(w io.Writer, answer *bloomeryv1.RetryDeadLettersResponse) error {
		return set.printMessage(w, answer, func(w io.Writer) {
			fmt.Fprintf(w, "%d dead letters are tried again\n", answer.GetRetried())
		})
	})
}
