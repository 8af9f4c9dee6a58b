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
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	// Name is an operator's name, a machine's or a coordinator's.
	Name string
	// Certificate is the leaf, DER; nil without one.
	Certificate []byte
	NotAfter    time.Time
}

// Authority is what a coordinator needs of the rack's PKI. It changes while it is in use: when the rack's CA is rotated, and when
// this coordinator's own certificate is renewed. Connections that are open go on.
type Authority struct {
	// AgentLifetime and LeafLifetime are those of the certificates that are signed; set before the first.
	AgentLifetime, LeafLifetime time.Duration

	mu    sync.Mutex
	state atomic.Pointer[state]
}

// state is everything at one moment; it is replaced, never changed.
type state struct {
	// trusted is not empty; the first one signs.
	trusted  []*CA
	server   tls.Certificate
	pool     *x509.CertPool
	listener *tls.Config
	// now is the clock by which certificates are checked; nil is time.Now.
	now func() time.Time
}

func newAuthority(trusted []*CA, server tls.Certificate) *Authority {
	a := &Authority{AgentLifetime: AgentLifetime, LeafLifetime: leafLifetime}
	a.set(trusted, server, nil)
	return a
}

func (a *Authority) set(trusted []*CA, server tls.Certificate, now func() time.Time) {
	pool := x509.NewCertPool()
	for _, ca := range trusted {
		pool.AddCert(ca.Root)
	}
	a.state.Store(&state{trusted: trusted, server: server, pool: pool, now: now, listener: &tls.Config{
		Time:         now,
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{server},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    pool,
		NextProtos:   []string{"h2", "http/1.1"},
	}})
}

// Use replaces the CAs that are trusted; the first one signs.
func (a *Authority) Use(trusted []*CA) error {
	if len(trusted) == 0 {
		return errors.New("the rack needs a CA")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.state.Load()
	a.set(slices.Clone(trusted), s.server, s.now)
	return nil
}

// UseServer replaces this coordinator's own certificate.
func (a *Authority) UseServer(server tls.Certificate) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.state.Load()
	a.set(s.trusted, server, s.now)
}

// UseClock replaces the clock by which certificates are checked.
func (a *Authority) UseClock(now func() time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.state.Load()
	a.set(s.trusted, s.server, now)
}

// Trusted are the CAs that are trusted now; the first one signs.
func (a *Authority) Trusted() []*CA { return slices.Clone(a.state.Load().trusted) }

// Roots are the trusted roots, DER, for clients.
func (a *Authority) Roots() [][]byte {
	var all [][]byte
	for _, ca := range a.state.Load().trusted {
		all = append(all, ca.Root.Raw)
	}
	return all
}

// Pool holds the trusted roots, to verify another coordinator by. It is a snapshot: ask again for each connection.
func (a *Authority) Pool() *x509.CertPool { return a.state.Load().pool }

// Server is this coordinator's own certificate. It is a snapshot: ask again for each connection.
func (a *Authority) Server() *tls.Certificate {
	server := a.state.Load().server
	return &server
}

// Root is the certificate of the CA that signs.
func (a *Authority) Root() *x509.Certificate { return a.state.Load().trusted[0].Root }

// Rack is the rack's name.
func (a *Authority) Rack() string { return rackOf(a.Root()) }

// ServerTLS is the configuration of a coordinator's listeners: TLS 1.3, client certificates verified when given (Enrol has none).
// Each connection takes what is trusted when it begins.
func (a *Authority) ServerTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2", "http/1.1"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return a.state.Load().listener, nil
		},
	}
}

