package coordinator

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
	"bloomery/netboot"
)

// TestRolesOfEveryRPC calls every procedure of every service with each kind of certificate.
func TestRolesOfEveryRPC(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	a := r.enrolled(t)
	nobody := a.tls.Clone()
	nobody.Certificates = nil
	clients := map[pki.Role]*http.Client{
		pki.RoleNone:     {Transport: &http.Transport{TLSClientConfig: nobody, ForceAttemptHTTP2: true}},
		pki.RoleAgent:    {Transport: &http.Transport{TLSClientConfig: a.tls, ForceAttemptHTTP2: true}},
		pki.RoleOperator: op.http,
	}
	for procedure, m := range procedures(t) {
		for role, client := range clients {
			want := r.c.permissions[procedure].peer
			if want == pki.RoleNone || role == want {
				continue
			}
			code := tryCall(t, client, r.api, procedure, m.IsStreamingServer() || m.IsStreamingClient())
			if code != "permission_denied" && code != "unauthenticated" {
				t.Errorf("%s with the certificate of %v: %q", procedure, role, code)
			}
		}
	}
	if r.eventTypes()["security.call_refused"] == 0 {
		t.Error("no refusal was recorded")
	}
	// Images are for operators and for agents whose boot is current.
	for role, want := range map[pki.Role]int{pki.RoleNone: 403, pki.RoleAgent: 200, pki.RoleOperator: 200} {
		response, err := clients[role].Get("https://" + r.api + "/images/tiny/manifest.json")
		must(t, err)
		_ = response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("/images/ with the certificate of %v: %d, want %d", role, response.StatusCode, want)
		}
	}
}

// enrolled starts an inspection whose machine does nothing by itself, and enrols an agent for it.
func (r *rack) enrolled(t *testing.T) *agent {
	t.Helper()
	a := r.expected(t)
	must(t, a.enrol(t.Context()))
	return a
}

// expected opens a boot for m1 without a job's driver, and returns an agent at the leased address.
func (r *rack) expected(t *testing.T) *agent {
	t.Helper()
	must(t, r.c.Store.Update(t.Context(), func(tx *store.Tx) error {
		m, err := tx.Machine("m1")
		if err != nil {
			return err
		}
		m.JobId = "j1"
		if err := tx.SaveMachine(m); err != nil {
			return err
		}
		j := &store.Job{BootRound: 1, Job: &bloomeryv1.Job{
			Id: "j1", Machine: "m1", Kind: bloomeryv1.JobKind_JOB_KIND_INSPECT,
			// Not running, so that nobody drives it.
			Status: bloomeryv1.JobStatus_JOB_STATUS_UNSPECIFIED,
			Steps:  []*bloomeryv1.Step{{Id: "j1-0", Spec: &bloomeryv1.Step_Inspect{Inspect: &bloomeryv1.InspectStep{}}}},
		}}
		if err := tx.CreateJob(j); err != nil {
			return err
		}
		return tx.SaveBoot(&store.Boot{Machine: "m1", JobID: "j1", Round: 1, Created: tx.Now()})
	}))
	address, err := directory{r.c}.Lease(t.Context(), r.learns)
	must(t, err)
	return r.newAgent(address.String())
}

func TestEnrolmentRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		prepare func(r *rack) *agent
		change  func(*bloomeryv1.EnrolRequest)
		code    connect.Code
	}{
		"wrong source address": {prepare: func(r *rack) *agent { r.expected(t); return r.newAgent("127.66.0.150") }, code: connect.CodePermissionDenied},
		"not expected": {prepare: func(r *rack) *agent {
			a := r.expected(t)
			must(t, r.c.Store.Update(t.Context(), func(tx *store.Tx) error { return tx.DeleteBoot("m1") }))
			return a
		}, code: connect.CodePermissionDenied},
		"second agent": {prepare: func(r *rack) *agent {
			a := r.expected(t)
			must(t, a.enrol(t.Context()))
			return r.newAgent("127.66.0.100")
		}, code: connect.CodePermissionDenied},
		"unknown MAC": {prepare: func(r *rack) *agent { return r.expected(t) }, change: func(q *bloomeryv1.EnrolRequest) { q.Macs = []string{"52:54:00:ff:ff:ff"} }, code: connect.CodePermissionDenied},
		"other UUID":  {prepare: func(r *rack) *agent { return r.expected(t) }, change: func(q *bloomeryv1.EnrolRequest) { q.Uuid = strings.Replace(testUUID, "1", "9", 1) }, code: connect.CodePermissionDenied},
		"bad CSR":     {prepare: func(r *rack) *agent { return r.expected(t) }, change: func(q *bloomeryv1.EnrolRequest) { q.Csr[len(q.Csr)-1] ^= 1 }, code: connect.CodeInvalidArgument},
		"bad boot id": {prepare: func(r *rack) *agent { return r.expected(t) }, change: func(q *bloomeryv1.EnrolRequest) { q.BootId = "x" }, code: connect.CodeInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRack(t)
			r.createMachine(r.operator())
			a := tc.prepare(r)
			q := a.enrolRequest()
			if tc.change != nil {
				tc.change(q)
			}
			_, err := a.client.Enrol(t.Context(), connect.NewRequest(q))
			if connect.CodeOf(err) != tc.code {
				t.Errorf("got %v, want %v", err, tc.code)
			}
			if n := r.eventTypes()["security.enrolment_refused"]; (n == 1) != (tc.code == connect.CodePermissionDenied) {
				t.Errorf("%d security events", n)
			}
		})
	}
}

