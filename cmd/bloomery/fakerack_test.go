package main

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// GetRackStatus shows a rack of three, of which c3 does not answer; once c2 was removed, it has no majority.
func (f *fakeCoordinator) GetRackStatus(context.Context, *connect.Request[bloomeryv1.GetRackStatusRequest]) (*connect.Response[bloomeryv1.GetRackStatusResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	end := timestamppb.New(time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC))
	voter := bloomeryv1.NodeRole_NODE_ROLE_VOTER
	answer := &bloomeryv1.GetRackStatusResponse{Rack: "rack1", AnsweredBy: "c1", Leader: "c1", Quorum: true, Nodes: []*bloomeryv1.Node{
		{Name: "c1", Role: voter, Leader: true, Reachable: true, Version: "v1.2.3", CertificateNotAfter: end, DiskFreeBytes: 3 << 30, DiskTotalBytes: 4 << 30, DatabaseBytes: 8 << 20, LogIndex: 1000},
		{Name: "c2", Role: voter, Reachable: true, Version: "0123456789abcdef0123456789abcdef01234567", CertificateNotAfter: end, LogIndex: 993, LogLag: 7, ClockOffsetSeconds: -0.25},
		{Name: "c3", Role: voter, Error: "connection refused"},
	}, Warnings: []string{"c3 does not answer: connection refused"}}
	if f.removed {
		answer.Quorum, answer.Leader, answer.Nodes = false, "", answer.GetNodes()[2:]
	}
	return connect.NewResponse(answer), nil
}

func (f *fakeCoordinator) CreateJoinToken(_ context.Context, r *connect.Request[bloomeryv1.CreateJoinTokenRequest]) (*connect.Response[bloomeryv1.CreateJoinTokenResponse], error) {
	if r.Msg.GetNode() == "c1" {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("coordinator c1 is in the rack"))
	}
	return connect.NewResponse(&bloomeryv1.CreateJoinTokenResponse{Token: "blj_secret", ExpiresAt: timestamppb.New(time.Date(2026, 1, 31, 13, 0, 0, 0, time.UTC))}), nil
}

func (f *fakeCoordinator) RemoveNode(_ context.Context, r *connect.Request[bloomeryv1.RemoveNodeRequest]) (*connect.Response[bloomeryv1.RemoveNodeResponse], error) {
	if r.Msg.GetName() == "c2" && !r.Msg.GetForce() {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("without c2, 1 of 2 voting coordinators answer"))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removed = f.removed || r.Msg.GetName() == "c2"
	return connect.NewResponse(&bloomeryv1.RemoveNodeResponse{}), nil
}
