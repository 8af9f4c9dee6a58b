package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	// maxPEM bounds a file of certificates or a key, in bytes; maxOperatorFiles how many operators' certificates are read.
	maxPEM           = 1 << 20
	maxOperatorFiles = 1000
	// next is the end of the name of a key that is about to be the key of that name.
	next = ".next"
)

// LoadAuthority reads a PKI directory. The CAs' private keys may be missing: then what needs them is refused with ErrNoRootKey
// or ErrNoAgentsKey. After a rotation that is how it is: the store has the keys.
func LoadAuthority(dir string) (*Authority, error) {
	file := func(name string) string { return filepath.Join(dir, name) }
	for _, key := range []string{ServerKey, AgentKey, CAKey} {
		info, err := os.Stat(file(key))
		if errors.Is(err, os.ErrNotExist) && key != ServerKey {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("load the rack's PKI: %w; make one with \"bloomery rack init\"", err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			return nil, fmt.Errorf("load the rack's PKI: %s has mode %04o, want 0600", file(key), info.Mode().Perm())
		}
	}
	roots, err := readCertificates(file(CACert))
	if err != nil {
		return nil, fmt.Errorf("load the rack's CA: %w", err)
	}
	agents, err := readCertificates(file(AgentCert))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("load the agents' CA: %w", err)
	}
	keys, err := readKeys(file(CAKey), file(AgentKey))
	if err != nil {
		return nil, err
	}
	var trusted []*CA
	used := 0
	for _, root := range roots {
		ca := &CA{Root: root, RootKey: keyOf(root, keys)}
		for _, a := range agents {
			if a.CheckSignatureFrom(root) == nil {
				ca.Agents, ca.AgentsKey = a, keyOf(a, keys)
				used++
				break
			}
		}
		if err := ca.check(); err != nil {
			return nil, fmt.Errorf("load %s: %w", file(CACert), err)
		}
		trusted = append(trusted, ca)
	}
	if used < len(agents) {
		return nil, errors.New("load the agents' CA: it is not signed by the rack's CA")
	}
	server, err := LoadPair(file(ServerCert), file(ServerKey))
	if err != nil {
		return nil, fmt.Errorf("load the coordinator's certificate: %w", err)
	}
	return newAuthority(trusted, server), nil
}

func keyOf(cert *x509.Certificate, keys []*ecdsa.PrivateKey) *ecdsa.PrivateKey {
	for _, k := range keys {
		if k.PublicKey.Equal(cert.PublicKey) {
			return k
		}
	}
	return nil
}

func readKeys(paths ...string) ([]*ecdsa.PrivateKey, error) {
	var all []*ecdsa.PrivateKey
	for _, path := range paths {
		data, err := readFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read a CA's key: %w", err)
		}
		block, _ := pem.Decode(data)
		if block == nil {
			return nil, fmt.Errorf("read a CA's key: %s holds none", path)
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read a CA's key: %s: %w", path, err)
		}
		ec, ok := key.(*ecdsa.PrivateKey)
		if !ok {
			return nil, fmt.Errorf("read a CA's key: %s: want an ECDSA key", path)
		}
		all = append(all, ec)
	}
	return all, nil
}

// WriteCAs brings the certificates in a PKI directory up to date, so that a coordinator trusts the right CAs before it can ask the
// store, and removes keys of CAs that are not trusted any more.
func (a *Authority) WriteCAs(dir string) error {
	var roots, agents bytes.Buffer
	var known []*x509.Certificate
	for _, ca := range a.Trusted() {
		appendPEM(&roots, ca.Root.Raw)
		known = append(known, ca.Root)
		if ca.Agents != nil {
			appendPEM(&agents, ca.Agents.Raw)
			known = append(known, ca.Agents)
		}
	}
	// Never is an agents' CA there without its root: roots first when they grow, which a rotation does before it shrinks them.
	for _, f := range []struct {
		name string
		data []byte
	}{{CACert, roots.Bytes()}, {AgentCert, agents.Bytes()}} {
		if err := replaceIfOther(filepath.Join(dir, f.name), f.data); err != nil {
			return err
		}
	}
	for _, name := range []string{CAKey, AgentKey} {
		path := filepath.Join(dir, name)
		keys, err := readKeys(path)
		if err != nil {
			return err
		}
		stale := len(keys) == 1
		for _, c := range known {
			stale = stale && keyOf(c, keys) == nil
		}
		if stale {
			if err := os.Remove(path); err != nil {
				return fmt.Errorf("remove the key of a CA that is not trusted any more: %w", err)
			}
		}
	}
	return nil
}

