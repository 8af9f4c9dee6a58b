package clustertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/internal/pki"
)

// bearer shows a token with each request.
type bearer struct {
	secret string
	base   http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.secret)
	return b.base.RoundTrip(r)
}

// byToken is a client that dials anew for each call and trusts one root only.
func byToken(secret string, root *x509.Certificate) *http.Client {
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return &http.Client{Transport: bearer{secret, &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool, ServerName: pki.ServerName}, DisableKeepAlives: true, ForceAttemptHTTP2: true,
	}}}
}

func (r *Rack) token(name string) string {
	r.t.Helper()
	answer, err := r.Client().Access.AddToken(r.t.Context(), connect.NewRequest(&bloomeryv1.AddTokenRequest{Token: &bloomeryv1.Token{Name: name, Role: bloomeryv1.Role_ROLE_VIEWER}}))
	ok(r.t, err)
	return answer.Msg.GetSecret()
}

// root is the CA that a coordinator's folder names first.
func (n *Node) root() *x509.Certificate {
	n.rack.t.Helper()
	authority, err := pki.LoadAuthority(n.Config.PKI)
	ok(n.rack.t, err)
	return authority.Root()
}

// shows is under which of the roots the certificate is that a coordinator shows to new connections.
func (n *Node) shows(roots ...*x509.Certificate) *x509.Certificate {
	conn, err := tls.Dial("tcp", n.Config.Listen.API[0], &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return nil
	}
	defer func() { _ = conn.Close() }()
	for _, root := range roots {
		if conn.ConnectionState().PeerCertificates[0].CheckSignatureFrom(root) == nil {
			return root
		}
	}
	return nil
}

