package coordinator

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	maxViews       = 200
	maxColumns     = 32
	maxDescription = 256
)

var columnPattern = regexp.MustCompile(`^[a-z][a-z-]{0,31}$`)

// builtInViews are what the teams around a rack ask for most.
func builtInViews() []*bloomeryv1.View {
	status := func(all ...bloomeryv1.MachineStatus) *bloomeryv1.MachineFilter {
		return &bloomeryv1.MachineFilter{Statuses: all}
	}
	return []*bloomeryv1.View{
		{Name: "anti-ddos", BuiltIn: true, Description: "machines that team anti-ddos has locked", OrderBy: "rack",
			Filter: &bloomeryv1.MachineFilter{LockTeam: "anti-ddos"}, Columns: []string{"name", "status", "network", "address", "project", "locked-by", "locked-since", "reason"}},
		{Name: "available", BuiltIn: true, Description: "machines that can be installed", OrderBy: "model",
			Filter: status(available), Columns: []string{"name", "model", "position", "lock", "updated"}},
		{Name: "hardware", BuiltIn: true, Description: "faulty machines and why", OrderBy: "rack",
			Filter: status(faulty), Columns: []string{"name", "position", "model", "serial", "fault", "fault-message", "lock"}},
		{Name: "running", BuiltIn: true, Description: "machines in customers' hands", OrderBy: "project",
			Filter: status(running), Columns: []string{"name", "project", "network", "address", "image", "position", "lock"}},
	}
}

// reservedViews would hide the command line's own words.
func reservedViews() []string { return []string{"help", "list", "rm", "save", "show"} }

func findView(all []*bloomeryv1.View, name string) *bloomeryv1.View {
	if i := slices.IndexFunc(all, func(v *bloomeryv1.View) bool { return v.GetName() == name }); i >= 0 {
		return all[i]
	}
	return nil
}

func checkView(v *bloomeryv1.View) error {
	if err := pki.ValidName(v.GetName()); err != nil {
		return invalid("view.name", "NAME_INVALID", "%v", err)
	}
	if slices.Contains(reservedViews(), v.GetName()) {
		return invalid("view.name", "NAME_TAKEN", "%q is a command of \"bloomery view\": choose another name", v.GetName())
	}
	if findView(builtInViews(), v.GetName()) != nil {
		return invalid("view.name", "BUILT_IN", "view %s is part of the program: choose another name", v.GetName())
	}
	if err := checkFilter(v.GetFilter(), "view.filter"); err != nil {
		return err
	}
	if _, err := parseOrder(v.GetOrderBy()); err != nil {
		return err
	}
	if len(v.GetDescription()) > maxDescription || strings.ContainsFunc(v.GetDescription(), unicode.IsControl) {
		return invalid("view.description", "TEXT_INVALID", "want one line of at most %d bytes", maxDescription)
	}
	if len(v.GetColumns()) > maxColumns {
		return invalid("view.columns", "TOO_MANY", "%d are more than %d", len(v.GetColumns()), maxColumns)
	}
	for _, c := range v.GetColumns() {
		if !columnPattern.MatchString(c) {
			return invalid("view.columns", "COLUMN_INVALID", "%q: want lower-case letters and hyphens", clip(c))
		}
	}
	return nil
}

// ListViews implements bloomery.v1.MachineService.
func (c *Coordinator) ListViews(ctx context.Context, _ *connect.Request[bloomeryv1.ListViewsRequest]) (*connect.Response[bloomeryv1.ListViewsResponse], error) {
	response := &bloomeryv1.ListViewsResponse{}
	err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		response.Views, err = s.Views()
		return err
	})
	if err != nil {
		return nil, err
	}
	response.Views = append(response.Views, builtInViews()...)
	slices.SortFunc(response.Views, func(a, b *bloomeryv1.View) int { return strings.Compare(a.GetName(), b.GetName()) })
	return connect.NewResponse(response), nil
}

// SaveView implements bloomery.v1.MachineService.
func (c *Coordinator) SaveView(ctx context.Context, r *connect.Request[bloomeryv1.SaveViewRequest]) (*connect.Response[bloomeryv1.SaveViewResponse], error) {
	in := r.Msg.GetView()
	if err := checkView(in); err != nil {
		return nil, err
	}
	v := &bloomeryv1.View{Name: in.GetName(), Filter: in.GetFilter(), OrderBy: in.GetOrderBy(), Description: in.GetDescription(), Columns: in.GetColumns()}
	err := c.update(ctx, func(ch *change) error {
		views, err := ch.Views()
		if err != nil {
			return err
		}
		before := findView(views, v.GetName())
		if before == nil && len(views) >= maxViews {
			return notNow("view", "TOO_MANY", "the rack has %d views already: delete one", len(views))
		}
		if err := ch.SaveView(before, v); err != nil {
			return err
		}
		return ch.note(&bloomeryv1.Event{Type: "view.saved", Message: fmt.Sprintf("view %s was saved by %s", v.GetName(), callerOf(ctx).Name)}, map[string]any{"view": v.GetName()})
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.SaveViewResponse{View: v}), nil
}

// DeleteView implements bloomery.v1.MachineService.
func (c *Coordinator) DeleteView(ctx context.Context, r *connect.Request[bloomeryv1.DeleteViewRequest]) (*connect.Response[bloomeryv1.DeleteViewResponse], error) {
	name := clip(r.Msg.GetName())
	if findView(builtInViews(), name) != nil {
		return nil, invalid("name", "BUILT_IN", "view %s is part of the program and cannot be deleted", name)
	}
	err := c.update(ctx, func(ch *change) error {
		views, err := ch.Views()
		if err != nil {
			return err
		}
		v := findView(views, name)
		if v == nil {
			return fmt.Errorf("view %s: %w", name, store.ErrNotFound)
		}
		if err := ch.DeleteView(v); err != nil {
			return err
		}
		return ch.note(&bloomeryv1.Event{Type: "view.deleted", Message: fmt.Sprintf("view %s was deleted by %s", name, callerOf(ctx).Name)}, map[string]any{"view": name})
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.DeleteViewResponse{}), nil
}
