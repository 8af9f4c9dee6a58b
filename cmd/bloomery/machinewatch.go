package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// watchMachines shows what matches and then what changes, until the context ends, which is no error.
func (s *settings) watchMachines(cmd *cobra.Command, filter *bloomeryv1.MachineFilter, columns []machineColumn) error {
	if s.output == "csv" {
		return usagef("--watch does not go with -o csv: use table, wide, json or yaml")
	}
	c, err := s.connect()
	if err != nil {
		return err
	}
	shown := &shownMachines{set: s, w: cmd.OutOrStdout(), columns: columns, known: map[string]*bloomeryv1.Machine{}}
	err = keepWatching(cmd.Context(), func(ctx context.Context, heard func()) (bool, error) {
		stream, err := c.machines.WatchMachines(ctx, connect.NewRequest(&bloomeryv1.WatchMachinesRequest{Filter: filter}))
		if err != nil {
			return false, err
		}
		defer stream.Close()
		shown.begin()
		for stream.Receive() {
			heard()
			if err := shown.apply(stream.Msg()); err != nil {
				return true, err
			}
		}
		return false, stream.Err()
	})
	if cmd.Context().Err() != nil {
		return shown.err
	}
	if err == nil {
		err = shown.err
	}
	return err
}

// shownMachines remembers what was printed: a watch that is opened again begins with everything, of which only what differs is news.
type shownMachines struct {
	set     *settings
	w       io.Writer
	columns []machineColumn
	known   map[string]*bloomeryv1.Machine
	// first holds a new watch's machines until all are there; nil afterwards.
	first map[string]*bloomeryv1.Machine
	// width is what the rows so far need; columns grow with what comes.
	width []int
	err   error
}

func (s *shownMachines) begin() { s.first = map[string]*bloomeryv1.Machine{} }

func (s *shownMachines) apply(change *bloomeryv1.WatchMachinesResponse) error {
	switch {
	case change.GetMachine() != nil && s.first != nil:
		s.first[change.GetMachine().GetName()] = change.GetMachine()
	case change.GetMachine() != nil:
		s.show(change.GetMachine())
	case change.GetComplete():
		s.complete()
	case s.known[change.GetRemoved()] != nil:
		s.remove(change.GetRemoved())
	}
	return s.err
}

// complete prints what is new of a watch's beginning.
func (s *shownMachines) complete() {
	names := slices.Sorted(maps.Keys(s.first))
	if s.width == nil {
		var all []*bloomeryv1.Machine
		for _, name := range names {
			all = append(all, s.first[name])
		}
		rows := cells(s.columns, all)
		for _, row := range rows {
			s.width = measure(s.width, row)
		}
		s.line(rows[0])
	}
	for _, name := range slices.Sorted(maps.Keys(s.known)) {
		if s.first[name] == nil {
			s.remove(name)
		}
	}
	for _, name := range names {
		s.show(s.first[name])
	}
	s.first = nil
}

func (s *shownMachines) show(m *bloomeryv1.Machine) {
	if before := s.known[m.GetName()]; before != nil && proto.Equal(before, m) {
		return
	}
	s.known[m.GetName()] = m
	if s.document(&bloomeryv1.WatchMachinesResponse{Change: &bloomeryv1.WatchMachinesResponse_Machine{Machine: m}}) {
		return
	}
	s.line(cells(s.columns, []*bloomeryv1.Machine{m})[1])
}

func (s *shownMachines) remove(name string) {
	delete(s.known, name)
	if s.document(&bloomeryv1.WatchMachinesResponse{Change: &bloomeryv1.WatchMachinesResponse_Removed{Removed: name}}) || s.err != nil {
		return
	}
	_, s.err = fmt.Fprintf(s.w, "%s is not listed any more\n", plain(name))
}

// document prints a change as JSON or YAML; false for a table.
func (s *shownMachines) document(change *bloomeryv1.WatchMachinesResponse) bool {
	if s.set.output != "json" && s.set.output != "yaml" {
		return false
	}
	if s.set.output == "yaml" && s.err == nil {
		_, s.err = fmt.Fprintln(s.w, "---")
	}
	if s.err == nil {
		s.err = s.set.printMessage(s.w, change, nil)
	}
	return true
}

func (s *shownMachines) line(row []string) {
	if s.set.output == "json" || s.set.output == "yaml" || s.err != nil {
		return
	}
	limit := tableWidth
	if s.set.output == "wide" {
		limit = 0
	}
	s.width = measure(s.width, row)
	width := fit(s.width, cells[*bloomeryv1.Machine](s.columns, nil)[0], limit)
	_, s.err = fmt.Fprintln(s.w, tableLine(row, width))
}
