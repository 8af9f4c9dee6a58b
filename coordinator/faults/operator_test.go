package faults

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/faults/history"
	"bloomery/internal/pki"
)

// operator is whoever asks for jobs: each goroutine with a caller of its own.
type operator struct {
	w *world
	// trust shows no certificate, config the operator's.
	trust, config *tls.Config
}

func (w *world) newOperator(pkiDir string) (*operator, error) {
	cert, key := pki.OperatorFiles(pkiDir, "anna")
	config, err := pki.ClientTLS(filepath.Join(pkiDir, pki.CACert), cert, key)
	if err != nil {
		return nil, err
	}
	trust := config.Clone()
	trust.Certificates = nil
	return &operator{w: w, trust: trust, config: config}, nil
}

func (o *operator) caller() *caller { return o.w.newCaller(hub, o.config) }

func (c *caller) create(ctx context.Context, m *machine, controller string) error {
	_, _, err := try(ctx, c, func(ctx context.Context, url string) (*connect.Response[bloomeryv1.CreateMachineResponse], error) {
		return bloomeryv1connect.NewMachineServiceClient(c.http, url).CreateMachine(ctx, connect.NewRequest(&bloomeryv1.CreateMachineRequest{Machine: &bloomeryv1.Machine{
			Name: m.name, Uuid: m.uuid, Macs: []string{m.mac.String()}, Bmc: &bloomeryv1.BMC{Address: controller, Username: username, Password: password},
			SwitchPort: &bloomeryv1.SwitchPort{Switch: "tor1", Port: m.name},
		}}))
	})
	if connect.CodeOf(err) == connect.CodeAlreadyExists {
		return nil // an answer was lost
	}
	return err
}

func (c *caller) machine(ctx context.Context, name string) (*bloomeryv1.Machine, error) {
	answer, _, err := try(ctx, c, func(ctx context.Context, url string) (*connect.Response[bloomeryv1.GetMachineResponse], error) {
		return bloomeryv1connect.NewMachineServiceClient(c.http, url).GetMachine(ctx, connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: name}))
	})
	if err != nil {
		return nil, err
	}
	return answer.Msg.GetMachine(), nil
}

// ask asks for a job until a coordinator has answered. The same request goes to each, so that it makes one job.
func (c *caller) ask(ctx context.Context, m *machine, kind, request string) (job string, err error) {
	c.w.record.add(history.Entry{Kind: history.JobAsked, Machine: m.name, Request: request, Value: kind})
	answer, n, err := try(ctx, c, func(ctx context.Context, url string) (*bloomeryv1.Job, error) {
		client := bloomeryv1connect.NewMachineServiceClient(c.http, url)
		switch kind {
		case "install":
			r, err := client.InstallMachine(ctx, connect.NewRequest(&bloomeryv1.InstallMachineRequest{Name: m.name, RequestId: request, Spec: &bloomeryv1.InstallSpec{
				Image: "tiny", Network: "customer-a", UserData: []byte("#cloud-config\n")}}))
			if err != nil {
				return nil, err
			}
			return r.Msg.GetJob(), nil
		case "release":
			r, err := client.ReleaseMachine(ctx, connect.NewRequest(&bloomeryv1.ReleaseMachineRequest{Name: m.name, RequestId: request}))
			if err != nil {
				return nil, err
			}
			return r.Msg.GetJob(), nil
		}
		r, err := client.InspectMachine(ctx, connect.NewRequest(&bloomeryv1.InspectMachineRequest{Name: m.name, RequestId: request}))
		if err != nil {
			return nil, err
		}
		return r.Msg.GetJob(), nil
	})
	if err != nil {
		return "", fmt.Errorf("%s of machine %s: %w", kind, m.name, err)
	}
	c.w.record.add(history.Entry{Kind: history.JobAccepted, Machine: m.name, Request: request, Job: answer.GetId(), Node: n.name})
	return answer.GetId(), nil
}

