package faults

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/faults/history"
)

const (
	// callTimeout is how long a client waits for one coordinator before it asks another one.
	callTimeout = 3 * time.Second
	// batch is how many reports an agent sends at once.
	batch = 20
	// reportEvery is how often a reporter has something to say, on average.
	reportEvery = 700 * time.Millisecond
)

// caller calls the coordinators from one address and stays with the one that answered last.
type caller struct {
	w    *world
	from netip.Addr
	tls  *tls.Config
	http *http.Client
	next int
}

func (w *world) newCaller(from netip.Addr, config *tls.Config) *caller {
	c := &caller{w: w, from: from, next: mathrand.IntN(len(w.nodes))}
	c.show(config)
	return c
}

// show makes the caller use other certificates from now on.
func (c *caller) show(config *tls.Config) {
	c.close()
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: c.from.AsSlice()}, Timeout: callTimeout}
	c.tls = config.Clone() // a transport changes it
	c.http = &http.Client{Transport: &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: c.tls, ForceAttemptHTTP2: true, TLSHandshakeTimeout: callTimeout,
		HTTP2: &http.HTTP2Config{SendPingTimeout: time.Second, PingTimeout: time.Second},
	}}
}

func (c *caller) close() {
	if c.http != nil {
		c.http.CloseIdleConnections()
	}
}

// refused says that a coordinator understood a call and will not do it, and that no other one would.
func refused(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodePermissionDenied, connect.CodeFailedPrecondition, connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeAlreadyExists:
		return true
	}
	return false
}

// try calls one coordinator after the other until one has answered.
func try[T any](ctx context.Context, c *caller, call func(ctx context.Context, url string) (T, error)) (answer T, n *node, err error) {
	for {
		n = c.w.nodes[c.next%len(c.w.nodes)]
		attempt, cancel := context.WithTimeout(ctx, callTimeout)
		answer, err = call(attempt, n.url())
		cancel()
		if err == nil || ctx.Err() != nil || refused(err) {
			return answer, n, err
		}
		c.next++
		if !pause(ctx, time.Duration(20+mathrand.IntN(80))*time.Millisecond) {
			return answer, n, ctx.Err()
		}
	}
}

// agent is what runs on a machine that has booted from the network.
type agent struct {
	*caller
	m       *machine
	bootID  string
	key     *ecdsa.PrivateKey
	last    int64
	pending []*bloomeryv1.Report
}

func newAgent(m *machine, address netip.Addr) (*agent, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	raw := make([]byte, 16)
	if _, err := rand.Read(raw); err != nil {
		return nil, err
	}
	return &agent{caller: m.w.newCaller(address, m.w.operator.trust), m: m, key: key, bootID: hex.EncodeToString(raw)}, nil
}

// run enrols and does the steps of the machine's job. It says whether the installed system is to be started.
func (a *agent) run(ctx context.Context) (handedOver bool) {
	if err := a.enrol(ctx); err != nil {
		return false
	}
	if a.m.reporter.CompareAndSwap(true, false) {
		r := &agent{caller: a.w.newCaller(a.from, a.tls), m: a.m, key: a.key, bootID: a.bootID[16:] + a.bootID[:16]}
		a.w.asking.Go(r.reportForEver)
	}
	for _, phase := range []string{"drivers", "links", "enrol"} {
		a.say("phase " + phase)
	}
	for ctx.Err() == nil {
		answer, _, err := try(ctx, a.caller, func(ctx context.Context, url string) (*connect.Response[bloomeryv1.NextStepResponse], error) {
			return bloomeryv1connect.NewAgentServiceClient(a.http, url).NextStep(ctx, connect.NewRequest(&bloomeryv1.NextStepRequest{BootId: a.bootID, WaitSeconds: 1}))
		})
		if err != nil {
			break // refused: this boot is over
		}
		if step := answer.Msg.GetStep(); step != nil {
			if !a.do(ctx, answer.Msg.GetJobId(), step) {
				return false
			}
			if step.GetHandover() != nil {
				return true
			}
		}
	}
	return false
}

func (a *agent) enrol(ctx context.Context) error {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, a.key)
	if err != nil {
		return err
	}
	answer, _, err := try(ctx, a.caller, func(ctx context.Context, url string) (*connect.Response[bloomeryv1.EnrolResponse], error) {
		return bloomeryv1connect.NewAgentServiceClient(a.http, url).Enrol(ctx, connect.NewRequest(&bloomeryv1.EnrolRequest{
			Uuid: a.m.uuid, Macs: []string{a.m.mac.String()}, Csr: csr, BootId: a.bootID, AgentVersion: "faults"}))
	})
	if err != nil {
		return err
	}
	config := a.tls.Clone()
	config.Certificates = []tls.Certificate{{Certificate: answer.Msg.GetCertificates(), PrivateKey: a.key}}
	a.show(config)
	return nil
}

