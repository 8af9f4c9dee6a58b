// Package pki is the rack's own certificate authority: who is a coordinator, an operator or an agent.
// Operators are signed by the root, agents by a name-constrained intermediate, so the key that is online cannot make operators.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// Names of the files in a PKI directory. Keys have mode 0600, certificates 0644, the directory 0700.
const (
	CACert     = "ca.crt"
	CAKey      = "ca.key"
	AgentCert  = "agents-ca.crt"
	AgentKey   = "agents-ca.key"
	ServerCert = "server.crt"
	ServerKey  = "server.key"
)

// ServerName is a DNS name that every coordinator's certificate carries; clients that dial a unix socket ask for it.
const ServerName = "coordinator"

// defaultNode names the first coordinator when nobody does, as the coordinator's configuration has it.
const defaultNode = "coordinator-1"

// Organizations by which certificates tell their role.
const (
	OperatorOrganization = "bloomery:operators"
	AgentOrganization    = "bloomery:agents"
	NodeOrganization     = "bloomery:coordinators"
)

const (
	caLifetime       = 10 * 365 * 24 * time.Hour
	leafLifetime     = 2 * 365 * 24 * time.Hour
	backdate         = 5 * time.Minute
	maxServerNames   = 64
	nameMaxLength    = 63
	operatorKeyUsage = x509.KeyUsageDigitalSignature
)

// ErrExists says that a rack was already made in the directory.
var ErrExists = errors.New("a rack's keys are already there")

// InitOptions is what InitRack needs to know.
type InitOptions struct {
	// Name of the rack: lower-case letters, digits and hyphens.
	Name string
	// Node is the first coordinator's name; coordinator-1 when empty.
	Node string
	// ServerAddresses are the IP addresses and DNS names at which coordinators are reached.
	ServerAddresses []string
	// OperatorName is the common name of the first operator; files operator-NAME.crt and .key.
	OperatorName string
}

// OperatorFiles names the certificate and key files of an operator in a PKI directory.
func OperatorFiles(dir, name string) (cert, key string) {
	return filepath.Join(dir, "operator-"+name+".crt"), filepath.Join(dir, "operator-"+name+".key")
}

// InitRack makes a rack's CA, its agents' CA, the coordinator's certificate and the first operator's.
// It returns ErrExists, and changes nothing, when the directory holds any of the files.
func InitRack(dir string, o InitOptions) error {
	if err := ValidName(o.Name); err != nil {
		return fmt.Errorf("rack name: %w", err)
	}
	if err := ValidName(o.OperatorName); err != nil {
		return fmt.Errorf("operator name: %w", err)
	}
	if o.Node == "" {
		o.Node = defaultNode
	}
	if err := ValidName(o.Node); err != nil {
		return fmt.Errorf("coordinator's name: %w", err)
	}
	if len(o.ServerAddresses) == 0 || len(o.ServerAddresses) > maxServerNames {
		return fmt.Errorf("server addresses: %d given, want 1 to %d", len(o.ServerAddresses), maxServerNames)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the PKI directory: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("close the PKI directory to others: %w", err)
	}
	opCert, opKey := OperatorFiles("", o.OperatorName)
	for _, name := range []string{CACert, CAKey, AgentCert, AgentKey, ServerCert, ServerKey, opCert, opKey} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, name), ErrExists)
		} else if !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("look for earlier keys: %w", err)
		}
	}
	now := time.Now()
	root, err := issue(rootTemplate(o.Name, now), nil)
	if err != nil {
		return fmt.Errorf("make the rack's CA: %w", err)
	}
	agents, err := issue(agentsCATemplate(o.Name, now), root)
	if err != nil {
		return fmt.Errorf("make the agents' CA: %w", err)
	}
	server, err := issue(serverTemplate(o.Node, o.ServerAddresses, now), root)
	if err != nil {
		return fmt.Errorf("make the coordinator's certificate: %w", err)
	}
	operator, err := issue(operatorTemplate(o.OperatorName, now), root)
	if err != nil {
		return fmt.Errorf("make the operator's certificate: %w", err)
	}
	for _, f := range []struct {
		pair      *pair
		cert, key string
	}{{root, CACert, CAKey}, {agents, AgentCert, AgentKey}, {server, ServerCert, ServerKey}, {operator, opCert, opKey}} {
		if err := f.pair.write(filepath.Join(dir, f.cert), filepath.Join(dir, f.key)); err != nil {
			return err
		}
	}
	return nil
}

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// ValidName says whether a name can be a machine's, a rack's or an operator's.
func ValidName(name string) error {
	if len(name) > nameMaxLength || !namePattern.MatchString(name) {
		return fmt.Errorf("%q: want 1 to %d lower-case letters, digits and inner hyphens", name, nameMaxLength)
	}
	return nil
}

// agentsCATemplate can sign client certificates only, and none that names an IP address or a foreign DNS name (RFC 5280, 4.2.1.10).
func agentsCATemplate(rack string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{CommonName: "bloomery agents of rack " + rack},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(caLifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{"agents.bloomery.invalid"},
		ExcludedIPRanges: []*net.IPNet{
			{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)},
			{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)},
		},
	}
}

func serverTemplate(name string, addresses []string, now time.Time) *x509.Certificate {
	t := &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{NodeOrganization}, CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{ServerName},
	}
	for _, a := range addresses {
		if ip := net.ParseIP(a); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if !slices.Contains(t.DNSNames, a) {
			t.DNSNames = append(t.DNSNames, a)
		}
	}
	return t
}

func operatorTemplate(name string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:   pkix.Name{Organization: []string{OperatorOrganization}, CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLifetime),
		KeyUsage:    operatorKeyUsage,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// pair is a certificate with its private key.
type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue signs a template with a new P-256 key; with itself when parent is nil.
func issue(template *x509.Certificate, parent *pair) (*pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate a key: %w", err)
	}
	signer := parent
	if signer == nil {
		signer = &pair{cert: template, key: key}
	}
	cert, err := sign(template, signer, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	return &pair{cert: cert, key: key}, nil
}

func sign(template *x509.Certificate, signer *pair, public any) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make a serial number: %w", err)
	}
	template.SerialNumber = serial.Add(serial, big.NewInt(1))
	der, err := x509.CreateCertificate(rand.Reader, template, signer.cert, public, signer.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func (p *pair) write(certPath, keyPath string) error {
	if err := WriteKey(keyPath, p.key); err != nil {
		return err
	}
	return writeNew(certPath, 0o644, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw}))
}

// writeNew never overwrites: O_EXCL, and the mode holds whatever the umask is.
func writeNew(path string, mode os.FileMode, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s: %w", path, ErrExists)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
