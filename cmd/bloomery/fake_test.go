package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/backup"
	"bloomery/images"
	"bloomery/internal/pki"
)

// fakeCoordinator answers as a coordinator would; jobs on machines named bad fail, watches are cut once.
type fakeCoordinator struct {
	bloomeryv1connect.UnimplementedMachineServiceHandler
	bloomeryv1connect.UnimplementedJobServiceHandler
	bloomeryv1connect.UnimplementedEventServiceHandler
	bloomeryv1connect.UnimplementedWebhookServiceHandler
	bloomeryv1connect.UnimplementedImageServiceHandler
	bloomeryv1connect.UnimplementedRackServiceHandler
	fakeAccess
	key images.PublicKey
	// removed says that c2 was taken out of the rack.
	removed bool

	mu        sync.Mutex
	machines  map[string]*bloomeryv1.Machine
	images    map[string]*bloomeryv1.Image
	imageKeys []*bloomeryv1.ImageKey
	// manifests of the images, by name.
	manifests map[string][]byte
	// received is what an upload that broke has brought, by the manifest's digest.
	received map[string]int64
	watches  map[string]int
	views    []*bloomeryv1.View
	// updates counts the updates of each machine; the first is refused as if somebody else had been quicker.
	updates map[string]int
}

// serveFake listens at a unix socket with the certificates in dir until the test ends.
func serveFake(t testing.TB, dir, socket string) error {
	authority, err := pki.LoadAuthority(dir)
	if err != nil {
		return err
	}
	key, err := images.LoadPublicKey(filepath.Join(dir, imagePublicKey))
	if err != nil {
		return err
	}
	f := &fakeCoordinator{fakeAccess: fakeAccess{authority: authority}, key: key, machines: map[string]*bloomeryv1.Machine{}, images: map[string]*bloomeryv1.Image{}, manifests: map[string][]byte{}, received: map[string]int64{}, watches: map[string]int{}, updates: map[string]int{}}
	for _, name := range []string{"node1", "bad"} {
		f.machines[name] = &bloomeryv1.Machine{Name: name, Status: bloomeryv1.MachineStatus_MACHINE_STATUS_AVAILABLE, Macs: []string{"52:54:00:00:00:01"}, Network: "provisioning"}
	}
	if f.machines["stor1"], err = storage(); err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle(bloomeryv1connect.NewMachineServiceHandler(f))
	mux.Handle(bloomeryv1connect.NewJobServiceHandler(f))
	mux.Handle(bloomeryv1connect.NewEventServiceHandler(f))
	mux.Handle(bloomeryv1connect.NewWebhookServiceHandler(f))
	mux.Handle(bloomeryv1connect.NewImageServiceHandler(f))
	mux.Handle(bloomeryv1connect.NewRackServiceHandler(f))
	mux.Handle(bloomeryv1connect.NewAccessServiceHandler(f))
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: asCaller(mux), TLSConfig: authority.ServerTLS(), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() {
		server.Close()
		if err := <-done; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("fake coordinator: %v", err)
		}
	})
	return nil
}

func (f *fakeCoordinator) machine(name string) (*bloomeryv1.Machine, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := f.machines[name]
	if !ok {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("machine %s is not in this rack", name))
	}
	return m, nil
}

func (f *fakeCoordinator) ListMachines(_ context.Context, r *connect.Request[bloomeryv1.ListMachinesRequest]) (*connect.Response[bloomeryv1.ListMachinesResponse], error) {
	if r.Msg.GetFilter().GetSearch() == "echo" {
		return connect.NewResponse(echoed(r.Msg)), nil
	}
	// Two pages, so that a client that reads only one is found out.
	name, next := "bad", "2"
	if r.Msg.GetPageToken() == next {
		name, next = "node1", ""
	}
	m, err := f.machine(name)
	return connect.NewResponse(&bloomeryv1.ListMachinesResponse{Machines: []*bloomeryv1.Machine{m}, NextPageToken: next}), err
}

func (f *fakeCoordinator) GetMachine(_ context.Context, r *connect.Request[bloomeryv1.GetMachineRequest]) (*connect.Response[bloomeryv1.GetMachineResponse], error) {
	m, err := f.machine(r.Msg.GetName())
	return connect.NewResponse(&bloomeryv1.GetMachineResponse{Machine: m}), err
}

