package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// echoed is a list of one machine whose notes say what was asked.
func echoed(r *bloomeryv1.ListMachinesRequest) *bloomeryv1.ListMachinesResponse {
	f := r.GetFilter()
	return &bloomeryv1.ListMachinesResponse{Machines: []*bloomeryv1.Machine{{
		Name: "=echo()", Model: "\x1b[31mred", Notes: fmt.Sprintf("%v team=%s locked=%t %v model=%s rack=%s/%d fault=%s image=%s project=%s order=%s size=%d",
			f.GetStatuses(), f.GetLockTeam(), f.GetLocked(), f.GetLabels(), f.GetModel(), f.GetRack(), f.GetUnit(), f.GetFaultCode(), f.GetImage(), f.GetProject(), r.GetOrderBy(), r.GetPageSize()),
	}}}
}

func (f *fakeCoordinator) UpdateMachine(_ context.Context, r *connect.Request[bloomeryv1.UpdateMachineRequest]) (*connect.Response[bloomeryv1.UpdateMachineResponse], error) {
	name := r.Msg.GetMachine().GetName()
	m, err := f.machine(name)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if slices.Contains(r.Msg.GetUpdateMask().GetPaths(), "labels") {
		f.updates[name]++
		if f.updates[name] == 1 {
			m.Revision++
		}
	}
	if r.Msg.GetRevision() != 0 && r.Msg.GetRevision() != m.GetRevision() {
		return nil, connect.NewError(connect.CodeAborted, fmt.Errorf("machine %s was changed meanwhile", name))
	}
	m = proto.CloneOf(m)
	in := r.Msg.GetMachine()
	for _, path := range r.Msg.GetUpdateMask().GetPaths() {
		switch path {
		case "labels":
			m.Labels = in.GetLabels()
		case "rack":
			m.Rack = in.GetRack()
		case "unit":
			m.Unit = in.GetUnit()
		case "notes":
			m.Notes = in.GetNotes()
		case "bmc.address":
			m.Bmc = &bloomeryv1.BMC{Address: in.GetBmc().GetAddress()}
		case "bmc.password":
			if in.GetBmc().GetPassword() != "hunter2" {
				return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the BMC's password did not arrive"))
			}
		default:
			return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("the fake knows no field %s", path))
		}
	}
	m.Revision++
	f.machines[name] = m
	return connect.NewResponse(&bloomeryv1.UpdateMachineResponse{Machine: m}), nil
}

func (f *fakeCoordinator) DeleteMachine(_ context.Context, r *connect.Request[bloomeryv1.DeleteMachineRequest]) (*connect.Response[bloomeryv1.DeleteMachineResponse], error) {
	if _, err := f.machine(r.Msg.GetName()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.machines, r.Msg.GetName())
	return connect.NewResponse(&bloomeryv1.DeleteMachineResponse{}), nil
}