// reportForEver is a machine that has something to say as long as jobs are asked for: its certificate is good for the record after its job has ended.
func (a *agent) reportForEver() {
	defer a.close()
	for {
		select {
		case <-a.w.stopAsking:
			return
		case <-time.After(time.Duration(float64(reportEvery) * (0.5 + mathrand.Float64()))):
		}
		for range 1 + mathrand.IntN(3) {
			a.say("still here")
		}
		if !a.send(a.w.ctx) {
			return
		}
	}
}

// do runs a step: it reports the beginning, says some things, and reports the end. It says whether the agent goes on.
func (a *agent) do(ctx context.Context, job string, s *bloomeryv1.Step) bool {
	a.report(job, s.GetId(), &bloomeryv1.Report{Body: &bloomeryv1.Report_Started{Started: &bloomeryv1.StepStarted{}}})
	a.say("step " + s.GetId())
	if !a.send(ctx) || !pause(ctx, time.Duration(20+mathrand.IntN(100))*time.Millisecond) {
		return false
	}
	finished := &bloomeryv1.StepFinished{Ok: true}
	switch spec := s.GetSpec().(type) {
	case *bloomeryv1.Step_Inspect:
		finished.Result = a.m.inventory()
	case *bloomeryv1.Step_Wipe:
		a.m.installed(nil)
	case *bloomeryv1.Step_CloudInit:
		a.m.installed(spec.CloudInit.GetVendorData())
	case *bloomeryv1.Step_WriteImage:
		for percent := 20.0; percent < 100; percent += 20 {
			a.report(job, s.GetId(), &bloomeryv1.Report{Body: &bloomeryv1.Report_Progress{Progress: &bloomeryv1.Progress{Percent: percent}}})
			a.say("writing")
			if !a.send(ctx) || !pause(ctx, 50*time.Millisecond) {
				return false
			}
		}
	}
	a.report(job, s.GetId(), &bloomeryv1.Report{Body: &bloomeryv1.Report_Finished{Finished: finished}})
	a.m.w.record.add(history.Entry{Kind: history.ReportSent, Machine: a.m.name, Boot: a.bootID, Sequence: a.last, Step: s.GetId()})
	return a.send(ctx)
}

// say makes a log report that names itself, so that it is found in the record.
func (a *agent) say(text string) {
	a.report("", "", &bloomeryv1.Report{Body: &bloomeryv1.Report_Log{Log: &bloomeryv1.Log{Severity: bloomeryv1.Severity_SEVERITY_INFO, Message: text, Data: &structpb.Struct{
		Fields: map[string]*structpb.Value{"boot": structpb.NewStringValue(a.bootID), "report": structpb.NewNumberValue(float64(a.last + 1))},
	}}}})
	a.m.w.record.add(history.Entry{Kind: history.ReportSent, Machine: a.m.name, Boot: a.bootID, Sequence: a.last})
}

func (a *agent) report(job, step string, r *bloomeryv1.Report) {
	a.last++
	r.Sequence, r.JobId, r.StepId = a.last, job, step
	a.pending = append(a.pending, r)
}

// send sends what is pending until all of it is acknowledged; false when it never will be.
func (a *agent) send(ctx context.Context) bool {
	for len(a.pending) > 0 {
		some := a.pending[:min(batch, len(a.pending))]
		answer, n, err := try(ctx, a.caller, func(ctx context.Context, url string) (*connect.Response[bloomeryv1.ReportResponse], error) {
			return bloomeryv1connect.NewAgentServiceClient(a.http, url).Report(ctx, connect.NewRequest(&bloomeryv1.ReportRequest{BootId: a.bootID, Reports: some}))
		})
		if err != nil {
			if ctx.Err() == nil {
				a.m.w.note("the reports of machine %s were refused by %s: %v", a.m.name, n.name, err)
			}
			return false
		}
		up := answer.Msg.GetAcknowledged()
		a.m.w.record.add(history.Entry{Kind: history.ReportAcked, Machine: a.m.name, Boot: a.bootID, Sequence: up, Node: n.name})
		for len(a.pending) > 0 && a.pending[0].GetSequence() <= up {
			a.pending = a.pending[1:]
		}
	}
	return true
}

// inventory is what the agent finds: one disk.
func (m *machine) inventory() *structpb.Struct {
	disk := structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
		"name": structpb.NewStringValue("nvme0n1"), "serial": structpb.NewStringValue("DISK-" + m.name), "size_bytes": structpb.NewNumberValue(8 << 30),
	}})
	return &structpb.Struct{Fields: map[string]*structpb.Value{"disks": structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{disk}})}}
}
