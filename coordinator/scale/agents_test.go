package scale

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/clustertest"
	"bloomery/internal/pki"
)

// agent reports as a machine's does; its connection stays open.
type agent struct {
	identity
	client   bloomeryv1connect.AgentServiceClient
	sequence int64
}

// callTimeout is the agents' own (agent/connection.go).
const callTimeout = 10 * time.Second

// agentsOf connects the agents of a rack, each to one of its coordinators in turn, by a first report.
func agentsOf(t *testing.T, r *clustertest.Rack) []*agent {
	t.Helper()
	first := r.Nodes()[0].Config
	data, err := os.ReadFile(agentsFile(first.Data))
	if err != nil {
		t.Fatal(err)
	}
	var all []identity
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	base, err := pki.ClientTLS(filepath.Join(first.PKI, pki.CACert), "", "")
	if err != nil {
		t.Fatal(err)
	}
	base.ServerName = pki.ServerName
	var agents []*agent
	for i, who := range all {
		key, err := x509.ParsePKCS8PrivateKey(who.Key)
		if err != nil {
			t.Fatal(err)
		}
		config := base.Clone()
		config.Certificates = []tls.Certificate{{Certificate: who.Certificates, PrivateKey: key}}
		transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
		t.Cleanup(transport.CloseIdleConnections)
		nodes := r.Nodes()
		agents = append(agents, &agent{identity: who,
			client: bloomeryv1connect.NewAgentServiceClient(&http.Client{Transport: transport}, "https://"+nodes[i%len(nodes)].Config.Listen.API[0])})
	}
	var group errgroup.Group
	group.SetLimit(32)
	for _, a := range agents {
		group.Go(func() error { return a.report(t.Context(), a.log("connected")) })
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	return agents
}

func (a *agent) log(text string) *bloomeryv1.Report {
	return &bloomeryv1.Report{Body: &bloomeryv1.Report_Log{Log: &bloomeryv1.Log{Message: text}}}
}

// next is what a step says of itself: progress each time, which is an event at each tenth; now and then a line for the record.
func (a *agent) next() *bloomeryv1.Report {
	n := a.sequence
	if n%10 == 9 {
		return a.log(fmt.Sprintf("SMART of disk %d read, nothing to say", n%8))
	}
	percent := float64(n%50) * 2
	return &bloomeryv1.Report{JobId: "job-" + a.Machine, StepId: stepOf(a.Machine), Body: &bloomeryv1.Report_Progress{Progress: &bloomeryv1.Progress{
		Percent: percent, DoneBytes: int64(percent * 1e10), TotalBytes: 1e12, BytesPerSecond: 2e9, Message: "reading the disks"}}}
}

func (a *agent) report(ctx context.Context, r *bloomeryv1.Report) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	a.sequence++
	r.Sequence = a.sequence
	response, err := a.client.Report(ctx, connect.NewRequest(&bloomeryv1.ReportRequest{BootId: a.BootID, Reports: []*bloomeryv1.Report{r}}))
	if err == nil && response.Msg.GetAcknowledged() != a.sequence {
		return fmt.Errorf("%s: acknowledged %d of %d", a.Machine, response.Msg.GetAcknowledged(), a.sequence)
	}
	return err
}

// result is what came of reporting for a while.
type result struct {
	sent   int
	took   []time.Duration // sorted
	errors []error
	over   time.Duration
}

func (r result) quantile(q float64) time.Duration {
	if len(r.took) == 0 {
		return 0
	}
	return r.took[min(len(r.took)-1, int(q*float64(len(r.took))))]
}

func (r result) rate() float64 { return float64(len(r.took)) / r.over.Seconds() }

func (r result) String() string {
	s := fmt.Sprintf("%.0f reports/s: p50 %.1f ms, p99 %.1f ms, max %.1f ms, %d errors", r.rate(), ms(r.quantile(0.5)), ms(r.quantile(0.99)), ms(r.quantile(1)), len(r.errors))
	if len(r.errors) > 0 {
		s += fmt.Sprintf(" (%v)", r.errors[0])
	}
	return s
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// reportAll lets each agent report once in an interval, evenly spread, for a while. A report's time counts from when it was due: one that
// has to wait for the one before counts that as well.
func reportAll(ctx context.Context, agents []*agent, every, d time.Duration) result {
	var mu sync.Mutex
	r := result{over: d}
	begin := time.Now().Add(50 * time.Millisecond)
	var wg sync.WaitGroup
	for i, a := range agents {
		wg.Go(func() {
			var took []time.Duration
			var errs []error
			sent := 0
			for due := begin.Add(every * time.Duration(i) / time.Duration(len(agents))); due.Before(begin.Add(d)); due = due.Add(every) {
				time.Sleep(time.Until(due))
				sent++
				if err := a.report(ctx, a.next()); err != nil {
					errs = append(errs, err)
					continue
				}
				took = append(took, time.Since(due))
			}
			mu.Lock()
			defer mu.Unlock()
			r.sent += sent
			r.took, r.errors = append(r.took, took...), append(r.errors, errs...)
		})
	}
	wg.Wait()
	slices.Sort(r.took)
	return r
}

// finishAll lets each agent finish its step.
func finishAll(ctx context.Context, agents []*agent) error {
	var group errgroup.Group
	for _, a := range agents {
		group.Go(func() error {
			return a.report(ctx, &bloomeryv1.Report{JobId: "job-" + a.Machine, StepId: stepOf(a.Machine), Body: &bloomeryv1.Report_Finished{Finished: &bloomeryv1.StepFinished{Ok: true}}})
		})
	}
	return group.Wait()
}

// pollAll lets each agent wait for a step that does not come.
func pollAll(ctx context.Context, agents []*agent, wait time.Duration) error {
	var group errgroup.Group
	for _, a := range agents {
		group.Go(func() error {
			response, err := a.client.NextStep(ctx, connect.NewRequest(&bloomeryv1.NextStepRequest{BootId: a.BootID, WaitSeconds: int32(wait / time.Second)}))
			if err == nil && response.Msg.GetStep() != nil {
				return fmt.Errorf("%s was given step %s", a.Machine, response.Msg.GetStep().GetId())
			}
			return err
		})
	}
	return group.Wait()
}