func (f *fakeCoordinator) CreateMachine(_ context.Context, r *connect.Request[bloomeryv1.CreateMachineRequest]) (*connect.Response[bloomeryv1.CreateMachineResponse], error) {
	m := proto.Clone(r.Msg.GetMachine()).(*bloomeryv1.Machine)
	if len(m.GetMacs()) == 0 {
		return nil, fieldErrors("two fields are wrong", &bloomeryv1.FieldError{Field: "macs", Reason: "MAC_MISSING", Message: "name at least one"},
			&bloomeryv1.FieldError{Field: "uuid", Reason: "UUID_INVALID", Message: "want RFC 4122 text"})
	}
	if m.GetBmc().GetPassword() != "hunter2" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the BMC's password did not arrive"))
	}
	m.Bmc.Password = ""
	m.Status = bloomeryv1.MachineStatus_MACHINE_STATUS_DISCOVERED
	f.mu.Lock()
	defer f.mu.Unlock()
	f.machines[m.GetName()] = m
	return connect.NewResponse(&bloomeryv1.CreateMachineResponse{Machine: m}), nil
}

func fieldErrors(text string, fields ...*bloomeryv1.FieldError) error {
	err := connect.NewError(connect.CodeInvalidArgument, errors.New(text))
	for _, field := range fields {
		if detail, detailErr := connect.NewErrorDetail(field); detailErr == nil {
			err.AddDetail(detail)
		}
	}
	return err
}

func (f *fakeCoordinator) LockMachine(_ context.Context, r *connect.Request[bloomeryv1.LockMachineRequest]) (*connect.Response[bloomeryv1.LockMachineResponse], error) {
	m, err := f.machine(r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	m.Lock = &bloomeryv1.Lock{Team: r.Msg.GetTeam(), Reason: r.Msg.GetReason(), By: "admin"}
	if r.Msg.GetQuarantine() {
		m.Lock.Network, m.Network = m.Network, "quarantine"
	}
	return connect.NewResponse(&bloomeryv1.LockMachineResponse{Machine: m}), nil
}

func (f *fakeCoordinator) UnlockMachine(_ context.Context, r *connect.Request[bloomeryv1.UnlockMachineRequest]) (*connect.Response[bloomeryv1.UnlockMachineResponse], error) {
	m, err := f.machine(r.Msg.GetName())
	if err != nil {
		return nil, err
	}
	if m.GetLock().GetTeam() != r.Msg.GetTeam() {
		return nil, connect.NewError(connect.CodePermissionDenied, errors.New("another team's lock"))
	}
	if m.GetLock().GetNetwork() != "" && !r.Msg.GetKeepPort() {
		m.Network = m.GetLock().GetNetwork()
	}
	m.Lock = nil
	return connect.NewResponse(&bloomeryv1.UnlockMachineResponse{Machine: m}), nil
}

func (f *fakeCoordinator) PowerMachine(_ context.Context, r *connect.Request[bloomeryv1.PowerMachineRequest]) (*connect.Response[bloomeryv1.PowerMachineResponse], error) {
	return connect.NewResponse(&bloomeryv1.PowerMachineResponse{On: r.Msg.GetOperation() == bloomeryv1.PowerOperation_POWER_OPERATION_ON}), nil
}

func (f *fakeCoordinator) start(name string, kind bloomeryv1.JobKind) (*bloomeryv1.Job, error) {
	if _, err := f.machine(name); err != nil {
		return nil, err
	}
	return fakeJob("job-"+name, kind, bloomeryv1.JobStatus_JOB_STATUS_RUNNING), nil
}

func fakeJob(id string, kind bloomeryv1.JobKind, status bloomeryv1.JobStatus) *bloomeryv1.Job {
	now := timestamppb.New(time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC))
	step := &bloomeryv1.Step{Id: "s1", Status: bloomeryv1.StepStatus_STEP_STATUS_RUNNING, StartedAt: now, Spec: &bloomeryv1.Step_CheckDisks{CheckDisks: &bloomeryv1.CheckDisksStep{}}}
	job := &bloomeryv1.Job{Id: id, Machine: id[len("job-"):], Kind: kind, Status: status, Steps: []*bloomeryv1.Step{step}, CreatedAt: now}
	switch status {
	case bloomeryv1.JobStatus_JOB_STATUS_DONE:
		step.Status, step.FinishedAt, job.FinishedAt, job.StepIndex = bloomeryv1.StepStatus_STEP_STATUS_DONE, now, now, 1
	case bloomeryv1.JobStatus_JOB_STATUS_FAILED:
		step.Status, step.FinishedAt, step.Error = bloomeryv1.StepStatus_STEP_STATUS_FAILED, now, "the disk reads wrong"
		job.Error, job.ErrorReason = step.GetError(), "DISK_FAULTY"
	}
	return job
}

func (f *fakeCoordinator) InspectMachine(_ context.Context, r *connect.Request[bloomeryv1.InspectMachineRequest]) (*connect.Response[bloomeryv1.InspectMachineResponse], error) {
	job, err := f.start(r.Msg.GetName(), bloomeryv1.JobKind_JOB_KIND_INSPECT)
	return connect.NewResponse(&bloomeryv1.InspectMachineResponse{Job: job}), err
}

