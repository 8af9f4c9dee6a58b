package coordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

// trusting is a client that dials anew for each call, trusts some roots only and shows a certificate, or none.
func (r *rack) trusting(cert *tls.Certificate, roots ...[]byte) *http.Client {
	pool := x509.NewCertPool()
	for _, der := range roots {
		root, err := x509.ParseCertificate(der)
		must(r.t, err)
		pool.AddCert(root)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, DisableKeepAlives: true}}
}

// callers make calls throughout, and none may fail.
type callers struct {
	t     *testing.T
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	calls atomic.Int64
}

// keep calls until the returned function is called or the test ends.
func (k *callers) keep(name string, call func(context.Context) error) func() {
	ctx, stop := context.WithCancel(k.ctx)
	ended := make(chan struct{})
	k.wg.Go(func() {
		defer close(ended)
		for ctx.Err() == nil {
			if err := call(k.ctx); err != nil && k.ctx.Err() == nil {
				k.t.Errorf("%s: %v", name, err)
				return
			}
			k.calls.Add(1)
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Millisecond):
			}
		}
	})
	return func() { stop(); <-ended }
}

func (r *rack) rotate(phase bloomeryv1.RotateCARequest_Phase, force bool) error {
	admin := bloomeryv1connect.NewRackServiceClient(r.admin(), "https://"+r.api)
	_, err := admin.RotateCA(r.life, connect.NewRequest(&bloomeryv1.RotateCARequest{Phase: phase, Force: force}))
	return err
}

// admin is the client of the test's own administrator, by the newest certificate.
func (r *rack) admin() *http.Client { return r.operator().http }

// waitFor waits until something holds.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s did not happen", what)
		}
	}
}

// served says under which CA the certificate is that the coordinator shows.
func (r *rack) served() string {
	leaf, err := x509.ParseCertificate(r.auth.Server().Certificate[0])
	must(r.t, err)
	authority, _ := r.auth.Issued(leaf)
	return authority
}

