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
	return group("event", "Read what happened in the rack", newEventList(set, nil), newEventWatch(set), newEventTypes(set), newEventVerify(set))
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
	at, err := parseTime("since", f.since, now)
	if err != nil {
		return nil, err
	}
	filter.Since = timestamppb.New(at)
	return filter, nil
}

// check reads the flags.
func (f *eventFlags) check() (*bloomeryv1.EventFilter, error) {
	if f.after < 0 {
		return nil, usagef("--after %d: use a sequence number, 0 or more", f.after)
	}
	return f.filter(time.Now())
}

func newEventList(set *settings, in *fleetFlags) *cobra.Command {
	var f eventFlags
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List events in the order in which they were stored",
		Example: `  bloomery event list --machine node1 --since 1h
  bloomery event list --type security -o json`,
		Annotations: rowFormats(),
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.check()
			if err != nil {
				return err
			}
			return listing[*bloomeryv1.ListEventsResponse, *bloomeryv1.Event]{
				one: "event", many: "events", whole: true, items: (*bloomeryv1.ListEventsResponse).GetEvents, columns: eventColumns(set),
				fetch: func(ctx context.Context, c *client) (*bloomeryv1.ListEventsResponse, error) {
					return allEvents(ctx, c, filter, f.after)
				},
				compare: func(a, b *bloomeryv1.Event) int { return timeOf(a.GetTime()).Compare(timeOf(b.GetTime())) },
			}.run(cmd, set, in)
		},
	}
	f.register(cmd)
	if in != nil {
		cmd.Short = "List the events of all racks by their time"
		cmd.Example = `  bloomery fleet event list --type security --since 24h`
	}
	return cmd
}

// allEvents reads every page.
func allEvents(ctx context.Context, c *client, filter *bloomeryv1.EventFilter, after int64) (*bloomeryv1.ListEventsResponse, error) {
	all := &bloomeryv1.ListEventsResponse{}
	request := &bloomeryv1.ListEventsRequest{Filter: filter, After: after}
	for {
		page, err := ask(ctx, c.events.ListEvents, request)
		if err != nil {
			return nil, err
		}
		all.Events = append(all.Events, page.GetEvents()...)
		if request.After = page.GetNextAfter(); request.After == 0 {
			return all, nil
		}
	}
}

// eventColumns are a table's; wide and csv show who did it, from where and for which job too.
func eventColumns(set *settings) func() []column[*bloomeryv1.Event] {
	return func() []column[*bloomeryv1.Event] {
		columns := []column[*bloomeryv1.Event]{
			{"sequence", "SEQUENCE", func(e *bloomeryv1.Event) string { return fmt.Sprint(e.GetSequence()) }},
			{"time", "TIME", func(e *bloomeryv1.Event) string { return e.GetTime().AsTime().Format(eventTime) }},
			{"type", "TYPE", (*bloomeryv1.Event).GetType},
			{"machine", "MACHINE", (*bloomeryv1.Event).GetMachine},
		}
		if set.output == "wide" || set.output == "csv" {
			columns = append(columns,
				column[*bloomeryv1.Event]{"severity", "SEVERITY", func(e *bloomeryv1.Event) string { return enumWord("SEVERITY_", e.GetSeverity()) }},
				column[*bloomeryv1.Event]{"job", "JOB", (*bloomeryv1.Event).GetJobId},
				column[*bloomeryv1.Event]{"actor", "ACTOR", (*bloomeryv1.Event).GetActor},
				column[*bloomeryv1.Event]{"source", "SOURCE", (*bloomeryv1.Event).GetSource},
			)
		}
		return append(columns, column[*bloomeryv1.Event]{"message", "MESSAGE", (*bloomeryv1.Event).GetMessage})
	}
}

func newEventWatch(set *settings) *cobra.Command {
	var f eventFlags
	cmd := &cobra.Command{
		Use:     "watch",
		Short:   "Print events as they come; goes on where it was when the coordinator restarts",
		Example: `  bloomery event watch --machine node1`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.check()
			if err != nil {
				return err
			}
			c, err := set.connect()
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

func newEventVerify(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "verify",
		Short: "Read a coordinator's archive of events again and check its chain of checksums",
		Long: `Read the archive of older events of the coordinator that answers again, compare each
file with its checksum, and walk along the chain that links each file to all before
it. A corrupt file is fetched again from another coordinator, and is named. To check
every coordinator, name one server at a time in the configuration.`,
		Example: `  bloomery event verify`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), verifyTimeout)
			defer cancel()
			answer, err := c.events.VerifyArchive(ctx, connect.NewRequest(&bloomeryv1.VerifyArchiveRequest{}))
			if err != nil {
				return err
			}
			m := answer.Msg
			err = set.printMessage(cmd.OutOrStdout(), m, func(w io.Writer) {
				fmt.Fprintf(w, "coordinator %s: %d events in %d files, numbers %d to %d\n", m.GetNode(), m.GetEvents(), m.GetSegments(), m.GetFirst(), m.GetLast())
				for _, problem := range m.GetProblems() {
					fmt.Fprintln(w, problem)
				}
			})
			if n := len(m.GetProblems()); n > 0 {
				return errors.Join(err, fmt.Errorf("the archive had %d problem(s)", n))
			}
			return err
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
