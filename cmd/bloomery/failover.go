package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

const (
	// dialTimeout bounds one coordinator's TCP and TLS handshakes; after dialStagger the next one is tried beside it.
	dialTimeout = 5 * time.Second
	dialStagger = 300 * time.Millisecond
	// A connection on which nothing is heard for pingAfter and pingTimeout is given up, so that a watch is opened again elsewhere.
	pingAfter   = 5 * time.Second
	pingTimeout = 5 * time.Second
	// A call that may be repeated is made callTries times at most, with growing pauses from retryPause on.
	callTries  = 3
	retryPause = 200 * time.Millisecond
)

// target is one coordinator's address, and the name that its certificate must carry.
type target struct{ network, address, serverName string }

// parseTargets reads the servers of a client's configuration.
func parseTargets(servers []string, serverName string) ([]target, error) {
	var targets []target
	for _, server := range servers {
		if path, ok := strings.CutPrefix(server, "unix:"); ok {
			if serverName == "" {
				return nil, fmt.Errorf("%q: a unix socket needs server_name", server)
			}
			targets = append(targets, target{"unix", strings.TrimPrefix(path, "//"), serverName})
			continue
		}
		parsed, err := url.Parse(server)
		if err != nil || parsed.Scheme != "https" || parsed.Host == "" {
			return nil, fmt.Errorf("%q: want https://host:port or unix:/path", server)
		}
		t := target{"tcp", parsed.Host, parsed.Hostname()}
		if parsed.Port() == "" {
			t.address = net.JoinHostPort(parsed.Hostname(), "8443")
		}
		if serverName != "" {
			t.serverName = serverName
		}
		targets = append(targets, t)
	}
	return targets, nil
}

// coordinators is the way to whichever coordinator of a rack answers. It is an http.RoundTripper.
type coordinators struct {
	targets []target
	tls     *tls.Config

	mu sync.Mutex
	// first is the target that dialling begins with: the one that answered last.
	first     int
	transport *http.Transport
}

func newCoordinators(targets []target, config *tls.Config) *coordinators {
	c := &coordinators{targets: targets, tls: config}
	c.tls.NextProtos = []string{"h2", "http/1.1"}
	c.transport = c.newTransport()
	return c
}

func (c *coordinators) newTransport() *http.Transport {
	return &http.Transport{
		DialTLSContext:    func(ctx context.Context, _, _ string) (net.Conn, error) { return c.dial(ctx) },
		ForceAttemptHTTP2: true,
		IdleConnTimeout:   time.Minute,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
}

// RoundTrip implements http.RoundTripper.
func (c *coordinators) RoundTrip(r *http.Request) (*http.Response, error) {
	c.mu.Lock()
	transport := c.transport
	c.mu.Unlock()
	return transport.RoundTrip(r)
}

// leave makes later requests go to another coordinator, on a connection of their own. Requests under way are not touched.
func (c *coordinators) leave() {
	c.mu.Lock()
	old := c.transport
	c.transport = c.newTransport()
	c.first = (c.first + 1) % len(c.targets)
	c.mu.Unlock()
	old.CloseIdleConnections()
}

// dial connects to the first coordinator that completes a TLS handshake. They are tried in turn, each a moment after the one before, so that
// one that is dead or hangs costs that moment only.
func (c *coordinators) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	c.mu.Lock()
	first := c.first
	c.mu.Unlock()
	type outcome struct {
		index int
		conn  net.Conn
		err   error
	}
	outcomes := make(chan outcome, len(c.targets)) // so that no dialler waits for its reader
	started := 0
	start := func() {
		index := (first + started) % len(c.targets)
		started++
		go func() {
			conn, err := c.dialOne(ctx, c.targets[index])
			outcomes <- outcome{index, conn, err}
		}()
	}
	start()
	stagger := time.NewTicker(dialStagger)
	defer stagger.Stop()
	var failures []error
	for ended := 0; ended < len(c.targets); {
		select {
		case <-stagger.C:
			if started < len(c.targets) {
				start()
			}
		case o := <-outcomes:
			ended++
			if o.err != nil {
				failures = append(failures, o.err)
				if started < len(c.targets) {
					start()
				}
				continue
			}
			c.mu.Lock()
			c.first = o.index
			c.mu.Unlock()
			// The cancelled ones end at once; a late winner is not needed.
			cancel()
			for left := started - ended; left > 0; left-- {
				if late := <-outcomes; late.err == nil {
					late.conn.Close()
				}
			}
			return o.conn, nil
		}
	}
	return nil, errors.Join(failures...)
}

func (c *coordinators) dialOne(ctx context.Context, t target) (net.Conn, error) {
	raw, err := (&net.Dialer{}).DialContext(ctx, t.network, t.address)
	if err != nil {
		return nil, err
	}
	config := c.tls.Clone()
	config.ServerName = t.serverName
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("coordinator at %s: TLS: %w", t.address, err), raw.Close())
	}
	return conn, nil
}

// repeat is the interceptor that makes a call again, at another coordinator, when one could not be reached or could not answer: at most a
// pause is seen of a coordinator's death. Only calls that may be made twice are.
type repeat struct{ c *coordinators }

// WrapUnary implements connect.Interceptor.
func (r repeat) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		for try := 1; ; try++ {
			answer, err := next(ctx, request)
			if err == nil || !unanswered(err) {
				return answer, err
			}
			r.c.leave()
			if try == callTries || !repeatable(request) {
				return nil, err
			}
			pause := retryPause << (2 * (try - 1))
			select {
			case <-time.After(pause/2 + rand.N(pause)):
			case <-ctx.Done():
				return nil, err
			}
		}
	}
}

// WrapStreamingClient implements connect.Interceptor: a stream is opened again by keepWatching, at another coordinator.
func (r repeat) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return leavingConn{next(ctx, spec), r.c}
	}
}

// WrapStreamingHandler implements connect.Interceptor.
func (r repeat) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

type leavingConn struct {
	connect.StreamingClientConn
	c *coordinators
}

// Receive implements connect.StreamingClientConn.
func (l leavingConn) Receive(message any) error {
	err := l.StreamingClientConn.Receive(message)
	if err != nil && unanswered(err) {
		l.c.leave()
	}
	return err
}

// unanswered tells a coordinator's absence, or its saying that it cannot answer now, from its answer.
func unanswered(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable:
		return true
	case connect.CodeUnknown, connect.CodeInternal, connect.CodeAborted:
		// A connection that broke in the middle of an answer; the end of a stream is none.
		var code *connect.Error
		return errors.As(err, &code) && !connect.IsWireError(err)
	}
	return false
}

// reads are the beginnings of methods that change nothing.
var reads = []string{"Get", "List", "Verify", "Who"}

// repeatable says whether a call may be made again although the first may have been carried out: it reads, or carries a request id by
// which the rack knows it.
func repeatable(request connect.AnyRequest) bool {
	procedure := request.Spec().Procedure
	method := procedure[strings.LastIndexByte(procedure, '/')+1:]
	if slices.ContainsFunc(reads, func(begin string) bool { return strings.HasPrefix(method, begin) }) {
		return true
	}
	message, ok := request.Any().(proto.Message)
	if !ok {
		return false
	}
	m := message.ProtoReflect()
	id := m.Descriptor().Fields().ByName("request_id")
	return id != nil && id.Kind() == protoreflect.StringKind && m.Get(id).String() != ""
}
