package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
)

// NodeTLS is how this coordinator calls another: it shows its own certificate and wants a coordinator's. It is a snapshot: ask
// again for each connection.
func (a *Authority) NodeTLS() *tls.Config {
	s := a.state.Load()
	return &tls.Config{
		Time:         s.now,
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{s.server},
		RootCAs:      s.pool,
		ServerName:   ServerName,
		VerifyConnection: func(state tls.ConnectionState) error {
			id, err := a.Identify(&state)
			if err == nil && id.Role != RoleNode {
				err = fmt.Errorf("the other end is no coordinator but an %s", id.Role)
			}
			return err
		},
	}
}

// NodeServerTLS is how this coordinator is called by others of the rack only. It is a snapshot: ask again for each connection.
func (a *Authority) NodeServerTLS() *tls.Config {
	config := a.state.Load().listener.Clone()
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.NextProtos = nil
	return config
}

// EncodeKey writes a private key as PEM.
func EncodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// DecodeKey reads what EncodeKey wrote.
func DecodeKey(text []byte) (*ecdsa.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("holds no key")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, errors.New("want an ECDSA key")
	}
	return ec, nil
}

// NodeOf is the coordinator that verified chains of certificates speak for. A root itself must have signed it, or one that it has cross-signed:
// an agents' CA could write any role into a certificate.
func NodeOf(chains [][]*x509.Certificate) (string, error) {
	for _, chain := range chains {
		direct := len(chain) == 2 || (len(chain) == 3 && isRoot(chain[1]) && rackOf(chain[1]) == rackOf(chain[2]))
		if direct && isRoot(chain[len(chain)-1]) && slices.Equal(chain[0].Subject.Organization, []string{NodeOrganization}) {
			return chain[0].Subject.CommonName, nil
		}
	}
	return "", errors.New("the certificate is not one of a coordinator")
}
