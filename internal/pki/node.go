package pki

import (
	"crypto/tls"
	"fmt"
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
