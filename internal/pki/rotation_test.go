package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func request(t *testing.T) (*x509.CertificateRequest, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr, key
}

// successor makes the next CA of a rack and an authority that trusts it alone, with a coordinator's certificate by it.
func successor(t *testing.T, a *Authority) (*CA, *Authority) {
	t.Helper()
	next, err := NewCA(a.Trusted()[0], time.Now())
	if err != nil {
		t.Fatal(err)
	}
	only := newAuthority([]*CA{next}, tls.Certificate{})
	csr, key := request(t)
	chain, _, err := only.SignNode(csr, "c1", []string{"127.0.0.1"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	only.UseServer(tls.Certificate{Certificate: chain, PrivateKey: key})
	return next, only
}

// TestCrossSignedRoot connects coordinators of which one has not heard of the new CA yet, and clients that know one root only.
func TestCrossSignedRoot(t *testing.T) {
	_, old := newRack(t)
	next, renewed := successor(t, old)
	if next.Root.Subject.String() == old.Root().Subject.String() || renewed.Rack() != "r1" {
		t.Errorf("the new root is %s", next.Root.Subject)
	}
	for name, root := range map[string]*x509.Certificate{"old root": old.Root(), "new root": next.Root} {
		pool := x509.NewCertPool()
		pool.AddCert(root)
		client := &tls.Config{RootCAs: pool, ServerName: ServerName}
		if _, err := handshake(t, renewed, renewed.ServerTLS(), client); err != nil {
			t.Errorf("a client that knows the %s only: %v", name, err)
		}
	}
	id, err := handshake(t, old, old.NodeServerTLS(), &tls.Config{Certificates: []tls.Certificate{*renewed.Server()}, RootCAs: old.Pool(), ServerName: ServerName})
	if err != nil || id.Role != RoleNode || id.Name != "c1" {
		t.Errorf("a renewed coordinator at one that lags: %v %v", id, err)
	}
	// An agent of the new CA is unknown there, and never taken for anything else.
	csr, key := request(t)
	chain, _, err := renewed.SignAgent(csr, "m1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	client := old.NodeTLS()
	client.VerifyConnection = nil
	client.Certificates = []tls.Certificate{{Certificate: append(chain, next.Cross.Raw), PrivateKey: key}}
	if id, err := handshake(t, old, old.ServerTLS(), client); err == nil {
		t.Errorf("an agent of an unknown CA is %v", id)
	}
}

// TestAgentsCAMakesNoRoot tries what a thief of the agents' CA's key could.
func TestAgentsCAMakesNoRoot(t *testing.T) {
	_, a := newRack(t)
	fake, err := issue(rootTemplate("r1", time.Now()), agentsPair(a))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := issue(operatorTemplate("anna", time.Now()), fake)
	if err != nil {
		t.Fatal(err)
	}
	for name, chain := range map[string][][]byte{
		"through a root of its own": {leaf.cert.Raw, fake.cert.Raw, a.Trusted()[0].Agents.Raw},
		"without its CA":            {leaf.cert.Raw, fake.cert.Raw},
	} {
		client := a.NodeTLS()
		client.Certificates = []tls.Certificate{{Certificate: chain, PrivateKey: leaf.key}}
		if id, err := handshake(t, a, a.ServerTLS(), client); err == nil {
			t.Errorf("%s: it is %v", name, id)
		}
	}
	if isRoot(a.Trusted()[0].Agents) || !isRoot(a.Root()) {
		t.Error("an agents' CA is taken for a root")
	}
}

func TestCAEncoding(t *testing.T) {
	_, a := newRack(t)
	next, _ := successor(t, a)
	data, err := next.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := UnmarshalCA(data)
	if err != nil || !back.Root.Equal(next.Root) || !back.Cross.Equal(next.Cross) || !back.RootKey.Equal(next.RootKey) || !back.AgentsKey.Equal(next.AgentsKey) {
		t.Errorf("it came back as another: %v", err)
	}
	mixed := *next
	mixed.Agents = a.Trusted()[0].Agents
	other, err := mixed.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"parts of two CAs": other, "noise": []byte("x"), "nothing": []byte("{}"), "no root": []byte(`{"root":"AAAA"}`)} {
		if _, err := UnmarshalCA(data); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func FuzzUnmarshalCA(f *testing.F) {
	f.Add([]byte(`{"root":"AAAA","agents":"","cross":null}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if ca, err := UnmarshalCA(data); err == nil && ca.Root == nil {
			t.Error("accepted without a root")
		}
	})
}

func FuzzParseCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if all, err := ParseCertificates(data); err == nil && len(all) == 0 {
			t.Error("accepted without a certificate")
		}
	})
}

// TestFilesOfARotation reads the folder as each moment of a rotation leaves it.
func TestFilesOfARotation(t *testing.T) {
	dir, a := newRack(t)
	next, renewed := successor(t, a)
	present := a.Trusted()[0]
	load := func(roots int, signing *CA, rootKey bool) {
		t.Helper()
		read, err := LoadAuthority(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := read.Trusted(); len(got) != roots || !got[0].Root.Equal(signing.Root) || (got[0].RootKey != nil) != rootKey || got[0].Agents == nil {
			t.Errorf("%d roots, first %s, key %v", len(got), got[0].Fingerprint(), got[0].RootKey != nil)
		}
	}
	for _, step := range []struct {
		trusted []*CA
		rootKey bool
	}{{[]*CA{present, next}, true}, {[]*CA{next, present}, false}, {[]*CA{next}, false}} {
		if err := a.Use(step.trusted); err != nil {
			t.Fatal(err)
		}
		if err := a.WriteCAs(dir); err != nil {
			t.Fatal(err)
		}
		load(len(step.trusted), step.trusted[0], step.rootKey)
	}
	for _, key := range []string{CAKey, AgentKey} {
		if _, err := os.Stat(filepath.Join(dir, key)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of a CA that is gone: %v", key, err)
		}
	}
	if err := a.Use(nil); err == nil {
		t.Error("a rack without a CA")
	}
	if _, _, err := newAuthority([]*CA{{Root: next.Root}}, *renewed.Server()).SignAgent(nil, "m1", time.Now()); !errors.Is(err, ErrNoAgentsKey) {
		t.Errorf("an agent signed without the key: %v", err)
	}
	if _, err := newAuthority([]*CA{{Root: next.Root}}, *renewed.Server()).SignOperator(nil, "bob", time.Now()); !errors.Is(err, ErrNoRootKey) {
		t.Errorf("an operator signed without the key: %v", err)
	}
}

// TestInterruptedWritePair stops between the certificate and its key.
func TestInterruptedWritePair(t *testing.T) {
	dir, a := newRack(t)
	cert, key := filepath.Join(dir, ServerCert), filepath.Join(dir, ServerKey)
	csr, fresh := request(t)
	chain, _, err := a.SignNode(csr, "c1", nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	old, err := os.ReadFile(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := WritePair(cert, key, chain, fresh); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(key, key+next); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(key, old, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		pair, err := LoadPair(cert, key)
		if err != nil || !pair.PrivateKey.(*ecdsa.PrivateKey).Equal(fresh) {
			t.Errorf("the pair after an interruption: %v", err)
		}
	}
	if _, err := os.Stat(key + next); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the new key's file: %v", err)
	}
	if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key's mode: %v %v", info.Mode(), err)
	}
}
