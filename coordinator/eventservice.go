package coordinator

import (
	"context"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// watchBatch is how many events are read at a time for a watcher.
const watchBatch = 500

func eventFilter(f *bloomeryv1.EventFilter, after int64, limit int) store.EventFilter {
	out := store.EventFilter{Machine: f.GetMachine(), JobID: f.GetJobId(), TypePrefix: f.GetTypePrefix(), After: after, Limit: limit}
	if f.GetSince() != nil {
		out.Since = f.GetSince().AsTime()
	}
	return out
}

// ListEvents implements bloomery.v1.EventService.
func (c *Coordinator) ListEvents(ctx context.Context, r *connect.Request[bloomeryv1.ListEventsRequest]) (*connect.Response[bloomeryv1.ListEventsResponse], error) {
	size, err := pageSize(r.Msg.GetPageSize(), maxPage)
	if err != nil {
		return nil, err
	}
	events, next, err := c.readEvents(ctx, eventFilter(r.Msg.GetFilter(), r.Msg.GetAfter(), size+1))
	if err != nil {
		return nil, err
	}
	response := &bloomeryv1.ListEventsResponse{Events: events, NextAfter: next}
	if len(events) > size {
		response.Events = events[:size]
		response.NextAfter = events[size-1].GetSequence()
	}
	return connect.NewResponse(response), nil
}

// WatchEvents implements bloomery.v1.EventService: what is stored first, then what comes, in the order of the store.
func (c *Coordinator) WatchEvents(ctx context.Context, r *connect.Request[bloomeryv1.WatchEventsRequest], stream *connect.ServerStream[bloomeryv1.WatchEventsResponse]) error {
	wake, stop := c.hub.subscribe("events")
	defer stop()
	after := r.Msg.GetAfter()
	for {
		events, next, err := c.readEvents(ctx, eventFilter(r.Msg.GetFilter(), after, watchBatch))
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := stream.Send(&bloomeryv1.WatchEventsResponse{Event: e}); err != nil {
				return err
			}
			after = e.GetSequence()
		}
		if next > 0 {
			after = next
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-time.After(c.config.Timing.Tick):
		}
	}
}

// ListEventTypes implements bloomery.v1.EventService.
func (c *Coordinator) ListEventTypes(context.Context, *connect.Request[bloomeryv1.ListEventTypesRequest]) (*connect.Response[bloomeryv1.ListEventTypesResponse], error) {
	response := &bloomeryv1.ListEventTypesResponse{}
	for _, t := range EventTypes() {
		message := &bloomeryv1.EventType{Type: t.Type, Severity: t.Severity, Description: t.Description, Open: t.Open}
		for _, f := range t.Fields {
			message.Fields = append(message.Fields, &bloomeryv1.EventField{Name: f.Name, Kind: f.Kind, Description: f.Description})
		}
		response.Types = append(response.Types, message)
	}
	return connect.NewResponse(response), nil
}

// VerifyArchive implements bloomery.v1.EventService.
func (c *Coordinator) VerifyArchive(ctx context.Context, _ *connect.Request[bloomeryv1.VerifyArchiveRequest]) (*connect.Response[bloomeryv1.VerifyArchiveResponse], error) {
	state, err := c.verifyArchive(ctx)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.VerifyArchiveResponse{Node: c.config.Node, Segments: state.segments, Events: state.events, First: state.first, Last: state.last, Problems: state.problems}), nil
}