func TestEnrolAgainWithTheSameKey(t *testing.T) {
	r := newRack(t)
	r.createMachine(r.operator())
	a := r.enrolled(t)
	first := a.tls.Certificates[0]
	a.show(nil)
	must(t, a.enrol(t.Context()))
	if _, err := a.poll(t.Context()); err != nil {
		t.Errorf("the later certificate: %v", err)
	}
	a.show(&first)
	if _, err := a.poll(t.Context()); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("the earlier certificate: %v", err)
	}
	// Firmware gets no file once an agent has enrolled, while the agent's own DHCP client is still answered.
	if host, err := (directory{r.c}).Lookup(t.Context(), r.learns); err != nil || host.Wish != netboot.WishAgent {
		t.Errorf("the agent's lease: %v %v", host.Wish, err)
	}
	if _, ok := r.c.mayBoot(t.Context(), r.config.Provisioning.Range.First); ok {
		t.Error("firmware may fetch the agent again")
	}
}

// TestAgentRenewal renews long after the enrolment, with a new key, as an agent does whose job runs for a day.
func TestAgentRenewal(t *testing.T) {
	r := newRack(t)
	r.createMachine(r.operator())
	a := r.enrolled(t)
	must(t, r.c.Store.Update(t.Context(), func(tx *store.Tx) error {
		b, err := tx.Boot("m1")
		if err != nil {
			return err
		}
		b.Enrolled = b.Enrolled.Add(-16 * time.Hour)
		return tx.SaveBoot(b)
	}))
	first := a.tls.Certificates[0]
	renew := func() error {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(t, err)
		a.key = key
		return a.enrol(t.Context())
	}
	must(t, renew())
	second := a.tls.Certificates[0]
	for name, cert := range map[string]*tls.Certificate{"new": &second, "old, in calls under way": &first} {
		a.show(cert)
		if _, err := a.poll(t.Context()); err != nil {
			t.Errorf("the certificate that is %s: %v", name, err)
		}
	}
	// The answer was lost: the old certificate asks again.
	must(t, renew())
	third := a.tls.Certificates[0]
	must(t, renew())
	for name, cert := range map[string]*tls.Certificate{"first": &first, "second": &second} {
		a.show(cert)
		if _, err := a.poll(t.Context()); connect.CodeOf(err) != connect.CodeFailedPrecondition {
			t.Errorf("the %s certificate after three renewals: %v", name, err)
		}
	}
	a.show(&third)
	if _, err := a.poll(t.Context()); err != nil {
		t.Errorf("the certificate that asked last: %v", err)
	}
	// Without a certificate, a day later, nobody enrols for this boot.
	a.show(nil)
	if err := renew(); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("an enrolment without a certificate: %v", err)
	}
}

func TestReportsAreIdempotent(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	a := r.enrolled(t)
	log := func(n int64) *bloomeryv1.Report {
		return &bloomeryv1.Report{Sequence: n, JobId: "j1", Body: &bloomeryv1.Report_Log{Log: &bloomeryv1.Log{Message: "hello"}}}
	}
	send := func(reports ...*bloomeryv1.Report) int64 {
		t.Helper()
		response, err := a.client.Report(t.Context(), connect.NewRequest(&bloomeryv1.ReportRequest{BootId: a.bootID, Reports: reports}))
		must(t, err)
		return response.Msg.GetAcknowledged()
	}
	for _, tc := range []struct {
		reports []*bloomeryv1.Report
		ack     int64
		events  int
	}{
		{[]*bloomeryv1.Report{log(1), log(2), log(3)}, 3, 3},
		{[]*bloomeryv1.Report{log(1), log(2), log(3)}, 3, 3},
		{[]*bloomeryv1.Report{log(2), log(3), log(4)}, 4, 4},
		{[]*bloomeryv1.Report{log(1)}, 4, 4},
	} {
		if ack := send(tc.reports...); ack != tc.ack {
			t.Errorf("acknowledged %d, want %d", ack, tc.ack)
		}
		if n := r.eventTypes()["agent.log"]; n != tc.events {
			t.Errorf("%d events, want %d", n, tc.events)
		}
	}
	// Another machine's job is not this machine's to report on.
	foreign := log(5)
	foreign.JobId = "j2"
	_, err := a.client.Report(t.Context(), connect.NewRequest(&bloomeryv1.ReportRequest{BootId: a.bootID, Reports: []*bloomeryv1.Report{foreign}}))
	if connect.CodeOf(err) != connect.CodePermissionDenied || r.eventTypes()["security.report_refused"] != 1 {
		t.Errorf("a report on a foreign job: %v", err)
	}
	// A boot id that is not its own opens nothing.
	if _, err := a.client.NextStep(t.Context(), connect.NewRequest(&bloomeryv1.NextStepRequest{BootId: strings.Repeat("0", 32)})); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a foreign boot id: %v", err)
	}
}

func TestPhoneHomeRefusals(t *testing.T) {
	r := newRack(t)
	for name, token := range map[string]string{"unknown": strings.Repeat("A", 43), "short": "x"} {
		if status, err := r.phoneHome("127.77.0.100", token); err != nil || status != http.StatusNotFound {
			t.Errorf("%s: %d %v", name, status, err)
		}
	}
}
