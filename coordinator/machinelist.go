package coordinator

import (
	"context"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// ListMachines implements bloomery.v1.MachineService.
func (c *Coordinator) ListMachines(ctx context.Context, r *connect.Request[bloomeryv1.ListMachinesRequest]) (*connect.Response[bloomeryv1.ListMachinesResponse], error) {
	size, err := pageSize(r.Msg.GetPageSize(), defaultPage)
	if err != nil {
		return nil, err
	}
	filter := r.Msg.GetFilter()
	if err := checkFilter(filter, "filter"); err != nil {
		return nil, err
	}
	order, err := parseOrder(r.Msg.GetOrderBy())
	if err != nil {
		return nil, err
	}
	query, err := queryHash(filter, r.Msg.GetOrderBy())
	if err != nil {
		return nil, err
	}
	after, err := parseToken(r.Msg.GetPageToken(), query)
	if err != nil {
		return nil, err
	}
	var all []*bloomeryv1.Machine
	err = c.Store.View(ctx, func(s *store.Reader) (err error) {
		all, err = s.Machines()
		return err
	})
	if err != nil {
		return nil, err
	}
	response := &bloomeryv1.ListMachinesResponse{}
	var next *position
	response.Machines, next = page(all, filter, order, after, size)
	if next != nil {
		next.Query = query
		if response.NextPageToken, err = next.token(); err != nil {
			return nil, err
		}
	}
	return connect.NewResponse(response), nil
}

// WatchMachines implements bloomery.v1.MachineService. Whoever loses a watch opens another: it begins with all that matches.
func (c *Coordinator) WatchMachines(ctx context.Context, r *connect.Request[bloomeryv1.WatchMachinesRequest], stream *connect.ServerStream[bloomeryv1.WatchMachinesResponse]) error {
	if err := checkFilter(r.Msg.GetFilter(), "filter"); err != nil {
		return err
	}
	wake, stop := c.hub.subscribe("machines")
	defer stop()
	w := machineWatch{filter: r.Msg.GetFilter(), sent: map[string]bool{}}
	var at store.MachineChange
	var machines []*bloomeryv1.Machine
	err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		if at, err = s.LastMachineChange(); err != nil {
			return err
		}
		machines, err = s.Machines()
		return err
	})
	if err != nil {
		return err
	}
	answers := append(w.apply(machines, nil), &bloomeryv1.WatchMachinesResponse{Change: &bloomeryv1.WatchMachinesResponse_Complete{Complete: true}})
	for {
		for _, a := range answers {
			if err := stream.Send(a); err != nil {
				return err
			}
		}
		if err := pauseFor(ctx, watchEvery); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-time.After(c.config.Timing.Tick):
		}
		var removed []string
		var last store.MachineChange
		err := c.Store.View(ctx, func(s *store.Reader) (err error) {
			if last, err = s.LastMachineChange(); err != nil || last == at {
				return err
			}
			machines, removed, err = s.MachineChanges(at)
			return err
		})
		if err != nil {
			return err
		}
		answers = nil
		if last != at {
			answers, at = w.apply(machines, removed), last
		}
	}
}

// machineWatch remembers which machines a watcher was shown.
type machineWatch struct {
	filter *bloomeryv1.MachineFilter
	sent   map[string]bool
}

// apply returns what a watcher must hear of machines that changed and of names that are no more.
func (w *machineWatch) apply(changed []*bloomeryv1.Machine, removed []string) []*bloomeryv1.WatchMachinesResponse {
	var answers []*bloomeryv1.WatchMachinesResponse
	forget := func(name string) {
		if w.sent[name] {
			delete(w.sent, name)
			answers = append(answers, &bloomeryv1.WatchMachinesResponse{Change: &bloomeryv1.WatchMachinesResponse_Removed{Removed: name}})
		}
	}
	for _, name := range removed {
		forget(name)
	}
	for _, m := range changed {
		if !matches(w.filter, m) {
			forget(m.GetName())
			continue
		}
		w.sent[m.GetName()] = true
		answers = append(answers, &bloomeryv1.WatchMachinesResponse{Change: &bloomeryv1.WatchMachinesResponse_Machine{Machine: m}})
	}
	return answers
}
