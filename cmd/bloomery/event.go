package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// eventTime is how events' times are shown, in UTC.
const eventTime = "2006-01-02T15:04:05.000Z"

func newEventCommand(set *settings) *cobra.Command {
	return group("event", "Read what happened in the rack", newEventList(set), newEventWatch(set), newEventTypes(set))
}

// eventFlags are the filter of list and watch.
type eventFlags struct {
	machine, job, kind, since string
	after                     int64
}

func (f *eventFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.machine, "machine", "", "only events of this machine")
	flags.StringVar(&f.job, "job", "", "only events of this job")
	flags.StringVar(&f.kind, "type", "", "only events whose type starts with this, for example step or security")
	flags.StringVar(&f.since, "since", "", "only events since a time (RFC 3339) or so long ago (10m, 24h)")
	flags.Int64Var(&f.after, "after", 0, "only events after this sequence number")
}

func (f *eventFlags) filter(now time.Time) (*bloomeryv1.EventFilter, error) {
	filter := &bloomeryv1.EventFilter{Machine: f.machine, JobId: f.job, TypePrefix: f.kind}
	if f.since == "" {
		return filter, nil
	}
	if ago, err := time.ParseDuration(f.since); err == nil && ago > 0 {
		filter.Since = timestamppb.New(now.Add(-ago))
		return filter, nil
	}
	at, err := time.Parse(time.RFC3339, f.since)
	if err != nil {
		return nil, usagef("--since %q: use a time like 2026-01-31T12:00:00Z or a span like 10m", f.since)
	}
	filter.Since = timestamppb.New(at)
	return filter, nil
}

// open checks the flags and connects.
func (f *eventFlags) open(set *settings) (*client, *bloomeryv1.EventFilter, error) {
	filter, err := f.filter(time.Now())
	if err != nil {
		return nil, nil, err
	}
	if f.after < 0 {
		return nil, nil, usagef("--after %d: use a sequence number, 0 or more", f.after)
	}
	c, err := set.connect()
	return c, filter, err
}

func newEventList(set *settings) *cobra.Command {
	var f eventFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List events in the order in which they were stored",
		Example: `  bloomery event list --machine node1 --since 1h
  bloomery event list --type security -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, filter, err := f.open(set)
			if err != nil {
				return err
			}
			all := &bloomeryv1.ListEventsResponse{}
			request := &bloomeryv1.ListEventsRequest{Filter: filter, After: f.after}
			for {
				page, err := ask(cmd.Context(), c.events.ListEvents, request)
				if err != nil {
					return err
				}
				all.Events = append(all.Events, page.GetEvents()...)
				request.After = page.GetNextAfter()
				if request.After == 0 {
					break
				}
			}
			return set.printMessage(cmd.OutOrStdout(), all, func(w io.Writer) {
				row(w, "SEQUENCE", "TIME", "TYPE", "MACHINE", "MESSAGE")
				for _, event := range all.GetEvents() {
					row(w, fmt.Sprint(event.GetSequence()), event.GetTime().AsTime().Format(eventTime), event.GetType(), event.GetMachine(), event.GetMessage())
				}
			})
		},
	}
	f.register(cmd)
	return cmd
}

func newEventWatch(set *settings) *cobra.Command {
	var f eventFlags
	cmd := &cobra.Command{
		Use:     "watch",
		Short:   "Print events as they come; goes on where it was when the coordinator restarts",
		Example: `  bloomery event watch --machine node1`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, filter, err := f.open(set)
			if err != nil {
				return err
			}
			return set.watchEvents(cmd.Context(), c, filter, f.after, cmd.OutOrStdout())
		},
	}
	f.register(cmd)
	return cmd
}

func newEventTypes(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "types",
		Short:   "List the types of events that the coordinator records, with their data's fields",
		Example: `  bloomery event types -o json`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.events.ListEventTypes, &bloomeryv1.ListEventTypesRequest{})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				row(w, "TYPE", "SEVERITY", "FIELDS", "MEANING")
				for _, t := range answer.GetTypes() {
					var fields []string
					for _, f := range t.GetFields() {
						fields = append(fields, f.GetName())
					}
					row(w, t.GetType(), enumWord("SEVERITY_", t.GetSeverity()), strings.Join(fields, ","), t.GetDescription())
				}
			})
		},
	}
}

// watchEvents prints until the context ends, which is no error.
func (s *settings) watchEvents(ctx context.Context, c *client, filter *bloomeryv1.EventFilter, after int64, w io.Writer) error {
	var printErr error
	err := keepWatching(ctx, func(ctx context.Context, heard func()) (bool, error) {
		stream, err := c.events.WatchEvents(ctx, connect.NewRequest(&bloomeryv1.WatchEventsRequest{Filter: filter, After: after}))
		if err != nil {
			return false, err
		}
		defer stream.Close()
		for stream.Receive() {
			event := stream.Msg().GetEvent()
			after = event.GetSequence()
			heard()
			if printErr = s.printEvent(w, event); printErr != nil {
				return true, nil
			}
		}
		return false, stream.Err()
	})
	if ctx.Err() != nil {
		err = nil
	}
	return errors.Join(err, printErr)
}

// printEvent writes one line an event, or one JSON or YAML document.
func (s *settings) printEvent(w io.Writer, event *bloomeryv1.Event) error {
	switch s.output {
	case "yaml":
		if _, err := fmt.Fprintln(w, "---"); err != nil {
			return err
		}
		return s.printMessage(w, event, nil)
	case "json":
		return s.printMessage(w, event, nil)
	}
	_, err := fmt.Fprintf(w, "%s  %-24s %-12s %s\n", event.GetTime().AsTime().Format(eventTime), event.GetType(), event.GetMachine(), event.GetMessage())
	return err
}
