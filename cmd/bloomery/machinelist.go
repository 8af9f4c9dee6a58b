package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// filterFlags choose machines.
type filterFlags struct {
	filter   bloomeryv1.MachineFilter
	statuses []string
	order    string
	columns  []string
}

func (f *filterFlags) register(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.statuses, "status", nil, "only with one of these statuses: "+strings.Join(statusWords(), ", "))
	flags.StringVar(&f.filter.LockTeam, "team", "", "only what this team has locked")
	flags.BoolVar(&f.filter.Locked, "locked", false, "only what any team has locked")
	flags.StringToStringVar(&f.filter.Labels, "label", nil, "only with this label, key=value; may be repeated")
	flags.StringVar(&f.filter.Model, "model", "", "only of this model")
	flags.StringVar(&f.filter.Rack, "rack", "", "only in this rack, as the data centre calls it")
	flags.Int32Var(&f.filter.Unit, "unit", 0, "only at this rack unit")
	flags.StringVar(&f.filter.FaultCode, "fault", "", "only with this fault code")
	flags.StringVar(&f.filter.Image, "image", "", "only with this image installed")
	flags.StringVar(&f.filter.Project, "project", "", "only of this project")
	flags.StringVar(&f.filter.Search, "search", "", "only with this in the name, a serial, MAC, UUID or address")
	flags.StringVar(&f.order, "sort", "", "order: name, status, rack, model, project or updated; -updated turns it round")
	flags.StringSliceVar(&f.columns, "columns", nil, "columns of a table or of csv, for example name,fault,fault-message")
}

// read checks the flags.
func (f *filterFlags) read() (columns []machineColumn, err error) {
	f.filter.Statuses = nil
	for _, word := range f.statuses {
		number, ok := bloomeryv1.MachineStatus_value["MACHINE_STATUS_"+strings.ToUpper(word)]
		if !ok || number == 0 {
			return nil, usagef("--status %q: use one of %s", word, strings.Join(statusWords(), ", "))
		}
		f.filter.Statuses = append(f.filter.Statuses, bloomeryv1.MachineStatus(number))
	}
	if f.filter.GetUnit() < 0 {
		return nil, usagef("--unit %d: use a rack unit, from 1 at the bottom", f.filter.GetUnit())
	}
	return chooseColumns(f.columns)
}

func newMachineList(set *settings, in *fleetFlags) *cobra.Command {
	f := &filterFlags{}
	watch := false
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List machines",
		Example: `  bloomery machine list
  bloomery machine list --status faulty,retired --sort rack -o wide
  bloomery machine list --team hardware --label model=r650 -o json
  bloomery machine list --project acme -o csv > acme.csv
  bloomery machine list --status installing --watch`,
		Annotations: rowFormats(),
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			columns, err := f.read()
			if err != nil {
				return err
			}
			if watch {
				return set.watchMachines(cmd, &f.filter, shownColumns(set.output, columns, nil))
			}
			return machineListing(func(ctx context.Context, c *client) (*bloomeryv1.ListMachinesResponse, error) {
				return allMachines(ctx, c, &f.filter, f.order)
			}, f.order, func() []machineColumn { return shownColumns(set.output, columns, nil) }).run(cmd, set, in)
		},
	}
	f.register(cmd.Flags())
	if in == nil {
		cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on showing what changes")
	} else {
		cmd.Example = `  bloomery fleet machine list --status faulty --sort rack
  bloomery fleet machine list --only par1-a12,par1-a13 -o csv`
	}
	return cmd
}

func machineListing(fetch func(context.Context, *client) (*bloomeryv1.ListMachinesResponse, error), order string, columns func() []machineColumn) listing[*bloomeryv1.ListMachinesResponse, *bloomeryv1.Machine] {
	return listing[*bloomeryv1.ListMachinesResponse, *bloomeryv1.Machine]{
		one: "machine", many: "machines", fetch: fetch, items: (*bloomeryv1.ListMachinesResponse).GetMachines, columns: columns, compare: compareMachines(order),
	}
}

// allMachines reads every page.
func allMachines(ctx context.Context, c *client, filter *bloomeryv1.MachineFilter, order string) (*bloomeryv1.ListMachinesResponse, error) {
	all := &bloomeryv1.ListMachinesResponse{}
	request := &bloomeryv1.ListMachinesRequest{Filter: filter, OrderBy: order, PageSize: 1000}
	for {
		page, err := ask(ctx, c.machines.ListMachines, request)
		if err != nil {
			return nil, err
		}
		all.Machines = append(all.Machines, page.GetMachines()...)
		if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
			return all, nil
		}
	}
}

func statusWords() []string {
	var words []string
	for number := int32(1); ; number++ {
		if _, ok := bloomeryv1.MachineStatus_name[number]; !ok {
			return words
		}
		words = append(words, enumWord("MACHINE_STATUS_", bloomeryv1.MachineStatus(number)))
	}
}
