package coordinator

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"time"

	"bloomery/internal/pki"
)

// nodeDialTimeout bounds the TCP and TLS handshakes with another coordinator; those of a rack are milliseconds away.
const nodeDialTimeout = 3 * time.Second

// nodeClient calls other coordinators by HTTP/1.1, for data: each connection shows the certificate of the moment and wants a coordinator's.
func nodeClient(authority *pki.Authority) *http.Client {
	return &http.Client{Transport: &http.Transport{
		IdleConnTimeout: time.Minute,
		DialTLSContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, nodeDialTimeout)
			defer cancel()
			raw, err := (&net.Dialer{}).DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			conn := tls.Client(raw, authority.NodeTLS())
			if err := conn.HandshakeContext(ctx); err != nil {
				return nil, errors.Join(err, raw.Close())
			}
			return conn, nil
		},
	}}
}
