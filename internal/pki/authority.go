package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// AgentLifetime is how long an agent's certificate is valid.
const AgentLifetime = 24 * time.Hour

// maxCSR bounds a certificate signing request, in bytes; a P-256 request with a name is below 500.
const maxCSR = 4096

// Role is what a certificate lets its holder be.
type Role uint8

// The roles; a connection without a certificate has RoleNone.
const (
	RoleNone Role = iota
	RoleOperator
	RoleAgent
	// RoleNode is another coordinator of the rack.
	RoleNode
)

func (r Role) String() string {
	switch r {
	case RoleOperator:
		return "operator"
	case RoleAgent:
		return "agent"
	case RoleNode:
		return "coordinator"
	}
	return "none"
}

// Identity is who is at the other end of a connection.
type Identity struct {
	Role Role
	// Name is an operator's name or a machine's.
	Name string
	// Certificate is the leaf, DER; nil without one.
	Certificate []byte
}

// Authority is what a coordinator needs of the rack's PKI.
type Authority struct {
	root *x509.Certificate
	// rootKey is nil when the root's private key is kept elsewhere.
	rootKey *pair
	agents  *pair
	server  tls.Certificate
}

// ErrNoRootKey says that nothing but agents' certificates can be signed here.
var ErrNoRootKey = errors.New("the key of the rack's CA (ca.key) is not on this coordinator")

// LoadAuthority reads a PKI directory. The root's private key may be missing: then coordinators and operators cannot be signed.
func LoadAuthority(dir string) (*Authority, error) {
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, key := range []string{AgentKey, ServerKey} {
		info, err := os.Stat(file(key))
		if err != nil {
			return nil, fmt.Errorf("load the rack's PKI: %w; make one with \"bloomery rack init\"", err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			return nil, fmt.Errorf("load the rack's PKI: %s has mode %04o, want 0600", file(key), info.Mode().Perm())
		}
	}
	root, err := readCertificate(file(CACert))
	if err != nil {
		return nil, fmt.Errorf("load the rack's CA: %w", err)
	}
	agents, err := load(file(AgentCert), file(AgentKey))
	if err != nil {
		return nil, fmt.Errorf("load the agents' CA: %w", err)
	}
	if err := agents.cert.CheckSignatureFrom(root); err != nil {
		return nil, fmt.Errorf("load the agents' CA: it is not signed by the rack's CA: %w", err)
	}
	server, err := tls.LoadX509KeyPair(file(ServerCert), file(ServerKey))
	if err != nil {
		return nil, fmt.Errorf("load the coordinator's certificate: %w", err)
	}
	a := &Authority{root: root, agents: agents, server: server}
	if _, err := os.Stat(file(CAKey)); err == nil {
		if a.rootKey, err = load(file(CACert), file(CAKey)); err != nil {
			return nil, fmt.Errorf("load the rack's CA: %w", err)
		}
	}
	return a, nil
}

func (a *Authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.root)
	return pool
}

// ServerTLS is the configuration of a coordinator's listeners: TLS 1.3, client certificates verified when given (Enrol has none).
func (a *Authority) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{a.server},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    a.pool(),
		NextProtos:   []string{"h2", "http/1.1"},
	}
}

// Root is the rack's CA certificate.
func (a *Authority) Root() *x509.Certificate { return a.root }

