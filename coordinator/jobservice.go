package coordinator

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// watchEvery is the shortest time between two answers of WatchJob.
const watchEvery = 250 * time.Millisecond

// redact takes out what may hold secrets: user-data, and vendor-data with the phone-home token. Operators see the sizes.
func redact(j *bloomeryv1.Job) *bloomeryv1.Job {
	c := proto.Clone(j).(*bloomeryv1.Job)
	for _, s := range c.GetSteps() {
		if ci := s.GetCloudInit(); ci != nil {
			ci.UserDataBytes, ci.VendorDataBytes = int32(len(ci.GetUserData())), int32(len(ci.GetVendorData()))
			ci.UserData, ci.VendorData = nil, nil
		}
		if sp := s.GetSeedPartition(); sp != nil {
			sp.UserDataBytes, sp.VendorDataBytes = int32(len(sp.GetUserData())), int32(len(sp.GetVendorData()))
			sp.UserData, sp.VendorData = nil, nil
		}
	}
	return c
}

// ListJobs implements bloomery.v1.JobService.
func (c *Coordinator) ListJobs(ctx context.Context, r *connect.Request[bloomeryv1.ListJobsRequest]) (*connect.Response[bloomeryv1.ListJobsResponse], error) {
	size, err := pageSize(r.Msg.GetPageSize(), defaultPage)
	if err != nil {
		return nil, err
	}
	before, err := parseJobToken(r.Msg.GetPageToken())
	if err != nil {
		return nil, err
	}
	var jobs []*store.Job
	err = c.Store.View(ctx, func(s *store.Reader) (err error) {
		jobs, err = s.Jobs(store.JobFilter{Machine: r.Msg.GetMachine(), Status: r.Msg.GetStatus(), Before: before, Limit: size + 1})
		return err
	})
	if err != nil {
		return nil, err
	}
	response := &bloomeryv1.ListJobsResponse{}
	for i, j := range jobs {
		if i == size {
			last := jobs[size-1]
			response.NextPageToken = base64.RawURLEncoding.EncodeToString(fmt.Appendf(nil, "%d %s", last.GetCreatedAt().AsTime().UnixNano(), last.GetId()))
			break
		}
		response.Jobs = append(response.Jobs, redact(j.Job))
	}
	return connect.NewResponse(response), nil
}

func parseJobToken(token string) (*store.JobPosition, error) {
	if token == "" {
		return nil, nil
	}
	bad := invalid("page_token", "PAGE_TOKEN_INVALID", "want a token of an earlier answer")
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return nil, bad
	}
	created, id, ok := strings.Cut(string(text), " ")
	nanos, err := strconv.ParseInt(created, 10, 64)
	if err != nil || !ok {
		return nil, bad
	}
	return &store.JobPosition{Created: time.Unix(0, nanos), ID: id}, nil
}

// GetJob implements bloomery.v1.JobService.
func (c *Coordinator) GetJob(ctx context.Context, r *connect.Request[bloomeryv1.GetJobRequest]) (*connect.Response[bloomeryv1.GetJobResponse], error) {
	j, err := c.job(ctx, r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.GetJobResponse{Job: redact(j.Job)}), nil
}

func (c *Coordinator) job(ctx context.Context, id string) (j *store.Job, err error) {
	err = c.Store.View(ctx, func(s *store.Reader) (err error) {
		if j, err = s.Job(clip(id)); err != nil {
			return fmt.Errorf("%s: %w", clip(id), err)
		}
		return nil
	})
	return j, err
}

// WatchJob implements bloomery.v1.JobService.
func (c *Coordinator) WatchJob(ctx context.Context, r *connect.Request[bloomeryv1.WatchJobRequest], stream *connect.ServerStream[bloomeryv1.WatchJobResponse]) error {
	wake, stop := c.hub.subscribe("job/"+r.Msg.GetId(), "progress/"+r.Msg.GetId())
	defer stop()
	var sent *bloomeryv1.Job
	for {
		j, err := c.job(ctx, r.Msg.GetId())
		if err != nil {
			return err
		}
		now := redact(j.Job)
		if sent == nil || !proto.Equal(sent, now) {
			if err := stream.Send(&bloomeryv1.WatchJobResponse{Job: now}); err != nil {
				return err
			}
			sent = now
		}
		if now.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING {
			return nil
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
	}
}

func pauseFor(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// CancelJob implements bloomery.v1.JobService.
func (c *Coordinator) CancelJob(ctx context.Context, r *connect.Request[bloomeryv1.CancelJobRequest]) (*connect.Response[bloomeryv1.CancelJobResponse], error) {
	var j *store.Job
	err := c.update(ctx, func(ch *change) (err error) {
		if j, err = ch.Job(clip(r.Msg.GetId())); err != nil {
			return err
		}
		if j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING {
			return notNow("id", "JOB_ENDED", "job %s has ended", j.GetId())
		}
		if j.GetCancelRequested() {
			return nil
		}
		j.CancelRequested = true
		if err := ch.note(&bloomeryv1.Event{Type: "job.cancel_requested", Machine: j.GetMachine(), JobId: j.GetId(), Message: fmt.Sprintf("%s asked to cancel the job", callerOf(ctx).Name)}, nil); err != nil {
			return err
		}
		return ch.saveJob(j)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.CancelJobResponse{Job: redact(j.Job)}), nil
}
