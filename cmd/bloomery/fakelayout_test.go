package main

import (
	"context"
	"encoding/json"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/partition/layout"
)

// storage is a machine with two NVMe disks at its last inventory.
func storage() (*bloomeryv1.Machine, error) {
	disk := func(name, serial string) any {
		return map[string]any{"name": name, "path": "/dev/" + name, "serial": serial, "size_bytes": 1920383410176, "logical_sector": 512, "physical_sector": 4096,
			"rotational": false, "transport": "nvme", "removable": false, "read_only": false, "numa": 0}
	}
	inventory, err := structpb.NewStruct(map[string]any{
		"disks": []any{disk("nvme0n1", "S1"), disk("nvme1n1", "S2")}, "bios": map[string]any{"uefi": true}, "tpm": map[string]any{"present": false},
	})
	return &bloomeryv1.Machine{Name: "stor1", Status: bloomeryv1.MachineStatus_MACHINE_STATUS_AVAILABLE, Inventory: inventory}, err
}

func (f *fakeCoordinator) GetImage(_ context.Context, r *connect.Request[bloomeryv1.GetImageRequest]) (*connect.Response[bloomeryv1.GetImageResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	image, ok := f.images[r.Msg.GetName()]
	if !ok {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("image "+r.Msg.GetName()+" is not in this rack's store"))
	}
	return connect.NewResponse(&bloomeryv1.GetImageResponse{Image: image, Manifest: f.manifests[r.Msg.GetName()]}), nil
}

// PlanInstall plans the layout onto stor1's disks; the secret "disk" must be what the test's file holds.
func (f *fakeCoordinator) PlanInstall(_ context.Context, r *connect.Request[bloomeryv1.PlanInstallRequest]) (*connect.Response[bloomeryv1.PlanInstallResponse], error) {
	spec := r.Msg.GetSpec()
	answer := &bloomeryv1.PlanInstallResponse{Steps: []*bloomeryv1.Step{
		{Spec: &bloomeryv1.Step_Netboot{Netboot: &bloomeryv1.NetbootStep{}}},
		{Spec: &bloomeryv1.Step_Wipe{Wipe: &bloomeryv1.WipeStep{Disk: &bloomeryv1.DiskRef{Serial: "S1"}}}},
	}}
	if len(spec.GetLayout()) == 0 {
		return connect.NewResponse(answer), nil
	}
	if string(spec.GetSecrets()["disk"]) != "sesame open" {
		return nil, fieldErrors("wrong", &bloomeryv1.FieldError{Field: "spec.secrets[disk]", Reason: "REQUIRED", Message: "give it"},
			&bloomeryv1.FieldError{Field: "spec.layout", Reason: "INVALID", Message: "and another"})
	}
	plan, err := plannedForStorage(spec.GetLayout())
	if err != nil {
		return nil, err
	}
	answer.Plan = plan
	return connect.NewResponse(answer), nil
}

func (f *fakeCoordinator) GetJobPlan(_ context.Context, r *connect.Request[bloomeryv1.GetJobPlanRequest]) (*connect.Response[bloomeryv1.GetJobPlanResponse], error) {
	if r.Msg.GetId() != "job-stor1" {
		return nil, fieldErrors("wrong", &bloomeryv1.FieldError{Field: "id", Reason: "NO_PLAN", Message: "job " + r.Msg.GetId() + " has no plan of disks"})
	}
	text, err := json.Marshal(layout.Default())
	if err != nil {
		return nil, err
	}
	plan, err := plannedForStorage(text)
	return connect.NewResponse(&bloomeryv1.GetJobPlanResponse{Plan: plan}), err
}

func plannedForStorage(text []byte) ([]byte, error) {
	l, err := layout.Parse(text)
	if err != nil {
		return nil, err
	}
	m, err := storage()
	if err != nil {
		return nil, err
	}
	data, err := m.GetInventory().MarshalJSON()
	if err != nil {
		return nil, err
	}
	hardware, err := decodeInventory(data)
	if err != nil {
		return nil, err
	}
	plan, err := layout.MakePlan(l, hardware.Disks, layout.Target{UEFI: true})
	if err != nil {
		return nil, err
	}
	return plan.Encode()
}
