package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/internal/pki"
	"bloomery/lab"
)

// strangers does on the provisioning network what somebody without a right to it would try; the first thing that
// succeeds is the error.
func strangers(ctx context.Context, stateDir string) error {
	config, err := lab.LoadEffective(stateDir)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	authority, err := pki.LoadAuthority(filepath.Join(stateDir, "rack"))
	if err != nil {
		return err
	}
	parsed, err := pki.ParseCSR(csr)
	if err != nil {
		return err
	}
	// As if the private key of m2's agent had been stolen.
	chain, _, err := authority.SignAgent(parsed, "m2", time.Now())
	if err != nil {
		return err
	}
	base := "https://" + config.Provisioning.Address.Addr().String() + ":8443"
	nobody := stranger(authority.Root(), nil)
	other := stranger(authority.Root(), &tls.Certificate{Certificate: chain, PrivateKey: key})
	m1 := config.Machines[0]
	enrol := &bloomeryv1.EnrolRequest{Uuid: m1.UUID, Macs: []string{m1.NICs[0].MAC}, Csr: csr, BootId: strings.Repeat("ab", 16)}

	attempts := []struct {
		what string
		try  func() error
	}{
		{"enrol as m1, which was not expected to boot", func() error {
			_, err := bloomeryv1connect.NewAgentServiceClient(nobody, base).Enrol(ctx, connect.NewRequest(enrol))
			return err
		}},
		{"ask for a step without a certificate", func() error {
			_, err := bloomeryv1connect.NewAgentServiceClient(nobody, base).NextStep(ctx, connect.NewRequest(&bloomeryv1.NextStepRequest{BootId: enrol.GetBootId()}))
			return err
		}},
		{"report without a certificate", func() error {
			_, err := bloomeryv1connect.NewAgentServiceClient(nobody, base).Report(ctx, connect.NewRequest(&bloomeryv1.ReportRequest{BootId: enrol.GetBootId()}))
			return err
		}},
		{"read an image without a certificate", func() error { return get(ctx, nobody, base+"/images/debian-12/manifest.json") }},
		{"list machines with a machine's certificate", func() error {
			_, err := bloomeryv1connect.NewMachineServiceClient(other, base).ListMachines(ctx, connect.NewRequest(&bloomeryv1.ListMachinesRequest{}))
			return err
		}},
		{"report on another machine's job", func() error {
			_, err := bloomeryv1connect.NewAgentServiceClient(other, base).Report(ctx, connect.NewRequest(&bloomeryv1.ReportRequest{
				BootId: enrol.GetBootId(), Reports: []*bloomeryv1.Report{{Sequence: 1, JobId: "no-job-of-m2", Body: &bloomeryv1.Report_Log{Log: &bloomeryv1.Log{Message: "hello"}}}},
			}))
			return err
		}},
		{"fetch the agent image over HTTP boot", func() error {
			return get(ctx, http.DefaultClient, "http://"+config.Provisioning.Address.Addr().String()+"/boot/bloomery-agent.efi")
		}},
	}
	var let error
	for _, attempt := range attempts {
		if err := attempt.try(); err == nil {
			let = errors.Join(let, fmt.Errorf("a stranger could %s", attempt.what))
		}
	}
	return let
}

func stranger(root *x509.Certificate, cert *tls.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(root)
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	return &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}
}

func get(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", answer.Status)
	}
	_, err = io.Copy(io.Discard, answer.Body)
	return err
}