func appendPEM(b *bytes.Buffer, der []byte) {
	b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// EncodeCertificates writes certificates (DER) as PEM.
func EncodeCertificates(ders [][]byte) []byte {
	var b bytes.Buffer
	for _, der := range ders {
		appendPEM(&b, der)
	}
	return b.Bytes()
}

// WriteKey writes a new private key; a file that is there is not replaced.
func WriteKey(path string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	return writeNew(path, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// WritePair replaces a certificate chain (DER, leaf first) and its key. A crash in between leaves a pair that LoadPair reads.
func WritePair(certPath, keyPath string, chain [][]byte, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	if err := Replace(keyPath+next, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return err
	}
	if err := Replace(certPath, 0o644, EncodeCertificates(chain)); err != nil {
		return err
	}
	return rename(keyPath+next, keyPath)
}

// LoadPair reads a certificate with its key, and ends what an interrupted WritePair began.
func LoadPair(certPath, keyPath string) (tls.Certificate, error) {
	loaded, err := tls.LoadX509KeyPair(certPath, keyPath)
	if err == nil {
		return loaded, nil
	}
	fresh, freshErr := tls.LoadX509KeyPair(certPath, keyPath+next)
	if freshErr != nil {
		return tls.Certificate{}, err
	}
	return fresh, rename(keyPath+next, keyPath)
}

func replaceIfOther(path string, data []byte) error {
	old, err := os.ReadFile(path)
	if err == nil && bytes.Equal(old, data) {
		return nil
	}
	return Replace(path, 0o644, data)
}

// Replace writes a file whole or not at all.
func Replace(path string, mode os.FileMode, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("write %s: %w", path, err), removeIfThere(f.Name()))
	}
	return nil
}

func removeIfThere(path string) error {
	if err := os.Remove(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// rename is durable when it returns.
func rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// ReadOperators reads the operators' certificates in a PKI directory: files operator-NAME.crt that are NAME's.
func ReadOperators(dir string) ([]*x509.Certificate, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var all []*x509.Certificate
	for _, e := range entries {
		name, ok := strings.CutPrefix(e.Name(), "operator-")
		name, crt := strings.CutSuffix(name, ".crt")
		if !ok || !crt || !e.Type().IsRegular() || len(all) == maxOperatorFiles {
			continue
		}
		certs, err := readCertificates(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		org := certs[0].Subject.Organization
		if len(org) == 1 && org[0] == OperatorOrganization && certs[0].Subject.CommonName == name && ValidName(name) == nil {
			all = append(all, certs[0])
		}
	}
	return all, nil
}

// ClientTLS is the configuration of a client that trusts the rack's CA file and shows a certificate; empty names mean none is shown.
func ClientTLS(caPath, certPath, keyPath string) (*tls.Config, error) {
	roots, err := readCertificates(caPath)
	if err != nil {
		return nil, fmt.Errorf("load the rack's CA: %w", err)
	}
	pool := x509.NewCertPool()
	for _, root := range roots {
		pool.AddCert(root)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	if certPath != "" {
		cert, err := LoadPair(certPath, keyPath)
		if err != nil {
			return nil, fmt.Errorf("load the client certificate: %w", err)
		}
		config.Certificates = []tls.Certificate{cert}
	}
	return config, nil
}

// readCertificates reads a file of one or more certificates.
func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	all, err := ParseCertificates(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return all, nil
}

// ParseCertificates decodes PEM that holds one or more certificates.
func ParseCertificates(data []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, cert)
	}
	if len(all) == 0 {
		return nil, errors.New("holds no certificate")
	}
	return all, nil
}

func readFile(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() > maxPEM {
		return nil, fmt.Errorf("%s: %d bytes are more than %d", path, info.Size(), maxPEM)
	}
	return os.ReadFile(path)
}