// Identify says who a verified connection is. An agent must be signed by an agents' CA and an operator by a root itself: a
// certificate that claims another role than its issuer gives is an error. So is one whose CA is not trusted any more.
func (a *Authority) Identify(connection *tls.ConnectionState) (Identity, error) {
	if connection == nil || len(connection.PeerCertificates) == 0 {
		return Identity{}, nil
	}
	if len(connection.VerifiedChains) == 0 {
		return Identity{}, errors.New("certificate was not verified")
	}
	leaf := connection.PeerCertificates[0]
	id := Identity{Name: leaf.Subject.CommonName, Certificate: leaf.Raw, NotAfter: leaf.NotAfter}
	if err := ValidName(id.Name); err != nil {
		return Identity{}, fmt.Errorf("certificate's common name: %w", err)
	}
	s := a.state.Load()
	byAgents := slices.ContainsFunc(connection.VerifiedChains, s.byAgents)
	byRoot := slices.ContainsFunc(connection.VerifiedChains, s.byRoot)
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

func (s *state) byAgents(chain []*x509.Certificate) bool {
	return len(chain) == 3 && slices.ContainsFunc(s.trusted, func(ca *CA) bool {
		return ca.Agents != nil && chain[1].Equal(ca.Agents) && chain[2].Equal(ca.Root)
	})
}

// byRoot also accepts a new root that an older trusted one has signed: this coordinator may not have heard of it yet.
func (s *state) byRoot(chain []*x509.Certificate) bool {
	last := chain[len(chain)-1]
	trusted := slices.ContainsFunc(s.trusted, func(ca *CA) bool { return last.Equal(ca.Root) })
	return trusted && (len(chain) == 2 || (len(chain) == 3 && isRoot(chain[1]) && rackOf(chain[1]) == rackOf(last)))
}

// isRoot tells a root, cross-signed or not, from an agents' CA, which can sign no other CA and clients only.
func isRoot(c *x509.Certificate) bool {
	return c.IsCA && c.BasicConstraintsValid && c.MaxPathLen > 0 && len(c.ExtKeyUsage) == 0 && !c.PermittedDNSDomainsCritical && strings.HasPrefix(c.Subject.CommonName, rootPrefix)
}

// Issued says under which trusted root a certificate was signed by the root itself.
func (a *Authority) Issued(cert *x509.Certificate) (fingerprint string, ok bool) {
	for _, ca := range a.state.Load().trusted {
		if cert.CheckSignatureFrom(ca.Root) == nil {
			return ca.Fingerprint(), true
		}
	}
	return "", false
}

// AgentsOf says under which trusted root an agents' CA (DER) stands; empty when under none.
func (a *Authority) AgentsOf(agents []byte) string {
	for _, ca := range a.state.Load().trusted {
		if ca.Agents != nil && slices.Equal(ca.Agents.Raw, agents) {
			return ca.Fingerprint()
		}
	}
	return ""
}

// SignAgent signs an agent's request for a machine. The request's own names are ignored. It returns the chain, leaf first, without the root.
func (a *Authority) SignAgent(csr *x509.CertificateRequest, machine string, now time.Time) ([][]byte, time.Time, error) {
	if err := ValidName(machine); err != nil {
		return nil, time.Time{}, fmt.Errorf("machine name: %w", err)
	}
	ca := a.state.Load().trusted[0]
	if ca.AgentsKey == nil {
		return nil, time.Time{}, ErrNoAgentsKey
	}
	leaf, err := sign(&x509.Certificate{
		Subject: pkix.Name{Organization: []string{AgentOrganization}, CommonName: machine},
		// Since its CA: a coordinator whose clock is ahead must not make certificates that the others do not take yet.
		NotBefore: ca.Agents.NotBefore, NotAfter: now.Add(a.AgentLifetime).Truncate(time.Second),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, &pair{ca.Agents, ca.AgentsKey}, csr.PublicKey)
	if err != nil {
		return nil, time.Time{}, err
	}
	return [][]byte{leaf.Raw, ca.Agents.Raw}, leaf.NotAfter, nil
}

// SignNode signs a coordinator's request with the rack's CA: its certificate serves, and calls other coordinators.
// names are the IP addresses and DNS names at which it is reached. The request's own names are ignored. While older clients may know
// only the CA before, the chain leads to that one too.
func (a *Authority) SignNode(csr *x509.CertificateRequest, node string, names []string, now time.Time) ([][]byte, time.Time, error) {
	if err := ValidName(node); err != nil {
		return nil, time.Time{}, fmt.Errorf("coordinator's name: %w", err)
	}
	if len(names) > maxServerNames {
		return nil, time.Time{}, fmt.Errorf("coordinator's names: %d given, want at most %d", len(names), maxServerNames)
	}
	signed, err := a.signByRoot(serverTemplate(node, names, now), csr, now)
	if err != nil {
		return nil, time.Time{}, err
	}
	return signed.Chain, signed.NotAfter, nil
}

// Signed is a new certificate.
type Signed struct {
	// Chain is DER, leaf first, without the root.
	Chain [][]byte
	// Authority is the fingerprint of the root.
	Authority string
	NotAfter  time.Time
}

// SignOperator signs an operator's request with the rack's CA. The request's own names are ignored.
func (a *Authority) SignOperator(csr *x509.CertificateRequest, name string, now time.Time) (*Signed, error) {
	if err := ValidName(name); err != nil {
		return nil, fmt.Errorf("operator name: %w", err)
	}
	return a.signByRoot(operatorTemplate(name, now), csr, now)
}

func (a *Authority) signByRoot(template *x509.Certificate, csr *x509.CertificateRequest, now time.Time) (*Signed, error) {
	ca := a.state.Load().trusted[0]
	if ca.RootKey == nil {
		return nil, ErrNoRootKey
	}
	template.NotAfter = now.Add(a.LeafLifetime).Truncate(time.Second)
	leaf, err := sign(template, &pair{ca.Root, ca.RootKey}, csr.PublicKey)
	if err != nil {
		return nil, err
	}
	signed := &Signed{Chain: [][]byte{leaf.Raw}, Authority: ca.Fingerprint(), NotAfter: leaf.NotAfter}
	if ca.Cross != nil {
		signed.Chain = append(signed.Chain, ca.Cross.Raw)
	}
	return signed, nil
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