// TestRotation replaces the rack's CA while clients of every kind make calls on new connections; none fails.
func TestRotation(t *testing.T) {
	r := newRack(t)
	r.createMachine(r.operator())
	a := r.enrolled(t)
	oldRoot := r.auth.Root()
	oldCA := r.auth.Trusted()[0].Fingerprint()
	certPath, keyPath := pki.OperatorFiles(r.config.PKI, "anna")
	anna, err := pki.LoadPair(certPath, keyPath)
	must(t, err)
	token := r.addToken("gateway", bloomeryv1.Role_ROLE_VIEWER).Transport.(bearer).secret

	k := &callers{t: t}
	k.ctx, k.stop = context.WithCancel(t.Context())
	defer k.wg.Wait()
	defer k.stop()
	whoAmI := func(client *http.Client) func(context.Context) error {
		access := r.access(client)
		return func(ctx context.Context) error {
			_, err := access.WhoAmI(ctx, connect.NewRequest(&bloomeryv1.WhoAmIRequest{}))
			return err
		}
	}
	stopOld := k.keep("operator with the old certificate and the old root", whoAmI(r.trusting(&anna, oldRoot.Raw)))
	withToken := r.trusting(nil, oldRoot.Raw)
	withToken.Transport = bearer{token, withToken.Transport}
	k.keep("token, old root only", whoAmI(withToken))
	agentCalls := func(cert tls.Certificate) func(context.Context) error {
		client := bloomeryv1connect.NewAgentServiceClient(r.trusting(&cert, oldRoot.Raw), "https://"+r.api)
		return func(ctx context.Context) error {
			_, err := client.NextStep(ctx, connect.NewRequest(&bloomeryv1.NextStepRequest{BootId: a.bootID}))
			return err
		}
	}
	stopAgent := k.keep("agent with the old certificate", agentCalls(a.tls.Certificates[0]))

	must(t, r.rotate(bloomeryv1.RotateCARequest_PHASE_BEGIN, false))
	if err := r.rotate(bloomeryv1.RotateCARequest_PHASE_BEGIN, false); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("a second rotation: %v", err)
	}
	waitFor(t, "the coordinator's new certificate", func() bool { return r.served() != oldCA })
	newRoot := r.auth.Root()
	k.keep("token, new root only", whoAmI(&http.Client{Transport: bearer{token, r.trusting(nil, newRoot.Raw).Transport}}))

	err = r.rotate(bloomeryv1.RotateCARequest_PHASE_FINISH, false)
	if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "operator anna") || !strings.Contains(err.Error(), "agent of machine m1") {
		t.Errorf("finish while the old CA is in use: %v", err)
	}
	if err := r.rotate(bloomeryv1.RotateCARequest_PHASE_FINISH, true); connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "no administrator") {
		t.Errorf("a forced finish that locks everybody out: %v", err)
	}
	// Operators and agents renew, each by its present certificate.
	csr, key := newCSR(t)
	renewed, err := r.access(r.operator().http).RenewCertificate(t.Context(), connect.NewRequest(&bloomeryv1.RenewCertificateRequest{Csr: csr}))
	must(t, err)
	if !slices.ContainsFunc(renewed.Msg.GetAuthorities(), func(der []byte) bool { return slices.Equal(der, newRoot.Raw) }) || len(renewed.Msg.GetAuthorities()) != 2 {
		t.Errorf("%d authorities came with the new certificate", len(renewed.Msg.GetAuthorities()))
	}
	fresh := tls.Certificate{Certificate: renewed.Msg.GetCertificates(), PrivateKey: key}
	k.keep("operator with the new certificate", whoAmI(r.trusting(&fresh, renewed.Msg.GetAuthorities()...)))
	must(t, pki.WritePair(certPath, keyPath, renewed.Msg.GetCertificates(), key))
	stopOld()
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	must(t, a.enrol(t.Context()))
	k.keep("agent with the new certificate", agentCalls(a.tls.Certificates[0]))
	stopAgent()

	must(t, r.rotate(bloomeryv1.RotateCARequest_PHASE_FINISH, false))
	waitFor(t, "the end of the old CA", func() bool { return len(r.auth.Trusted()) == 1 })
	before := k.calls.Load()
	waitFor(t, "calls after the rotation", func() bool { return k.calls.Load() > before+50 })
	if err := whoAmI(r.trusting(&anna, oldRoot.Raw))(t.Context()); err == nil {
		t.Error("the old certificate still works")
	}
	t.Logf("%d calls, none failed", k.calls.Load())

	// A restart knows the new CA from its files before it asks the database, and the old one's keys are gone.
	waitFor(t, "the files", func() bool {
		_, err := os.Stat(filepath.Join(r.config.PKI, pki.CAKey))
		return os.IsNotExist(err)
	})
	again, err := pki.LoadAuthority(r.config.PKI)
	must(t, err)
	if !again.Root().Equal(newRoot) || len(again.Trusted()) != 1 {
		t.Error("the files are of another CA")
	}
	events, err := r.c.events(t.Context(), store.EventFilter{TypePrefix: "audit.call", Limit: 1000})
	must(t, err)
	rotations := 0
	for _, e := range events {
		if strings.HasSuffix(e.GetData().GetFields()["procedure"].GetStringValue(), "/RotateCA") {
			rotations++
			if len(e.GetData().GetFields()["changes"].GetListValue().GetValues()) == 0 {
				t.Errorf("a rotation's audit names no change: %v", e)
			}
		}
	}
	if rotations != 2 {
		t.Errorf("%d audit events of rotations, want 2", rotations)
	}
}

// TestAbortedRotation goes back to the old CA, which everybody who renewed meanwhile must do too.
func TestAbortedRotation(t *testing.T) {
	r := newRack(t)
	oldCA := r.served()
	if err := r.rotate(bloomeryv1.RotateCARequest_PHASE_ABORT, false); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("abort without a rotation: %v", err)
	}
	must(t, r.rotate(bloomeryv1.RotateCARequest_PHASE_BEGIN, false))
	waitFor(t, "the coordinator's new certificate", func() bool { return r.served() != oldCA })
	bob := r.addOperator("bob", bloomeryv1.Role_ROLE_VIEWER)
	must(t, r.rotate(bloomeryv1.RotateCARequest_PHASE_ABORT, false))
	waitFor(t, "the coordinator's old CA", func() bool { return r.served() == oldCA })
	if _, err := r.access(bob).WhoAmI(t.Context(), connect.NewRequest(&bloomeryv1.WhoAmIRequest{})); err != nil {
		t.Errorf("a certificate of the CA that is given up, before the end: %v", err)
	}
	if err := r.rotate(bloomeryv1.RotateCARequest_PHASE_FINISH, false); connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "operator bob") || strings.Contains(err.Error(), "operator anna") {
		t.Errorf("finish while the new CA is in use: %v", err)
	}
	must(t, r.rotate(bloomeryv1.RotateCARequest_PHASE_FINISH, true))
	waitFor(t, "the end of the new CA", func() bool { return len(r.auth.Trusted()) == 1 })
	if _, err := r.access(bob).WhoAmI(t.Context(), connect.NewRequest(&bloomeryv1.WhoAmIRequest{})); err == nil {
		t.Error("a certificate of the CA that was dropped by force still works")
	}
}

