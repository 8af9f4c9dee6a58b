package main

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/images"
)

func (f *fakeCoordinator) ListImageKeys(context.Context, *connect.Request[bloomeryv1.ListImageKeysRequest]) (*connect.Response[bloomeryv1.ListImageKeysResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return connect.NewResponse(&bloomeryv1.ListImageKeysResponse{Keys: f.imageKeys}), nil
}

func (f *fakeCoordinator) AddImageKey(_ context.Context, r *connect.Request[bloomeryv1.AddImageKeyRequest]) (*connect.Response[bloomeryv1.AddImageKeyResponse], error) {
	var key images.PublicKey
	if err := key.UnmarshalText([]byte(r.Msg.GetPublicKey())); err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	k := &bloomeryv1.ImageKey{Id: images.KeyID(key), PublicKey: key.String(), AddedBy: "anna", AddedAt: timestamppb.Now()}
	f.imageKeys = append(f.imageKeys, k)
	return connect.NewResponse(&bloomeryv1.AddImageKeyResponse{Key: k}), nil
}

// RevokeImageKey refuses the only key.
func (f *fakeCoordinator) RevokeImageKey(_ context.Context, r *connect.Request[bloomeryv1.RevokeImageKeyRequest]) (*connect.Response[bloomeryv1.RevokeImageKeyResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range f.imageKeys {
		if k.GetId() == r.Msg.GetId() && len(f.imageKeys) > 1 {
			k.RevokedAt, k.RevokedBy = timestamppb.Now(), "anna"
			return connect.NewResponse(&bloomeryv1.RevokeImageKeyResponse{Key: k}), nil
		}
	}
	return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("it is the last one"))
}
