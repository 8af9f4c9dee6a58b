package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func newRack(t *testing.T) (string, *Authority) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if err := InitRack(dir, InitOptions{Name: "r1", ServerAddresses: []string{"127.0.0.1", "rack.example"}, OperatorName: "anna"}); err != nil {
		t.Fatal(err)
	}
	a, err := LoadAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, a
}

func TestInitRackModesAndRefusal(t *testing.T) {
	dir, _ := newRack(t)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 8 {
		t.Errorf("%d files, want 8", len(entries))
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		want := os.FileMode(0o644)
		if filepath.Ext(e.Name()) == ".key" {
			want = 0o600
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o, want %04o", e.Name(), info.Mode().Perm(), want)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v %v, want 0700", info.Mode(), err)
	}
	before, err := os.ReadFile(filepath.Join(dir, CAKey))
	if err != nil {
		t.Fatal(err)
	}
	err = InitRack(dir, InitOptions{Name: "r1", ServerAddresses: []string{"127.0.0.1"}, OperatorName: "bob"})
	if !errors.Is(err, ErrExists) {
		t.Errorf("second init: %v, want ErrExists", err)
	}
	if after, err := os.ReadFile(filepath.Join(dir, CAKey)); err != nil || string(after) != string(before) {
		t.Error("second init changed the CA's key")
	}
	if err := os.Chmod(filepath.Join(dir, AgentKey), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadAuthority(dir); err == nil {
		t.Error("a key that others may read was accepted")
	}
}

// dial makes a TLS connection over a pipe and returns who the server saw.
func dial(t *testing.T, a *Authority, client *tls.Config) (Identity, error) {
	t.Helper()
	return handshake(t, a, a.ServerTLS(), client)
}

func handshake(t *testing.T, a *Authority, listener, client *tls.Config) (Identity, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	done := make(chan error, 1)
	go func() {
		conn := tls.Client(c, client)
		err := conn.HandshakeContext(ctx)
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		done <- err
	}()
	server := tls.Server(s, listener)
	err := server.HandshakeContext(ctx)
	state := server.ConnectionState()
	s.Close()
	if clientErr := <-done; err == nil && clientErr != nil && !errors.Is(clientErr, io.EOF) {
		err = clientErr
	}
	if err != nil {
		return Identity{}, err
	}
	return a.Identify(&state)
}

func TestRoles(t *testing.T) {
	dir, a := newRack(t)
	cert, key := OperatorFiles(dir, "anna")
	operator, err := ClientTLS(filepath.Join(dir, CACert), cert, key)
	if err != nil {
		t.Fatal(err)
	}
	agentKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "evil", Organization: []string{OperatorOrganization}}}, agentKey)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	chain, notAfter, err := a.SignAgent(csr, "m1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(notAfter); left > AgentLifetime || left < AgentLifetime-time.Minute {
		t.Errorf("agent certificate is valid for %v", left)
	}
	// What a thief of the agents' CA key could make: an operator signed by it.
	forged, err := sign(&x509.Certificate{
		Subject:   pkix.Name{Organization: []string{OperatorOrganization}, CommonName: "anna"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, agentsPair(a), csr.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	with := func(chain ...[]byte) *tls.Config {
		c := operator.Clone()
		c.Certificates = []tls.Certificate{{Certificate: chain, PrivateKey: agentKey}}
		return c
	}
	none := operator.Clone()
	none.Certificates = nil
	old := operator.Clone()
	old.MaxVersion = tls.VersionTLS12
	old.MinVersion = tls.VersionTLS12
	for name, tc := range map[string]struct {
		config *tls.Config
		role   Role
		who    string
		fails  bool
	}{
		"operator":                         {config: operator, role: RoleOperator, who: "anna"},
		"agent":                            {config: with(chain...), role: RoleAgent, who: "m1"},
		"no certificate":                   {config: none, role: RoleNone},
		"operator signed by the agents CA": {config: with(forged.Raw, a.Trusted()[0].Agents.Raw), fails: true},
		"TLS 1.2":                          {config: old, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			tc.config.ServerName = ServerName
			id, err := dial(t, a, tc.config)
			if (err != nil) != tc.fails {
				t.Fatalf("error %v, want failure %v", err, tc.fails)
			}
			if id.Role != tc.role || id.Name != tc.who {
				t.Errorf("got %v %q, want %v %q", id.Role, id.Name, tc.role, tc.who)
			}
		})
	}
}

func TestParseCSRRefusals(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]any{"rsa": weak, "p384": p384} {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseCSR(der); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
	for name, der := range map[string][]byte{"empty": nil, "large": make([]byte, maxCSR+1), "noise": []byte("hello")} {
		if _, err := ParseCSR(der); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzParseCSR(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(der[:len(der)-1])
	f.Add([]byte{0x30, 0x80})
	f.Fuzz(func(t *testing.T, der []byte) {
		if csr, err := ParseCSR(der); err == nil && csr.PublicKey == nil {
			t.Error("accepted without a key")
		}
	})
}

func agentsPair(a *Authority) *pair { return &pair{a.Trusted()[0].Agents, a.Trusted()[0].AgentsKey} }

// TestNodesOnly connects two coordinators with each other, and refuses an operator as one end or the other.
func TestNodesOnly(t *testing.T) {
	dir, a := newRack(t)
	cert, key := OperatorFiles(dir, "anna")
	operator, err := LoadPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(client, server *tls.Config)
		ok     bool
	}{
		"coordinators":       {func(_, _ *tls.Config) {}, true},
		"operator calls":     {func(client, _ *tls.Config) { client.Certificates = []tls.Certificate{operator} }, true},
		"nobody calls":       {func(client, _ *tls.Config) { client.Certificates = nil }, false},
		"an operator serves": {func(_, server *tls.Config) { server.Certificates = []tls.Certificate{operator} }, false},
	} {
		client, server := a.NodeTLS(), a.NodeServerTLS()
		tc.change(client, server)
		id, err := handshake(t, a, server, client)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
		if tc.ok && (id.Role == RoleNode) != (name == "coordinators") {
			t.Errorf("%s: is %s", name, id.Role)
		}
	}
}