// TestNodeRenewal moves the clock beyond two thirds of the certificate's life.
func TestNodeRenewal(t *testing.T) {
	r := newRack(t)
	before := r.auth.Server().Certificate[0]
	leaf, err := x509.ParseCertificate(before)
	must(t, err)
	if leaf.Subject.CommonName != DefaultNode {
		t.Errorf("the certificate is %s's", leaf.Subject.CommonName)
	}
	r.setClock(leaf.NotAfter.Sub(leaf.NotBefore)*2/3 + time.Hour)
	waitFor(t, "the renewal", func() bool { return !slices.Equal(r.auth.Server().Certificate[0], before) })
	fresh, err := x509.ParseCertificate(r.auth.Server().Certificate[0])
	must(t, err)
	if !fresh.NotAfter.After(leaf.NotAfter) || !slices.Equal(fresh.DNSNames, leaf.DNSNames) || len(fresh.IPAddresses) != len(leaf.IPAddresses) {
		t.Errorf("the new certificate is for %v %v until %v", fresh.DNSNames, fresh.IPAddresses, fresh.NotAfter)
	}
	waitFor(t, "its event", func() bool { return r.eventTypes()["access.node_renewed"] >= 1 })
	file, err := pki.LoadPair(filepath.Join(r.config.PKI, pki.ServerCert), filepath.Join(r.config.PKI, pki.ServerKey))
	must(t, err)
	if !slices.Equal(file.Certificate[0], fresh.Raw) {
		t.Error("the file holds another certificate")
	}
}

// TestSettle signs with a new CA only after every coordinator had time to hear of it.
func TestSettle(t *testing.T) {
	r := newRack(t)
	present := r.auth.Trusted()[0]
	next, err := pki.NewCA(present, time.Now())
	must(t, err)
	row := func(ca *pki.CA, state store.AuthorityState) store.Authority {
		secret, err := ca.Marshal()
		must(t, err)
		return store.Authority{Fingerprint: ca.Fingerprint(), State: state, Secret: secret}
	}
	rows := []store.Authority{row(next, store.AuthorityActive), row(present, store.AuthorityTrusted)}
	k := r.c.newAuthorityKeeper(time.Hour)
	for _, want := range []*pki.CA{present, next} {
		trusted, err := k.order(rows)
		must(t, err)
		if len(trusted) != 2 || !trusted[0].Root.Equal(want.Root) {
			t.Errorf("%s signs, want %s", trusted[0].Fingerprint(), want.Fingerprint())
		}
		k.seen[next.Fingerprint()] = time.Now().Add(-2 * time.Hour)
	}
}

// TestWithoutTheCAKey runs a rack whose ca.key is kept elsewhere: what needs it is refused and says how to mend that.
func TestWithoutTheCAKey(t *testing.T) {
	r := newRack(t)
	must(t, r.c.Store.Update(t.Context(), func(tx *store.Tx) error { return tx.DeleteAuthority(r.auth.Trusted()[0].Fingerprint()) }))
	r.halt()
	key := filepath.Join(r.config.PKI, pki.CAKey)
	must(t, os.Rename(key, key+".away"))
	var err error
	r.auth, err = pki.LoadAuthority(r.config.PKI)
	must(t, err)
	r.start()
	csr, _ := newCSR(t)
	add := func() error {
		_, err := r.access(r.operator().http).AddOperator(t.Context(), connect.NewRequest(&bloomeryv1.AddOperatorRequest{Operator: &bloomeryv1.Operator{Name: "bob", Role: bloomeryv1.Role_ROLE_VIEWER}, Csr: csr}))
		return err
	}
	for name, err := range map[string]error{"add an operator": add(), "rotate": r.rotate(bloomeryv1.RotateCARequest_PHASE_BEGIN, false)} {
		if connect.CodeOf(err) != connect.CodeFailedPrecondition || !strings.Contains(err.Error(), "ca.key into the pki folder") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.halt()
	must(t, os.Rename(key+".away", key))
	r.auth, err = pki.LoadAuthority(r.config.PKI)
	must(t, err)
	r.start()
	must(t, add())
}