func (f *fakeCoordinator) ReleaseMachine(_ context.Context, r *connect.Request[bloomeryv1.ReleaseMachineRequest]) (*connect.Response[bloomeryv1.ReleaseMachineResponse], error) {
	job, err := f.start(r.Msg.GetName(), bloomeryv1.JobKind_JOB_KIND_RELEASE)
	return connect.NewResponse(&bloomeryv1.ReleaseMachineResponse{Job: job}), err
}

func (f *fakeCoordinator) InstallMachine(_ context.Context, r *connect.Request[bloomeryv1.InstallMachineRequest]) (*connect.Response[bloomeryv1.InstallMachineResponse], error) {
	if r.Msg.GetSpec().GetImage() != "debian-12" {
		return nil, fieldErrors("wrong", &bloomeryv1.FieldError{Field: "image", Reason: "IMAGE_NOT_FOUND", Message: "no image " + r.Msg.GetSpec().GetImage()})
	}
	job, err := f.start(r.Msg.GetName(), bloomeryv1.JobKind_JOB_KIND_INSTALL)
	return connect.NewResponse(&bloomeryv1.InstallMachineResponse{Job: job}), err
}

// WatchJob ends in the middle the first time, cleanly as a coordinator that stops does; the second time with an error.
func (f *fakeCoordinator) WatchJob(_ context.Context, r *connect.Request[bloomeryv1.WatchJobRequest], stream *connect.ServerStream[bloomeryv1.WatchJobResponse]) error {
	id := r.Msg.GetId()
	f.mu.Lock()
	f.watches[id]++
	turn := f.watches[id]
	f.mu.Unlock()
	status := bloomeryv1.JobStatus_JOB_STATUS_RUNNING
	if turn == 3 {
		status = bloomeryv1.JobStatus_JOB_STATUS_DONE
		if id == "job-bad" {
			status = bloomeryv1.JobStatus_JOB_STATUS_FAILED
		}
	}
	if id == "job-none" {
		return connect.NewError(connect.CodeNotFound, errors.New("job job-none is not there"))
	}
	if err := stream.Send(&bloomeryv1.WatchJobResponse{Job: fakeJob(id, bloomeryv1.JobKind_JOB_KIND_INSPECT, status)}); err != nil || turn != 2 {
		return err
	}
	return connect.NewError(connect.CodeUnavailable, errors.New("stopping"))
}

func fakeEvent(sequence int64) *bloomeryv1.Event {
	return &bloomeryv1.Event{Sequence: sequence, Time: timestamppb.New(time.Date(2026, 1, 31, 12, 0, int(sequence), 0, time.UTC)), Type: "power.on", Machine: "node1", Message: fmt.Sprintf("event %d", sequence)}
}