// Identify says who a verified connection is. An agent must be signed by the agents' CA and an operator by the root itself:
// a certificate that claims another role than its issuer gives is an error.
func (a *Authority) Identify(state *tls.ConnectionState) (Identity, error) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return Identity{}, nil
	}
	if len(state.VerifiedChains) == 0 {
		return Identity{}, errors.New("certificate was not verified")
	}
	leaf, chain := state.PeerCertificates[0], state.VerifiedChains[0]
	id := Identity{Name: leaf.Subject.CommonName, Certificate: leaf.Raw}
	if err := ValidName(id.Name); err != nil {
		return Identity{}, fmt.Errorf("certificate's common name: %w", err)
	}
	byAgents := len(chain) == 3 && chain[1].Equal(a.agents.cert)
	byRoot := len(chain) == 2 && chain[1].Equal(a.root)
	switch org := leaf.Subject.Organization; {
	case byAgents && slices.Equal(org, []string{AgentOrganization}):
		id.Role = RoleAgent
	case byRoot && slices.Equal(org, []string{OperatorOrganization}):
		id.Role = RoleOperator
	case byRoot && slices.Equal(org, []string{NodeOrganization}):
		id.Role = RoleNode
	default:
		return Identity{}, fmt.Errorf("certificate of %v was not issued for that role", org)
	}
	return id, nil
}

// SignAgent signs an agent's request for a machine. The request's own names are ignored. It returns the chain, leaf first, without the root.
func (a *Authority) SignAgent(csr *x509.CertificateRequest, machine string, now time.Time) ([][]byte, time.Time, error) {
	if err := ValidName(machine); err != nil {
		return nil, time.Time{}, fmt.Errorf("machine name: %w", err)
	}
	notAfter := now.Add(AgentLifetime).Truncate(time.Second)
	leaf, err := sign(&x509.Certificate{
		Subject:   pkix.Name{Organization: []string{AgentOrganization}, CommonName: machine},
		NotBefore: now.Add(-backdate), NotAfter: notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, a.agents, csr.PublicKey)
	if err != nil {
		return nil, time.Time{}, err
	}
	return [][]byte{leaf.Raw, a.agents.cert.Raw}, notAfter, nil
}

// SignNode signs a coordinator's request with the rack's CA: its certificate serves, and calls other coordinators.
// names are the IP addresses and DNS names at which it is reached. The request's own names are ignored.
func (a *Authority) SignNode(csr *x509.CertificateRequest, node string, names []string, now time.Time) ([][]byte, time.Time, error) {
	if a.rootKey == nil {
		return nil, time.Time{}, ErrNoRootKey
	}
	if err := ValidName(node); err != nil {
		return nil, time.Time{}, fmt.Errorf("coordinator's name: %w", err)
	}
	if len(names) > maxServerNames {
		return nil, time.Time{}, fmt.Errorf("coordinator's names: %d given, want at most %d", len(names), maxServerNames)
	}
	leaf, err := sign(serverTemplate(node, names, now), a.rootKey, csr.PublicKey)
	if err != nil {
		return nil, time.Time{}, err
	}
	return [][]byte{leaf.Raw}, leaf.NotAfter, nil
}

// ParseCSR reads and checks a PKCS #10 request (RFC 2986) from outside: at most 4 KiB, a P-256 or Ed25519 key, signed by it.
func ParseCSR(der []byte) (*x509.CertificateRequest, error) {
	if len(der) == 0 || len(der) > maxCSR {
		return nil, fmt.Errorf("certificate request of %d bytes: want 1 to %d", len(der), maxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fmt.Errorf("parse the certificate request: %w", err)
	}
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Curve != elliptic.P256() {
			return nil, errors.New("certificate request: want an ECDSA P-256 or Ed25519 key")
		}
	case ed25519.PublicKey:
	default:
		return nil, errors.New("certificate request: want an ECDSA P-256 or Ed25519 key")
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("certificate request: %w", err)
	}
	return csr, nil
}

// ClientTLS is the configuration of a client that trusts the rack's CA file and shows a certificate; empty names mean none is shown.
func ClientTLS(caPath, certPath, keyPath string) (*tls.Config, error) {
	root, err := readCertificate(caPath)
	if err != nil {
		return nil, fmt.Errorf("load the rack's CA: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	if certPath != "" {
		cert, err := tls.LoadX509KeyPair(certPath, keyPath)
		if err != nil {
			return nil, fmt.Errorf("load the client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}