// TestRotationOverThreeCoordinators replaces the rack's CA while clients that know the old or the new root only call every coordinator on
// new connections. No call fails, and the coordinators go on together.
func TestRotationOverThreeCoordinators(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	r := Start(t, Options{Nodes: 3})
	secret := r.token("gateway")
	old := r.Node("c1").root()
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	var calls atomic.Int64
	keep := func(name string, root *x509.Certificate) {
		client := byToken(secret, root)
		for _, n := range r.Nodes() {
			access := bloomeryv1connect.NewAccessServiceClient(client, "https://"+n.Config.Listen.API[0])
			wg.Go(func() {
				for ctx.Err() == nil {
					if _, err := access.WhoAmI(ctx, connect.NewRequest(&bloomeryv1.WhoAmIRequest{})); err != nil && ctx.Err() == nil {
						t.Errorf("%s at %s: %v", name, n.Name, err)
						return
					}
					calls.Add(1)
					select {
					case <-ctx.Done():
					case <-time.After(20 * time.Millisecond):
					}
				}
			})
		}
	}
	keep("client of the old root", old)
	rotate := func(ctx context.Context, phase bloomeryv1.RotateCARequest_Phase) error {
		_, err := r.Client().Rack.RotateCA(ctx, connect.NewRequest(&bloomeryv1.RotateCARequest{Phase: phase}))
		return err
	}
	ok(t, rotate(ctx, bloomeryv1.RotateCARequest_PHASE_BEGIN))
	answer, err := r.Client().Rack.GetAuthorities(ctx, connect.NewRequest(&bloomeryv1.GetAuthoritiesRequest{}))
	ok(t, err)
	fresh, err := x509.ParseCertificate(answer.Msg.GetAuthorities()[0].GetCertificate())
	ok(t, err)
	r.until("show certificates of the new CA", func(context.Context) error {
		for _, n := range r.Nodes() {
			if n.shows(old, fresh) != fresh {
				return fmt.Errorf("%s still shows another", n.Name)
			}
		}
		return nil
	})
	keep("client of the new root", fresh)
	r.WaitVoters(3)

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	ok(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	ok(t, err)
	renewed, err := r.Client().Access.RenewCertificate(ctx, connect.NewRequest(&bloomeryv1.RenewCertificateRequest{Csr: csr}))
	ok(t, err)
	cert, keyFile := pki.OperatorFiles(r.Node("c1").Config.PKI, "anna")
	ok(t, pki.WritePair(cert, keyFile, renewed.Msg.GetCertificates(), key))
	r.until("finish", func(ctx context.Context) error { return rotate(ctx, bloomeryv1.RotateCARequest_PHASE_FINISH) })
	r.until("forget the old CA", func(context.Context) error {
		for _, n := range r.Nodes() {
			if authority, err := pki.LoadAuthority(n.Config.PKI); err != nil || len(authority.Trusted()) != 1 || !authority.Root().Equal(fresh) {
				return fmt.Errorf("%s has not: %w", n.Name, err)
			}
		}
		return nil
	})
	// New connections between the coordinators: one is started again.
	c3 := r.Node("c3")
	stopCalls := calls.Load()
	r.WaitVoters(3)
	if calls.Load() == stopCalls {
		t.Error("no call was made")
	}
	stop()
	wg.Wait()
	c3.Stop()
	c3.Start()
	r.WaitVoters(3)
	t.Logf("%d calls, none failed", calls.Load())
}

// TestCoordinatorThatMissedARotation was down when the others took certificates of a CA that it has never heard of.
func TestCoordinatorThatMissedARotation(t *testing.T) {
	if testing.Short() {
		t.Skip("takes ten seconds")
	}
	r := Start(t, Options{Nodes: 3})
	old, c3 := r.Node("c1").root(), r.Node("c3")
	c3.Stop()
	answer, err := r.Client().Rack.RotateCA(t.Context(), connect.NewRequest(&bloomeryv1.RotateCARequest{Phase: bloomeryv1.RotateCARequest_PHASE_BEGIN}))
	ok(t, err)
	fresh, err := x509.ParseCertificate(answer.Msg.GetAuthorities()[0].GetCertificate())
	ok(t, err)
	show := func(nodes ...string) func(context.Context) error {
		return func(context.Context) error {
			for _, name := range nodes {
				if r.Node(name).shows(old, fresh) != fresh {
					return fmt.Errorf("%s still shows another", name)
				}
			}
			return nil
		}
	}
	r.until("show certificates of the new CA", show("c1", "c2"))
	c3.Start()
	r.WaitVoters(3)
	r.until("show a certificate of the new CA", show("c3"))
}

// TestRevocationHoldsEverywhere revokes at one coordinator; another refuses the next call, and the third ends a watch.
func TestRevocationHoldsEverywhere(t *testing.T) {
	r := Start(t, Options{Nodes: 3})
	secret := r.token("gateway")
	client := byToken(secret, r.Node("c1").root())
	at := func(name string) string { return "https://" + r.Node(name).Config.Listen.API[0] }
	ok(t, func() error {
		_, err := bloomeryv1connect.NewAccessServiceClient(client, at("c2")).WhoAmI(t.Context(), connect.NewRequest(&bloomeryv1.WhoAmIRequest{}))
		return err
	}())
	watch, err := bloomeryv1connect.NewEventServiceClient(client, at("c3")).WatchEvents(t.Context(), connect.NewRequest(&bloomeryv1.WatchEventsRequest{}))
	ok(t, err)
	if !watch.Receive() {
		t.Fatalf("no event came: %v", watch.Err())
	}
	_, err = r.Node("c1").Client().Access.RevokeToken(t.Context(), connect.NewRequest(&bloomeryv1.RevokeTokenRequest{Name: "gateway"}))
	ok(t, err)
	revoked := time.Now()
	if _, err := bloomeryv1connect.NewAccessServiceClient(client, at("c2")).WhoAmI(t.Context(), connect.NewRequest(&bloomeryv1.WhoAmIRequest{})); connect.CodeOf(err) != connect.CodeUnauthenticated {
		t.Errorf("a call at another coordinator right after the revocation: %v", err)
	}
	for watch.Receive() {
	}
	if connect.CodeOf(watch.Err()) != connect.CodeUnauthenticated {
		t.Errorf("the watch at the third ended with %v", watch.Err())
	}
	t.Logf("the watch ended %v after the revocation", time.Since(revoked).Round(time.Millisecond))
}
