package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
)

// listing is a list that one rack answers, or all racks of a fleet together.
type listing[A, I proto.Message] struct {
	// one and many are JSON's names of an item and of the list: machine, machines.
	one, many string
	fetch     func(ctx context.Context, c *client) (A, error)
	items     func(A) []I
	// columns is asked after the answers are there.
	columns func() []column[I]
	// whole says that no cell of a table is cut, because the last column says in words what matters.
	whole bool
	// compare merges the racks' lists.
	compare func(a, b I) int
	// warnings and judge say what is wrong with a fleet's rack that did answer; either may be nil.
	warnings func(A) []string
	judge    func(A) error
}

// inRack is an item with the rack that it is in.
type inRack[I any] struct {
	rack string
	item I
}

// run asks and prints; in is nil for the one rack of the configuration.
func (l listing[A, I]) run(cmd *cobra.Command, set *settings, in *fleetFlags) error {
	if in != nil {
		return l.runFleet(cmd, set, in)
	}
	c, err := set.connect()
	if err != nil {
		return err
	}
	answer, err := l.fetch(cmd.Context(), c)
	if err != nil {
		return err
	}
	w := cmd.OutOrStdout()
	switch set.output {
	case "json", "yaml":
		return set.printMessage(w, answer, nil)
	}
	return l.writeRows(w, set, cells(l.columns(), l.items(answer)))
}

// writeRows writes the list in one of the formats that have rows.
func (l listing[A, I]) writeRows(w io.Writer, set *settings, rows [][]string) error {
	switch {
	case set.output == "csv":
		return writeCSV(w, rows)
	case set.output == "wide" || l.whole:
		return writeTable(w, rows, 0)
	}
	return writeTable(w, rows, tableWidth)
}

// runFleet asks every rack at once. Whatever racks answer is shown; that some did not is in the output, on standard error and in the exit code.
func (l listing[A, I]) runFleet(cmd *cobra.Command, set *settings, in *fleetFlags) error {
	racks, err := in.racks()
	if err != nil {
		return err
	}
	answers, errs := askRacks(cmd.Context(), racks, in.timeout, l.fetch)
	var all []inRack[I]
	for _, rack := range racks {
		if answer, ok := answers[rack.Name]; ok {
			for _, item := range l.items(answer) {
				all = append(all, inRack[I]{rack.Name, item})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b inRack[I]) int { return l.compare(a.item, b.item) })
	w := cmd.OutOrStdout()
	warnings := l.fleetWarnings(answers)
	switch set.output {
	case "json", "yaml":
		err = l.printFleet(w, set, all, errs, warnings)
	default:
		err = l.writeRows(w, set, cells(l.fleetColumns(), all))
	}
	if err != nil {
		return err
	}
	var failures []error
	for _, rack := range racks {
		if text, ok := errs[rack.Name]; ok {
			fmt.Fprintf(cmd.ErrOrStderr(), "rack %s: %s\n", rack.Name, text)
		}
		for _, text := range warnings[rack.Name] {
			fmt.Fprintf(cmd.ErrOrStderr(), "rack %s: %s\n", rack.Name, plain(text))
		}
		if answer, ok := answers[rack.Name]; ok && l.judge != nil {
			if err := l.judge(answer); err != nil {
				failures = append(failures, fmt.Errorf("rack %s: %w", rack.Name, err))
			}
		}
	}
	if len(errs) > 0 {
		failures = append(failures, fmt.Errorf("%d of %d racks did not answer: the list is partial", len(errs), len(racks)))
	}
	return errors.Join(failures...)
}

// fleetWarnings gathers by rack what is not as it should be.
func (l listing[A, I]) fleetWarnings(answers map[string]A) map[string][]string {
	all := map[string][]string{}
	for rack, answer := range answers {
		if l.warnings == nil {
			break
		}
		if texts := l.warnings(answer); len(texts) > 0 {
			all[rack] = texts
		}
	}
	return all
}

func (l listing[A, I]) fleetColumns() []column[inRack[I]] {
	columns := []column[inRack[I]]{{"rack", "RACK", func(i inRack[I]) string { return i.rack }}}
	for _, c := range l.columns() {
		columns = append(columns, column[inRack[I]]{c.name, c.header, func(i inRack[I]) string { return c.value(i.item) }})
	}
	return columns
}

// printFleet wraps each item, because a machine has a field named rack of its own.
func (l listing[A, I]) printFleet(w io.Writer, set *settings, all []inRack[I], errs map[string]string, warnings map[string][]string) error {
	items := []any{}
	for _, i := range all {
		text, err := messageJSON(i.item)
		if err != nil {
			return err
		}
		items = append(items, map[string]any{"rack": i.rack, l.one: json.RawMessage(text)})
	}
	value := map[string]any{l.many: items, "partial": len(errs) > 0, "errors": errs}
	if l.warnings != nil {
		value["warnings"] = warnings
	}
	return set.printValue(w, value, nil)
}
