package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	pb "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
)

const (
	callTimeout = 10 * time.Second
	pollWait    = 25 * time.Second
	maxResponse = 4 << 20
	// A coordinator on the machine's own network answers within milliseconds: one that does not for this long is given up for the next.
	// dialTimeout is for TCP and for TLS each; a connection in use is given up after pingAfter and pingTimeout.
	dialTimeout = 2 * time.Second
	pingAfter   = 2 * time.Second
	pingTimeout = 3 * time.Second
)

// connection is the way to the coordinators: the present certificate, and which coordinator answered last.
type connection struct {
	urls      []string
	roots     *x509.CertPool
	preferred atomic.Uint32

	mu      sync.Mutex
	session *session
}

// session is the clients that show one certificate, or none.
type session struct {
	rpc     *http.Client
	data    *http.Client
	clients []bloomeryv1connect.AgentServiceClient
	// anonymous until the machine is enrolled.
	anonymous bool
}

func newConnection(urls []string, roots *x509.CertPool) *connection {
	c := &connection{urls: urls, roots: roots}
	c.session = c.newSession(nil)
	return c
}

// use makes later calls show a certificate; calls that are under way end with the old one.
func (c *connection) use(certificate *tls.Certificate) {
	fresh := c.newSession(certificate)
	c.mu.Lock()
	old := c.session
	c.session = fresh
	c.mu.Unlock()
	old.rpc.CloseIdleConnections()
	old.data.CloseIdleConnections()
}

func (c *connection) current() *session {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session
}

func (c *connection) newSession(certificate *tls.Certificate) *session {
	s := &session{anonymous: certificate == nil, rpc: &http.Client{Transport: c.transport(certificate, true)}, data: &http.Client{Transport: c.transport(certificate, false)}}
	for _, url := range c.urls {
		s.clients = append(s.clients, bloomeryv1connect.NewAgentServiceClient(s.rpc, url, connect.WithReadMaxBytes(maxResponse)))
	}
	return s
}

// transport trusts the rack's CA only. Calls share one HTTP/2 connection, pinged so that a dead peer is noticed during a long poll; image
// data comes over HTTP/1.1, where parallel ranges have connections and flow control of their own.
func (c *connection) transport(certificate *tls.Certificate, http2 bool) *http.Transport {
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.roots}
	if certificate != nil {
		config.Certificates = []tls.Certificate{*certificate}
	}
	t := &http.Transport{
		TLSClientConfig: config, TLSHandshakeTimeout: dialTimeout, IdleConnTimeout: 2 * time.Minute, MaxIdleConnsPerHost: 16,
		DialContext: (&net.Dialer{Timeout: dialTimeout, KeepAlive: 10 * time.Second}).DialContext,
		Protocols:   new(http.Protocols),
	}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetHTTP2(http2)
	if http2 {
		t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout}
	}
	return t
}

// call tries the coordinators in turn, beginning with the one that answered last, until one gives an answer. A refusal is an answer.
func call[T any](ctx context.Context, c *connection, timeout time.Duration, do func(context.Context, bloomeryv1connect.AgentServiceClient) (*connect.Response[T], error)) (*T, error) {
	s := c.current()
	first := int(c.preferred.Load())
	var errs []error
	for i := range s.clients {
		n := (first + i) % len(s.clients)
		attempt, cancel := context.WithTimeout(ctx, timeout)
		response, err := do(attempt, s.clients[n])
		cancel()
		if err == nil {
			c.preferred.Store(uint32(n))
			return response.Msg, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", c.urls[n], err))
		if ctx.Err() != nil || isRefusal(err) {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// isRefusal tells a coordinator's decision from its absence.
func isRefusal(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodePermissionDenied, connect.CodeUnauthenticated, connect.CodeInvalidArgument, connect.CodeNotFound, connect.CodeFailedPrecondition, connect.CodeUnimplemented:
		return true
	}
	return false
}

func (c *connection) enrol(ctx context.Context, request *pb.EnrolRequest) (*pb.EnrolResponse, error) {
	return call(ctx, c, callTimeout, func(ctx context.Context, client bloomeryv1connect.AgentServiceClient) (*connect.Response[pb.EnrolResponse], error) {
		return client.Enrol(ctx, connect.NewRequest(request))
	})
}

func (c *connection) nextStep(ctx context.Context, bootID string) (*pb.NextStepResponse, error) {
	return call(ctx, c, pollWait+callTimeout, func(ctx context.Context, client bloomeryv1connect.AgentServiceClient) (*connect.Response[pb.NextStepResponse], error) {
		return client.NextStep(ctx, connect.NewRequest(&pb.NextStepRequest{BootId: bootID, WaitSeconds: int32(pollWait / time.Second)}))
	})
}

func (c *connection) report(ctx context.Context, bootID string, batch []*pb.Report) (int64, error) {
	response, err := call(ctx, c, callTimeout, func(ctx context.Context, client bloomeryv1connect.AgentServiceClient) (*connect.Response[pb.ReportResponse], error) {
		return client.Report(ctx, connect.NewRequest(&pb.ReportRequest{BootId: bootID, Reports: batch}))
	})
	return response.GetAcknowledged(), err
}
