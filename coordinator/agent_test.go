package coordinator

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/internal/pki"
	"bloomery/netboot"
)

// agent is a machine's agent as the coordinator sees it.
type agent struct {
	r       *rack
	client  bloomeryv1connect.AgentServiceClient
	http    *http.Client
	key     *ecdsa.PrivateKey
	bootID  string
	tls     *tls.Config
	dialer  func(context.Context, string, string) (net.Conn, error)
	seq     int64
	machine string
}

func (r *rack) newAgent(from string) *agent {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(r.t, err)
	config, err := pki.ClientTLS(filepath.Join(r.config.PKI, pki.CACert), "", "")
	must(r.t, err)
	boot, err := randomHex(16)
	must(r.t, err)
	a := &agent{r: r, key: key, tls: config, bootID: boot, dialer: fromAddress(from)}
	a.connect()
	return a
}

func (a *agent) connect() {
	if a.http != nil {
		a.http.CloseIdleConnections()
	}
	a.http = &http.Client{Transport: &http.Transport{DialContext: a.dialer, TLSClientConfig: a.tls, ForceAttemptHTTP2: true}}
	a.client = bloomeryv1connect.NewAgentServiceClient(a.http, "https://"+a.r.api)
}

func (a *agent) enrolRequest() *bloomeryv1.EnrolRequest {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, a.key)
	must(a.r.t, err)
	return &bloomeryv1.EnrolRequest{Uuid: testUUID, Macs: []string{testMAC, "52:54:00:00:00:99"}, Csr: csr, BootId: a.bootID}
}

func (a *agent) enrol(ctx context.Context) error {
	response, err := a.client.Enrol(ctx, connect.NewRequest(a.enrolRequest()))
	if err != nil {
		return err
	}
	a.machine = response.Msg.GetMachine()
	a.tls = a.tls.Clone()
	a.tls.Certificates = []tls.Certificate{{Certificate: response.Msg.GetCertificates(), PrivateKey: a.key}}
	a.connect()
	return nil
}

// show makes later calls show a certificate, or none.
func (a *agent) show(cert *tls.Certificate) {
	a.tls = a.tls.Clone()
	a.tls.Certificates = nil
	if cert != nil {
		a.tls.Certificates = []tls.Certificate{*cert}
	}
	a.connect()
}

func (a *agent) poll(ctx context.Context) (*connect.Response[bloomeryv1.NextStepResponse], error) {
	return a.client.NextStep(ctx, connect.NewRequest(&bloomeryv1.NextStepRequest{BootId: a.bootID}))
}

func (a *agent) report(ctx context.Context, job, step string, body *bloomeryv1.Report) error {
	a.seq++
	body.Sequence, body.JobId, body.StepId = a.seq, job, step
	for {
		response, err := a.client.Report(ctx, connect.NewRequest(&bloomeryv1.ReportRequest{BootId: a.bootID, Reports: []*bloomeryv1.Report{body}}))
		if err == nil && response.Msg.GetAcknowledged() < a.seq {
			err = errors.New("not acknowledged")
		}
		if err == nil || ctx.Err() != nil || connect.CodeOf(err) == connect.CodePermissionDenied {
			return err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// runAgent is the machine's DHCP, enrolment and steps until its power goes.
func (r *rack) runAgent(ctx context.Context) {
	mac, err := net.ParseMAC(testMAC)
	must(r.t, err)
	d := directory{r.c}
	host, err := d.Lookup(ctx, mac)
	if err != nil || host.Wish != netboot.WishAgent {
		r.t.Logf("the machine gets no agent: %v %v", host.Wish, err)
		return
	}
	address, err := d.Lease(ctx, mac)
	if err != nil {
		r.t.Logf("lease: %v", err)
		return
	}
	a := r.newAgent(address.String())
	defer func() { a.http.CloseIdleConnections() }()
	if err := a.enrol(ctx); err != nil {
		if ctx.Err() == nil {
			r.t.Logf("enrol: %v", err)
		}
		return
	}
	for ctx.Err() == nil {
		response, err := a.client.NextStep(ctx, connect.NewRequest(&bloomeryv1.NextStepRequest{BootId: a.bootID, WaitSeconds: 5}))
		if connect.CodeOf(err) == connect.CodeFailedPrecondition {
			return
		}
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if response.Msg.GetStep() == nil {
			continue
		}
		r.mu.Lock()
		r.targets[stepName(response.Msg.GetStep())] = response.Msg.GetTarget()
		r.mu.Unlock()
		if !a.do(ctx, response.Msg.GetJobId(), response.Msg.GetStep()) {
			return
		}
	}
}

// do runs a step and says whether the agent goes on.
func (a *agent) do(ctx context.Context, job string, s *bloomeryv1.Step) bool {
	_ = a.report(ctx, job, s.GetId(), &bloomeryv1.Report{Body: &bloomeryv1.Report_Started{Started: &bloomeryv1.StepStarted{}}})
	_ = a.report(ctx, job, s.GetId(), &bloomeryv1.Report{Body: &bloomeryv1.Report_Progress{Progress: &bloomeryv1.Progress{Percent: 50, ResumeFrame: 7}}})
	finished := &bloomeryv1.StepFinished{Ok: true}
	a.r.mu.Lock()
	act := a.r.act
	a.r.mu.Unlock()
	if act != nil {
		if finished = act(a, s); finished == nil {
			<-ctx.Done()
			return false
		}
	}
	if s.GetInspect() != nil && finished.GetOk() {
		finished.Result = fakeInventory(a.r.t)
	}
	if s.GetWriteImage() != nil && finished.GetOk() && finished.GetResult() == nil {
		finished.Result = &structpb.Struct{Fields: map[string]*structpb.Value{"bytes": structpb.NewNumberValue(1 << 20)}}
	}
	a.r.mu.Lock()
	a.r.ran[stepName(s)]++
	if s.GetCloudInit() != nil {
		a.r.installed = bytes.Clone(s.GetCloudInit().GetVendorData())
	}
	a.r.mu.Unlock()
	if err := a.report(ctx, job, s.GetId(), &bloomeryv1.Report{Body: &bloomeryv1.Report_Finished{Finished: finished}}); err != nil {
		return false
	}
	if s.GetHandover() != nil && finished.GetOk() {
		a.r.reboot()
		return false
	}
	return true
}

func fakeInventory(t *testing.T) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(map[string]any{"bios": map[string]any{"uefi": true}, "tpm": map[string]any{"present": false}, "disks": []any{
		map[string]any{"name": "nvme0n1", "serial": "DISK-A", "wwn": "eui.1", "size_bytes": 8 << 30, "transport": "nvme", "logical_sector": 512, "physical_sector": 512},
		map[string]any{"name": "vda", "serial": "DISK-B", "size_bytes": 4 << 30, "transport": "virtio", "logical_sector": 512, "physical_sector": 512},
		map[string]any{"name": "sda", "serial": "STICK", "size_bytes": 1 << 30, "transport": "usb", "logical_sector": 512, "physical_sector": 512, "removable": true},
	}})
	must(t, err)
	return s
}
