package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func newViewCommand(set *settings) *cobra.Command {
	run := newViewRun(set, nil)
	run.AddCommand(newViewList(set), newViewShow(set), newViewSave(set), newViewRemove(set))
	return run
}

// newViewRun lists the machines that a view chooses.
func newViewRun(set *settings, in *fleetFlags) *cobra.Command {
	var names []string
	cmd := &cobra.Command{
		Use:   "view NAME",
		Short: "List the machines that a team's view chooses",
		Long: `A view is a filter with a name that everyone in the rack can use. Four are always there: hardware (faulty
machines and why), anti-ddos (what that team has locked), available and running.`,
		Example: `  bloomery view hardware
  bloomery view running -o csv > running.csv`,
		Annotations: rowFormats(),
		Args:        cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && in == nil {
				return cmd.Help()
			}
			if err := exactArgs(1)(cmd, args); err != nil {
				return err
			}
			asked, err := chooseColumns(names)
			if err != nil {
				return err
			}
			used := &usedView{}
			l := machineListing(func(ctx context.Context, c *client) (*bloomeryv1.ListMachinesResponse, error) {
				v, err := findView(ctx, c, args[0])
				if err != nil {
					return nil, err
				}
				used.set(v)
				return allMachines(ctx, c, v.GetFilter(), v.GetOrderBy())
			}, "", func() []machineColumn { return shownColumns(set.output, asked, used.get().GetColumns()) })
			l.compare = func(a, b *bloomeryv1.Machine) int { return compareMachines(used.get().GetOrderBy())(a, b) }
			return l.run(cmd, set, in)
		},
	}
	cmd.Flags().StringSliceVar(&names, "columns", nil, "columns of a table or of csv instead of the view's")
	if in != nil {
		cmd.Example = `  bloomery fleet view hardware`
	}
	return cmd
}

// usedView is the view as a rack has it; each rack of a fleet has its own, and one of them says how all are shown.
type usedView struct {
	mu   sync.Mutex
	view *bloomeryv1.View
}

func (u *usedView) set(v *bloomeryv1.View) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.view = v
}

func (u *usedView) get() *bloomeryv1.View {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.view
}

func findView(ctx context.Context, c *client, name string) (*bloomeryv1.View, error) {
	answer, err := ask(ctx, c.machines.ListViews, &bloomeryv1.ListViewsRequest{})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, v := range answer.GetViews() {
		if v.GetName() == name {
			return v, nil
		}
		names = append(names, v.GetName())
	}
	return nil, fmt.Errorf("there is no view %q; there is %s", name, strings.Join(names, ", "))
}

func newViewList(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "list",
		Short:   "List the views",
		Example: `  bloomery view list`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.machines.ListViews, &bloomeryv1.ListViewsRequest{})
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				row(w, "NAME", "FILTER", "SORT", "DESCRIPTION")
				for _, v := range answer.GetViews() {
					row(w, v.GetName(), filterText(v.GetFilter()), v.GetOrderBy(), v.GetDescription())
				}
			})
		},
	}
}

// filterText writes a filter as the flags that make it.
func filterText(f *bloomeryv1.MachineFilter) string {
	var all []string
	add := func(flag, value string) {
		if value != "" {
			all = append(all, "--"+flag+" "+value)
		}
	}
	var statuses []string
	for _, s := range f.GetStatuses() {
		statuses = append(statuses, enumWord("MACHINE_STATUS_", s))
	}
	add("status", strings.Join(statuses, ","))
	add("team", f.GetLockTeam())
	if f.GetLocked() {
		all = append(all, "--locked")
	}
	for _, k := range slices.Sorted(maps.Keys(f.GetLabels())) {
		add("label", k+"="+f.GetLabels()[k])
	}
	add("model", f.GetModel())
	add("rack", f.GetRack())
	if f.GetUnit() != 0 {
		add("unit", fmt.Sprint(f.GetUnit()))
	}
	add("fault", f.GetFaultCode())
	add("image", f.GetImage())
	add("project", f.GetProject())
	add("search", f.GetSearch())
	return strings.Join(all, " ")
}

func (s *settings) printView(w io.Writer, v *bloomeryv1.View) error {
	return s.printMessage(w, v, func(w io.Writer) {
		row(w, "View", v.GetName())
		row(w, "Description", v.GetDescription())
		row(w, "Filter", filterText(v.GetFilter()))
		row(w, "Sort", v.GetOrderBy())
		row(w, "Columns", strings.Join(v.GetColumns(), ","))
		row(w, "Built in", fmt.Sprint(v.GetBuiltIn()))
	})
}

func newViewShow(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "show NAME",
		Short:   "Show what a view chooses",
		Example: `  bloomery view show hardware`,
	}, findView, set.printView)
}

func newViewSave(set *settings) *cobra.Command {
	f := &filterFlags{}
	description := ""
	cmd := &cobra.Command{
		Use:   "save NAME",
		Short: "Save a filter under a name for everyone in the rack",
		Example: `  bloomery view save old-disks --status available --label disks=old --sort rack \
    --columns name,position,model --description "to be replaced in spring"`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := f.read(); err != nil {
				return err
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.machines.SaveView, &bloomeryv1.SaveViewRequest{
				View: &bloomeryv1.View{Name: args[0], Filter: &f.filter, OrderBy: f.order, Columns: f.columns, Description: description},
			})
			if err != nil {
				return err
			}
			return set.printView(cmd.OutOrStdout(), answer.GetView())
		},
	}
	f.register(cmd.Flags())
	cmd.Flags().StringVar(&description, "description", "", "what it is for, on one line")
	return cmd
}

func newViewRemove(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "rm NAME",
		Short:   "Delete a saved view",
		Example: `  bloomery view rm old-disks`,
	}, func(ctx context.Context, c *client, name string) (*bloomeryv1.DeleteViewResponse, error) {
		return ask(ctx, c.machines.DeleteView, &bloomeryv1.DeleteViewRequest{Name: name})
	}, func(io.Writer, *bloomeryv1.DeleteViewResponse) error { return nil })
}