// follow waits until a job has ended.
func (c *caller) follow(ctx context.Context, job string) (*bloomeryv1.Job, error) {
	for {
		answer, n, err := try(ctx, c, func(ctx context.Context, url string) (*connect.Response[bloomeryv1.GetJobResponse], error) {
			return bloomeryv1connect.NewJobServiceClient(c.http, url).GetJob(ctx, connect.NewRequest(&bloomeryv1.GetJobRequest{Id: job}))
		})
		if err != nil {
			return nil, fmt.Errorf("follow job %s: %w", job, err)
		}
		if j := answer.Msg.GetJob(); j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING {
			c.w.record.add(history.Entry{Kind: history.JobEnded, Job: job, Value: statusName(j.GetStatus()), Node: n.name})
			return j, nil
		}
		if !pause(ctx, 250*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

// work asks for one job after the other for a machine, what its status allows, until nobody asks any more.
func (o *operator) work(m *machine, outcomes *outcomes) {
	c := o.caller()
	defer c.close()
	for n := 0; ; n++ {
		select {
		case <-o.w.stopAsking:
			return
		case <-time.After(time.Duration(100+mathrand.IntN(900)) * time.Millisecond):
		}
		found, err := c.machine(o.w.ctx, m.name)
		if err != nil {
			if o.w.ctx.Err() == nil {
				o.w.note("read machine %s: %v", m.name, err)
			}
			return
		}
		kind := kindFor(found)
		job, err := c.ask(o.w.ctx, m, kind, fmt.Sprintf("%s-%d", m.name, n))
		if err != nil {
			// A job of an earlier request whose answer never came may drive the machine.
			if o.w.ctx.Err() == nil && !strings.Contains(err.Error(), "drives machine") && !strings.Contains(err.Error(), "machine "+m.name+" is ") {
				o.w.note("ask: %v", err)
			}
			continue
		}
		j, err := c.follow(o.w.ctx, job)
		if err != nil {
			if o.w.ctx.Err() == nil {
				o.w.note("%v", err)
			}
			return
		}
		outcomes.add(kind, j)
	}
}

func kindFor(m *bloomeryv1.Machine) string {
	switch m.GetStatus() {
	case bloomeryv1.MachineStatus_MACHINE_STATUS_AVAILABLE:
		return "install"
	case bloomeryv1.MachineStatus_MACHINE_STATUS_RUNNING:
		return "release"
	case bloomeryv1.MachineStatus_MACHINE_STATUS_FAULTY:
		if len(m.GetCustomerDisks()) > 0 {
			return "release"
		}
	}
	return "inspect"
}

func statusName(s bloomeryv1.JobStatus) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "JOB_STATUS_"))
}

func kindName(k bloomeryv1.JobKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "JOB_KIND_"))
}

// watch follows the rack's events from where it was, at whichever coordinator answers.
func (o *operator) watch() {
	c := o.caller()
	defer c.close()
	after := int64(0)
	for o.w.ctx.Err() == nil {
		n := o.w.nodes[c.next%len(o.w.nodes)]
		// A stream over which nothing comes is taken for dead: reports come all the time.
		ctx, cancel := context.WithCancel(o.w.ctx)
		idle := time.AfterFunc(2*callTimeout, cancel)
		stream, err := bloomeryv1connect.NewEventServiceClient(c.http, n.url()).WatchEvents(ctx, connect.NewRequest(&bloomeryv1.WatchEventsRequest{After: after}))
		if err == nil {
			for stream.Receive() {
				idle.Reset(2 * callTimeout)
				after = stream.Msg().GetEvent().GetSequence()
				o.w.record.add(history.Entry{Kind: history.Watched, Sequence: after, Node: n.name})
			}
			_ = stream.Close() // what ended it does not matter
		}
		idle.Stop()
		cancel()
		c.next++
		o.w.pause(50 * time.Millisecond)
	}
}

