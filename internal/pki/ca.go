package pki

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ErrNoRootKey says that coordinators' and operators' certificates cannot be signed here, ErrNoAgentsKey that agents' cannot.
var (
	ErrNoRootKey   = errors.New("the key of the rack's CA (ca.key) is not on this coordinator")
	ErrNoAgentsKey = errors.New("the key of the agents' CA (agents-ca.key) is not on this coordinator")
)

// rootPrefix comes before the rack's name in a root's common name.
const rootPrefix = "bloomery rack "

// CA is one certificate authority of a rack: a root, the agents' CA under it, and those of their keys that are at hand.
type CA struct {
	Root, Agents *x509.Certificate
	// Cross is the root signed by the one before it: clients that know only that one follow it. Nil for a rack's first.
	Cross              *x509.Certificate
	RootKey, AgentsKey *ecdsa.PrivateKey
}

// NewCA makes the successor of a rack's CA.
func NewCA(before *CA, now time.Time) (*CA, error) {
	if before.RootKey == nil {
		return nil, ErrNoRootKey
	}
	rack := rackOf(before.Root)
	template := rootTemplate(rack, now)
	// Roots of one rack differ in their subject, so that no verifier takes one for the other.
	template.Subject.SerialNumber = now.UTC().Format("20060102T150405.000Z")
	root, err := issue(template, nil)
	if err != nil {
		return nil, fmt.Errorf("make the rack's new CA: %w", err)
	}
	agents, err := issue(agentsCATemplate(rack, now), root)
	if err != nil {
		return nil, fmt.Errorf("make the new agents' CA: %w", err)
	}
	again := rootTemplate(rack, now)
	again.Subject, again.NotAfter = template.Subject, before.Root.NotAfter
	cross, err := sign(again, &pair{before.Root, before.RootKey}, root.cert.PublicKey)
	if err != nil {
		return nil, fmt.Errorf("sign the rack's new CA by the present one: %w", err)
	}
	return &CA{Root: root.cert, Agents: agents.cert, Cross: cross, RootKey: root.key, AgentsKey: agents.key}, nil
}

// Fingerprint is the SHA-256 of the root, hex.
func (ca *CA) Fingerprint() string {
	sum := sha256.Sum256(ca.Root.Raw)
	return hex.EncodeToString(sum[:])
}

// wireCA is a CA as it is stored: DER, and PKCS #8 for keys.
type wireCA struct {
	Root      []byte `json:"root"`
	Agents    []byte `json:"agents,omitempty"`
	Cross     []byte `json:"cross,omitempty"`
	RootKey   []byte `json:"root_key,omitempty"`
	AgentsKey []byte `json:"agents_key,omitempty"`
}

// Marshal encodes a CA with its keys: a secret.
func (ca *CA) Marshal() ([]byte, error) {
	w := wireCA{Root: ca.Root.Raw}
	if ca.Agents != nil {
		w.Agents = ca.Agents.Raw
	}
	if ca.Cross != nil {
		w.Cross = ca.Cross.Raw
	}
	for _, k := range []struct {
		key *ecdsa.PrivateKey
		to  *[]byte
	}{{ca.RootKey, &w.RootKey}, {ca.AgentsKey, &w.AgentsKey}} {
		if k.key == nil {
			continue
		}
		der, err := x509.MarshalPKCS8PrivateKey(k.key)
		if err != nil {
			return nil, fmt.Errorf("encode a CA's key: %w", err)
		}
		*k.to = der
	}
	return json.Marshal(w)
}

// UnmarshalCA decodes what Marshal made, and checks that its parts belong together.
func UnmarshalCA(data []byte) (*CA, error) {
	var w wireCA
	if err := json.Unmarshal(data, &w); err != nil {
		return nil, fmt.Errorf("decode a CA: %w", err)
	}
	ca := &CA{}
	for _, c := range []struct {
		der []byte
		to  **x509.Certificate
	}{{w.Root, &ca.Root}, {w.Agents, &ca.Agents}, {w.Cross, &ca.Cross}} {
		if c.der == nil {
			continue
		}
		cert, err := x509.ParseCertificate(c.der)
		if err != nil {
			return nil, fmt.Errorf("decode a CA: %w", err)
		}
		*c.to = cert
	}
	for _, k := range []struct {
		der []byte
		to  **ecdsa.PrivateKey
	}{{w.RootKey, &ca.RootKey}, {w.AgentsKey, &ca.AgentsKey}} {
		if k.der == nil {
			continue
		}
		key, err := x509.ParsePKCS8PrivateKey(k.der)
		if err != nil {
			return nil, fmt.Errorf("decode a CA's key: %w", err)
		}
		ec, ok := key.(*ecdsa.PrivateKey)
		if !ok {
			return nil, errors.New("decode a CA's key: want an ECDSA key")
		}
		*k.to = ec
	}
	return ca, ca.check()
}

// check says whether the parts of a CA belong together.
func (ca *CA) check() error {
	switch {
	case ca.Root == nil || !isRoot(ca.Root):
		return errors.New("a rack's CA: its root is not one")
	case ca.Agents != nil && ca.Agents.CheckSignatureFrom(ca.Root) != nil:
		return errors.New("a rack's CA: the agents' CA is not signed by it")
	case ca.RootKey != nil && !ca.RootKey.PublicKey.Equal(ca.Root.PublicKey):
		return errors.New("a rack's CA: its key is another's")
	case ca.AgentsKey != nil && (ca.Agents == nil || !ca.AgentsKey.PublicKey.Equal(ca.Agents.PublicKey)):
		return errors.New("a rack's CA: the agents' CA's key is another's")
	case ca.Cross != nil && !ca.Root.PublicKey.(*ecdsa.PublicKey).Equal(ca.Cross.PublicKey):
		return errors.New("a rack's CA: its cross-signed root is another's")
	}
	return nil
}

func rackOf(root *x509.Certificate) string {
	return strings.TrimPrefix(root.Subject.CommonName, rootPrefix)
}

func rootTemplate(rack string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: rootPrefix + rack},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLen: 1,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}
