package main

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/partition/wipe"
	"bloomery/partition/wipe/certificate"
)

// ListWipeCertificates gives two certificates, each in a page of its own.
func (f *fakeCoordinator) ListWipeCertificates(_ context.Context, r *connect.Request[bloomeryv1.ListWipeCertificatesRequest]) (*connect.Response[bloomeryv1.ListWipeCertificatesResponse], error) {
	if r.Msg.GetName() != "node1" {
		return nil, connect.NewError(connect.CodeNotFound, errors.New("there is no machine nobody"))
	}
	at := time.Date(2026, 1, 31, 12, 30, 0, 0, time.UTC)
	c := certificate.Certificate{ID: "j2-2", Disk: certificate.Disk{Serial: "S1"}, Successful: true, Wipe: wipe.Result{Method: wipe.MethodFormatErase, Sanitization: wipe.Purge}}
	next := "2"
	if r.Msg.GetPageToken() == "2" {
		at, next = at.Add(-30*time.Minute), ""
		c = certificate.Certificate{ID: "j1-2", Disk: certificate.Disk{Serial: "S2"}, Error: "input/output error", Wipe: wipe.Result{Method: wipe.MethodOverwrite, Sanitization: wipe.None}}
	}
	c.Format, c.Rack, c.Machine.Name, c.Coordinator, c.Wipe.Level, c.Wipe.Ended, c.Issued =
		certificate.Format, f.authority.Rack(), "node1", "coordinator-1", wipe.Erase, at, time.Now().UTC()
	document, err := certificate.Sign(c, f.authority.Server())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.ListWipeCertificatesResponse{NextPageToken: next, Certificates: []*bloomeryv1.WipeCertificate{{
		Id: c.ID, Machine: "node1", Disk: &bloomeryv1.DiskRef{Serial: c.Disk.Serial}, Level: string(c.Wipe.Level), Method: string(c.Wipe.Method),
		Sanitization: string(c.Wipe.Sanitization), Successful: c.Successful, EndedAt: timestamppb.New(at), Document: string(document),
	}}}), nil
}
