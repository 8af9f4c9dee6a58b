package main

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
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
