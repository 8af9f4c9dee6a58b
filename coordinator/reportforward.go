package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/internal/pki"
)

// A transaction of a coordinator that does not lead the database is a trip over the network for each statement, during which no
// other may write; and nobody queues for the database, so that coordinators that all write keep each other waiting. What is reported most
// of the time therefore goes to the leader, which stores it in the same groups as its own. It is a shortcut only: where it fails, the
// coordinator writes by itself, and a report that was stored both times is stored once.

// forwardTimeout bounds the leader's answer to a group; without it the coordinator writes by itself.
const forwardTimeout = 3 * time.Second

// leader is the line to the coordinator that leads the database.
type leader struct {
	mu     sync.Mutex
	key    string
	client bloomeryv1connect.NodeServiceClient
	done   func()
}

// line returns a client of the leader; false when this coordinator leads itself, or does not know who does.
func (c *Coordinator) line() (bloomeryv1connect.NodeServiceClient, bool) {
	address := c.Store.Leader()
	if address == "" || address == c.Store.Address() || c.roster == nil {
		return nil, false
	}
	for _, n := range c.others() {
		if n.Address != address {
			continue
		}
		l := c.leader
		l.mu.Lock()
		defer l.mu.Unlock()
		if key := fmt.Sprint(n.Name, n.Address, n.Joined, n.API); key != l.key {
			if l.done != nil {
				l.done()
			}
			l.key = key
			l.client, l.done = c.peer(n)
		}
		return l.client, true
	}
	return nil, false
}

// storeOrForward stores a group at the leader if that is another coordinator, and here otherwise.
func (c *Coordinator) storeOrForward(ctx context.Context, group []*reportCall) {
	if client, ok := c.line(); ok {
		err := forward(ctx, client, group)
		if err == nil {
			return
		}
		c.Logger.Warn("reports are stored without the leader's help", "calls", len(group), "error", err)
	}
	c.storeGroup(ctx, group)
}

func forward(ctx context.Context, client bloomeryv1connect.NodeServiceClient, group []*reportCall) error {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	request := &bloomeryv1.StoreReportsRequest{}
	for _, call := range group {
		request.Calls = append(request.Calls, &bloomeryv1.AgentReports{
			Machine: call.who.Name, Certificate: call.who.Certificate, From: call.who.from.String(), BootId: call.bootID, Reports: call.reports})
	}
	response, err := client.StoreReports(ctx, connect.NewRequest(request))
	if err != nil {
		return err
	}
	results := response.Msg.GetResults()
	if len(results) != len(group) {
		return fmt.Errorf("%d results for %d calls", len(results), len(group))
	}
	for i, call := range group {
		call.acknowledged, call.err = results[i].GetAcknowledged(), nil
		switch {
		case results[i].GetAlienJob() != "":
			call.err = &alienJob{results[i].GetAlienJob()}
		case results[i].GetError() != "":
			call.err = connect.NewError(connect.CodeUnavailable, errors.New(results[i].GetError()))
		}
	}
	return nil
}

// StoreReports implements bloomeryv1connect.NodeServiceHandler. Another coordinator has checked who the agents are; what they say is checked
// again. It never passes on what was passed to it.
func (c *Coordinator) StoreReports(ctx context.Context, r *connect.Request[bloomeryv1.StoreReportsRequest]) (*connect.Response[bloomeryv1.StoreReportsResponse], error) {
	if n := len(r.Msg.GetCalls()); n == 0 || n > groupReports {
		return nil, invalid("calls", "OUT_OF_RANGE", "%d calls: want 1 to %d", n, groupReports)
	}
	if !c.Store.Leading() {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("this coordinator does not lead the database"))
	}
	calls := make([]*reportCall, 0, len(r.Msg.GetCalls()))
	for i, call := range r.Msg.GetCalls() {
		if len(call.GetReports()) > 0 { // else it says that the agent was heard
			if err := checkReports(&bloomeryv1.ReportRequest{BootId: call.GetBootId(), Reports: call.GetReports()}); err != nil {
				return nil, err
			}
		}
		from, err := netip.ParseAddr(call.GetFrom())
		if err != nil {
			return nil, invalid(fmt.Sprintf("calls[%d].from", i), "ADDRESS_INVALID", "%v", err)
		}
		calls = append(calls, &reportCall{bootID: call.GetBootId(), reports: call.GetReports(),
			who: caller{Identity: pki.Identity{Role: pki.RoleAgent, Name: call.GetMachine(), Certificate: call.GetCertificate()}, from: from, outside: true}})
	}
	failures := make([]error, len(calls))
	var wg sync.WaitGroup
	for i, call := range calls {
		wg.Go(func() { failures[i] = c.committer.submit(ctx, call, c.storeGroup) })
	}
	wg.Wait()
	response := &bloomeryv1.StoreReportsResponse{}
	for i, call := range calls {
		result := &bloomeryv1.StoredReports{}
		var alien *alienJob
		switch {
		case errors.As(failures[i], &alien):
			result.AlienJob = alien.id
		case failures[i] != nil: // the call may be on its way into the store still
			result.Error = failures[i].Error()
		default:
			result.Acknowledged = call.acknowledged
		}
		response.Results = append(response.Results, result)
	}
	return connect.NewResponse(response), nil
}