// final reads everything that the rack says in the end from one coordinator.
func (c *caller) final(ctx context.Context, n *node) (history.State, error) {
	events := bloomeryv1connect.NewEventServiceClient(c.http, n.url())
	var s history.State
	for after := int64(0); ; {
		answer, err := events.ListEvents(ctx, connect.NewRequest(&bloomeryv1.ListEventsRequest{After: after, PageSize: 500}))
		if err != nil {
			return s, fmt.Errorf("read the events from %s: %w", n.name, err)
		}
		for _, e := range answer.Msg.GetEvents() {
			s.Events = append(s.Events, eventOf(e))
		}
		if after = answer.Msg.GetNextAfter(); after == 0 {
			break
		}
	}
	jobs := bloomeryv1connect.NewJobServiceClient(c.http, n.url())
	for token := ""; ; {
		answer, err := jobs.ListJobs(ctx, connect.NewRequest(&bloomeryv1.ListJobsRequest{PageSize: 100, PageToken: token}))
		if err != nil {
			return s, fmt.Errorf("read the jobs from %s: %w", n.name, err)
		}
		for _, j := range answer.Msg.GetJobs() {
			s.Jobs = append(s.Jobs, history.Job{ID: j.GetId(), Machine: j.GetMachine(), Kind: kindName(j.GetKind()), Status: statusName(j.GetStatus())})
		}
		if token = answer.Msg.GetNextPageToken(); token == "" {
			return s, nil
		}
	}
}

func eventOf(e *bloomeryv1.Event) history.Event {
	event := history.Event{Sequence: e.GetSequence(), Type: e.GetType(), Machine: e.GetMachine(), Job: e.GetJobId(), Step: e.GetStepId()}
	if e.GetType() == "agent.log" {
		event.Boot = e.GetData().GetFields()["boot"].GetStringValue()
		event.Report = int64(e.GetData().GetFields()["report"].GetNumberValue())
	}
	return event
}

// littleLag is how many entries of the replicated log a coordinator may be behind that follows the leader.
const littleLag = 5

// caughtUpWithin waits until every coordinator has what the leader has, so that each may be lost next.
func (w *world) caughtUpWithin(most time.Duration) error {
	ctx, cancel := context.WithTimeout(w.ctx, most)
	defer cancel()
	c := w.operator.caller()
	defer c.close()
	for {
		answer, _, err := try(ctx, c, func(ctx context.Context, url string) (*connect.Response[bloomeryv1.GetRackStatusResponse], error) {
			return bloomeryv1connect.NewRackServiceClient(c.http, url).GetRackStatus(ctx, connect.NewRequest(&bloomeryv1.GetRackStatusRequest{}))
		})
		if err != nil {
			return fmt.Errorf("ask for the rack's status: %w", err)
		}
		behind := slices.ContainsFunc(answer.Msg.GetNodes(), func(n *bloomeryv1.Node) bool {
			return !n.GetReachable() || n.GetLogIndex() == 0 || n.GetLogLag() > littleLag
		})
		if !behind && answer.Msg.GetLeader() != "" {
			return nil
		}
		if !pause(ctx, 100*time.Millisecond) {
			return fmt.Errorf("the coordinators do not catch up: %v", answer.Msg)
		}
	}
}

// ready waits until coordinators answer a read.
func (w *world) ready(ctx context.Context, nodes ...*node) error {
	c := w.operator.caller()
	defer c.close()
	for _, n := range nodes {
		for {
			attempt, cancel := context.WithTimeout(ctx, callTimeout)
			_, err := bloomeryv1connect.NewJobServiceClient(c.http, n.url()).ListJobs(attempt, connect.NewRequest(&bloomeryv1.ListJobsRequest{PageSize: 1}))
			cancel()
			if err == nil {
				break
			}
			if !pause(ctx, 50*time.Millisecond) {
				return errors.Join(fmt.Errorf("coordinator %s does not answer: %w", n.name, err), errors.New(n.tail(20)))
			}
		}
	}
	return nil
}