// VerifyArchive finds a problem the first time, which is mended then.
func (f *fakeCoordinator) VerifyArchive(context.Context, *connect.Request[bloomeryv1.VerifyArchiveRequest]) (*connect.Response[bloomeryv1.VerifyArchiveResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watches["archive"]++
	answer := &bloomeryv1.VerifyArchiveResponse{Node: "c1", Segments: 2, Events: 10000, First: 1, Last: 10000}
	if f.watches["archive"] == 1 {
		answer.Problems = []string{"event archive file x is corrupt"}
	}
	return connect.NewResponse(answer), nil
}

func (f *fakeCoordinator) ListEventTypes(context.Context, *connect.Request[bloomeryv1.ListEventTypesRequest]) (*connect.Response[bloomeryv1.ListEventTypesResponse], error) {
	return connect.NewResponse(&bloomeryv1.ListEventTypesResponse{Types: []*bloomeryv1.EventType{{
		Type: "power.on", Severity: bloomeryv1.Severity_SEVERITY_INFO, Description: "A machine was switched on.",
		Fields: []*bloomeryv1.EventField{{Name: "by", Kind: "string"}, {Name: "try", Kind: "number"}},
	}}}), nil
}

func (f *fakeCoordinator) ListEvents(_ context.Context, r *connect.Request[bloomeryv1.ListEventsRequest]) (*connect.Response[bloomeryv1.ListEventsResponse], error) {
	answer := &bloomeryv1.ListEventsResponse{}
	for sequence := r.Msg.GetAfter() + 1; sequence <= 4; sequence++ {
		event := fakeEvent(sequence)
		if since := r.Msg.GetFilter().GetSince(); since != nil && event.GetTime().AsTime().Before(since.AsTime()) {
			continue
		}
		answer.Events = append(answer.Events, event)
		if len(answer.GetEvents()) == 2 && sequence < 4 {
			answer.NextAfter = sequence
			break
		}
	}
	return connect.NewResponse(answer), nil
}

// WatchEvents sends one event a connection and refuses the fifth, so that a watch comes to an end.
func (f *fakeCoordinator) WatchEvents(_ context.Context, r *connect.Request[bloomeryv1.WatchEventsRequest], stream *connect.ServerStream[bloomeryv1.WatchEventsResponse]) error {
	if r.Msg.GetAfter() >= 4 {
		return connect.NewError(connect.CodeInvalidArgument, errors.New("no more events"))
	}
	return stream.Send(&bloomeryv1.WatchEventsResponse{Event: fakeEvent(r.Msg.GetAfter() + 1)})
}

func (f *fakeCoordinator) AddImage(_ context.Context, stream *connect.ClientStream[bloomeryv1.AddImageRequest]) (*connect.Response[bloomeryv1.AddImageResponse], error) {
	var header *bloomeryv1.AddImageHeader
	size := int64(0)
	for stream.Receive() {
		if h := stream.Msg().GetHeader(); h != nil {
			header = h
		}
		size += int64(len(stream.Msg().GetData()))
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	manifest, err := images.VerifyManifest(header.GetManifest(), header.GetSignature(), f.key)
	if err != nil {
		return nil, connect.NewError(connect.CodeInvalidArgument, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if header.GetOffset() != f.received[manifest.SHA256().String()] {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("wrong offset"))
	}
	if manifest.Name == "debian-cut" && header.GetOffset() == 0 {
		f.received[manifest.SHA256().String()] = size / 2
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("the coordinator stops"))
	}
	if size += header.GetOffset(); size != manifest.DataLength() {
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("%d bytes came of %d", size, manifest.DataLength()))
	}
	image := &bloomeryv1.Image{Name: manifest.Name, SizeBytes: manifest.Size, DataBytes: size, Os: manifest.OS.ID, Copies: []string{"c1", "c2"}, Missing: []string{"c3"}}
	f.images[manifest.Name], f.manifests[manifest.Name] = image, header.GetManifest()
	return connect.NewResponse(&bloomeryv1.AddImageResponse{Image: image}), nil
}

// VerifyImage finds debian-cut spoilt on one coordinator.
func (f *fakeCoordinator) VerifyImage(_ context.Context, r *connect.Request[bloomeryv1.VerifyImageRequest]) (*connect.Response[bloomeryv1.VerifyImageResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	image := f.images[r.Msg.GetName()]
	switch {
	case image == nil:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such image"))
	case image.GetName() == "debian-cut":
		return nil, fieldErrors("image debian-cut: coordinator c2: frame 0 is corrupt", &bloomeryv1.FieldError{Field: "data", Reason: "IMAGE_CORRUPT", Message: "coordinator c2: frame 0 is corrupt"})
	}
	return connect.NewResponse(&bloomeryv1.VerifyImageResponse{Image: image, Verified: image.GetCopies()}), nil
}

func (f *fakeCoordinator) GetImageUpload(_ context.Context, r *connect.Request[bloomeryv1.GetImageUploadRequest]) (*connect.Response[bloomeryv1.GetImageUploadResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return connect.NewResponse(&bloomeryv1.GetImageUploadResponse{ReceivedBytes: f.received[r.Msg.GetManifestSha256()]}), nil
}

func (f *fakeCoordinator) ListImages(context.Context, *connect.Request[bloomeryv1.ListImagesRequest]) (*connect.Response[bloomeryv1.ListImagesResponse], error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &bloomeryv1.ListImagesResponse{}
	for _, image := range f.images {
		answer.Images = append(answer.Images, image)
	}
	return connect.NewResponse(answer), nil
}

// BackupRack sends a small backup; for the passphrase "cut off, please" only a part of it.
func (f *fakeCoordinator) BackupRack(_ context.Context, r *connect.Request[bloomeryv1.BackupRackRequest], stream *connect.ServerStream[bloomeryv1.BackupRackResponse]) error {
	var all bytes.Buffer
	w, err := backup.Create(&all, r.Msg.GetPassphrase(), &bloomeryv1.BackupHeader{Rack: "rack1", Node: "c1", SchemaVersion: 6, CreatedAt: timestamppb.New(time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC))})
	if err != nil {
		return err
	}
	for _, r := range []*bloomeryv1.BackupRecord{
		{Body: &bloomeryv1.BackupRecord_Image{Image: &bloomeryv1.BackupImage{Name: "debian-12"}}},
		{Body: &bloomeryv1.BackupRecord_Table{Table: &bloomeryv1.BackupTable{Name: "views", Columns: []string{"name"}}}},
		{Body: &bloomeryv1.BackupRecord_Row{Row: &bloomeryv1.BackupRow{Values: []*bloomeryv1.BackupValue{{}}}}},
	} {
		if err := w.Write(r); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	data := all.Bytes()
	if r.Msg.GetPassphrase() == "cut off, please" {
		data = data[:len(data)-5]
	}
	for len(data) > 0 {
		n := min(100, len(data))
		if err := stream.Send(&bloomeryv1.BackupRackResponse{Data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
	}
	return nil
}