// WatchMachines is cut after its beginning the first time; the second time bad is gone and node1 changes, and the third is refused.
func (f *fakeCoordinator) WatchMachines(_ context.Context, r *connect.Request[bloomeryv1.WatchMachinesRequest], stream *connect.ServerStream[bloomeryv1.WatchMachinesResponse]) error {
	key := "machines " + r.Msg.GetFilter().GetProject()
	f.mu.Lock()
	f.watches[key]++
	turn := f.watches[key]
	f.mu.Unlock()
	machine := func(name string, status bloomeryv1.MachineStatus) *bloomeryv1.WatchMachinesResponse {
		return &bloomeryv1.WatchMachinesResponse{Change: &bloomeryv1.WatchMachinesResponse_Machine{Machine: &bloomeryv1.Machine{Name: name, Status: status}}}
	}
	available, running := bloomeryv1.MachineStatus_MACHINE_STATUS_AVAILABLE, bloomeryv1.MachineStatus_MACHINE_STATUS_RUNNING
	complete := &bloomeryv1.WatchMachinesResponse{Change: &bloomeryv1.WatchMachinesResponse_Complete{Complete: true}}
	removed := &bloomeryv1.WatchMachinesResponse{Change: &bloomeryv1.WatchMachinesResponse_Removed{Removed: "node1"}}
	var answers []*bloomeryv1.WatchMachinesResponse
	switch turn {
	case 1:
		answers = append(answers, machine("node1", available), machine("bad", available), complete)
	case 2:
		answers = append(answers, machine("node1", available), complete, machine("node1", running), removed)
	default:
		return connect.NewError(connect.CodeInvalidArgument, errors.New("no more"))
	}
	for _, a := range answers {
		if err := stream.Send(a); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeCoordinator) ListJobs(context.Context, *connect.Request[bloomeryv1.ListJobsRequest]) (*connect.Response[bloomeryv1.ListJobsResponse], error) {
	job := fakeJob("job-node1", bloomeryv1.JobKind_JOB_KIND_INSPECT, bloomeryv1.JobStatus_JOB_STATUS_DONE)
	return connect.NewResponse(&bloomeryv1.ListJobsResponse{Jobs: []*bloomeryv1.Job{job}}), nil
}

func inventoryTime(minute int) *timestamppb.Timestamp {
	return timestamppb.New(time.Date(2026, 1, 31, 12, minute, 0, 500, time.UTC))
}

func (f *fakeCoordinator) ListInventories(_ context.Context, r *connect.Request[bloomeryv1.ListInventoriesRequest]) (*connect.Response[bloomeryv1.ListInventoriesResponse], error) {
	return connect.NewResponse(&bloomeryv1.ListInventoriesResponse{Versions: []*bloomeryv1.InventoryVersion{
		{TakenAt: inventoryTime(30), SeenAt: inventoryTime(40), JobId: "job-2"}, {TakenAt: inventoryTime(0), SeenAt: inventoryTime(0), JobId: "job-1"},
	}}), nil
}

func (f *fakeCoordinator) DiffInventory(_ context.Context, r *connect.Request[bloomeryv1.DiffInventoryRequest]) (*connect.Response[bloomeryv1.DiffInventoryResponse], error) {
	answer := &bloomeryv1.DiffInventoryResponse{From: inventoryTime(0), To: inventoryTime(30)}
	if r.Msg.GetTo() != nil {
		answer.To = r.Msg.GetTo()
		return connect.NewResponse(answer), nil
	}
	answer.Changes = []*bloomeryv1.InventoryChange{
		{Kind: bloomeryv1.InventoryChange_KIND_REMOVED, Component: "memory", Location: "A2", Before: "64 GiB DDR5-4800 serial 2"},
		{Kind: bloomeryv1.InventoryChange_KIND_REPLACED, Component: "disk", Location: "pci-0000:00:17.0-ata-2", Before: "serial S2", After: "serial S3"},
	}
	return connect.NewResponse(answer), nil
}

func (f *fakeCoordinator) ListViews(context.Context, *connect.Request[bloomeryv1.ListViewsRequest]) (*connect.Response[bloomeryv1.ListViewsResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	views := append([]*bloomeryv1.View{{
		Name: "hardware", BuiltIn: true, Filter: &bloomeryv1.MachineFilter{Statuses: []bloomeryv1.MachineStatus{bloomeryv1.MachineStatus_MACHINE_STATUS_FAULTY}},
		Columns: []string{"name", "fault", "of-the-future"}, OrderBy: "-name",
	}}, f.views...)
	return connect.NewResponse(&bloomeryv1.ListViewsResponse{Views: views}), nil
}

func (f *fakeCoordinator) SaveView(_ context.Context, r *connect.Request[bloomeryv1.SaveViewRequest]) (*connect.Response[bloomeryv1.SaveViewResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.views = append(f.views, r.Msg.GetView())
	return connect.NewResponse(&bloomeryv1.SaveViewResponse{View: r.Msg.GetView()}), nil
}

func (f *fakeCoordinator) DeleteView(_ context.Context, r *connect.Request[bloomeryv1.DeleteViewRequest]) (*connect.Response[bloomeryv1.DeleteViewResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.views = slices.DeleteFunc(f.views, func(v *bloomeryv1.View) bool { return v.GetName() == r.Msg.GetName() })
	return connect.NewResponse(&bloomeryv1.DeleteViewResponse{}), nil
}
