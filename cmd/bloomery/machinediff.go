package main

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func newMachineInventory(set *settings) *cobra.Command {
	return group("inventory", "Look at the history of a machine's hardware", newInventoryList(set))
}

func newInventoryList(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "list NAME",
		Short:   "List when a machine's hardware changed, newest first",
		Example: `  bloomery machine inventory list node1`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.machines.ListInventories, &bloomeryv1.ListInventoriesRequest{Name: args[0]})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				row(w, "TAKEN", "LAST SEEN", "JOB")
				for _, v := range answer.GetVersions() {
					row(w, secondText(v.GetTakenAt()), secondText(v.GetSeenAt()), v.GetJobId())
				}
			})
		},
	}
}

// secondText is a time that --from and --to take: rounded up to the second, since what was known then includes it.
func secondText(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Add(time.Second - 1).Truncate(time.Second).Format(time.RFC3339)
}

func newMachineDiff(set *settings) *cobra.Command {
	var from, to string
	cmd := &cobra.Command{
		Use:   "diff NAME",
		Short: "Show what changed between two inventories of a machine",
		Long: `Diff compares what a machine was made of at two times: by default its last inventory with the one before.
"machine inventory list" shows when they were taken. What differs from boot to boot (links, kernel names,
drivers) is left out.`,
		Example: `  bloomery machine diff node1
  bloomery machine diff node1 --from 720h
  bloomery machine diff node1 --from 2026-01-31T12:00:00Z --to 2026-03-01T00:00:00Z -o json`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			request := &bloomeryv1.DiffInventoryRequest{Name: args[0]}
			for _, t := range []struct {
				flag, text string
				into       **timestamppb.Timestamp
			}{{"from", from, &request.From}, {"to", to, &request.To}} {
				if t.text == "" {
					continue
				}
				at, err := parseTime(t.flag, t.text, time.Now())
				if err != nil {
					return err
				}
				*t.into = timestamppb.New(at)
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.machines.DiffInventory, request)
			if err != nil {
				return err
			}
			w := cmd.OutOrStdout()
			if set.output != "table" {
				return set.printMessage(w, answer, nil)
			}
			return printDiff(w, answer, inColour(w))
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "the earlier time (RFC 3339), or so long ago (720h)")
	cmd.Flags().StringVar(&to, "to", "", "the later time, likewise")
	return cmd
}

// parseTime reads a time or a span before now.
func parseTime(flag, text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago > 0 {
		return now.Add(-ago), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, usagef("--%s %q: use a time like 2026-01-31T12:00:00Z or a span like 10m", flag, text)
	}
	return at, nil
}

// inColour says whether what is written is read by a person at a terminal who does not mind colours (https://no-color.org).
func inColour(w io.Writer) bool {
	file, ok := w.(*os.File)
	return ok && term.IsTerminal(int(file.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func printDiff(w io.Writer, diff *bloomeryv1.DiffInventoryResponse, colour bool) error {
	if _, err := fmt.Fprintf(w, "from %s to %s\n", secondText(diff.GetFrom()), secondText(diff.GetTo())); err != nil {
		return err
	}
	if len(diff.GetChanges()) == 0 {
		_, err := fmt.Fprintln(w, "no change")
		return err
	}
	rows := [][]string{{"CHANGE", "COMPONENT", "WHERE", "BEFORE", "AFTER"}}
	for _, c := range diff.GetChanges() {
		rows = append(rows, []string{enumWord("KIND_", c.GetKind()), c.GetComponent(), c.GetLocation(), c.GetBefore(), c.GetAfter()})
	}
	// Serial numbers stand at the end of the cells, so nothing is cut.
	width := widths(rows, 0)
	for i, row := range rows {
		line := tableLine(row, width)
		if colour && i > 0 {
			line = paint(diff.GetChanges()[i-1].GetKind(), line)
		}
		if _, err := fmt.Fprintln(w, line); err != nil {
			return err
		}
	}
	return nil
}

// paint colours a line by ECMA-48 SGR: red for what is missing or was replaced, green for what came, yellow for the rest.
func paint(kind bloomeryv1.InventoryChange_Kind, line string) string {
	code := 33
	switch kind {
	case bloomeryv1.InventoryChange_KIND_REMOVED, bloomeryv1.InventoryChange_KIND_REPLACED:
		code = 31
	case bloomeryv1.InventoryChange_KIND_ADDED:
		code = 32
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", code, line)
}
