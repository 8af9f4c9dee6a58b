package vswitch

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	gpb "github.com/openconfig/gnmi/proto/gnmi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// GNMIOptions secure the gNMI server. All fields are required.
type GNMIOptions struct {
	Certificate tls.Certificate // SelfSigned makes one
	Username    string
	Password    string
}

// ServeGNMI serves gNMI on the listener until the context ends or the switch is closed, which closes the listener. It returns
// at once; the switch's Close waits for it.
func (s *Switch) ServeGNMI(ctx context.Context, l net.Listener, o GNMIOptions) error {
	if o.Username == "" || o.Password == "" || len(o.Certificate.Certificate) == 0 {
		return errors.New("serve gNMI: want a certificate, a username and a password")
	}
	auth := authenticator{sha256.Sum256([]byte(o.Username)), sha256.Sum256([]byte(o.Password))}
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{
			MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{o.Certificate},
		})),
		grpc.UnaryInterceptor(auth.unary), grpc.StreamInterceptor(auth.stream),
		grpc.MaxRecvMsgSize(1<<20), grpc.MaxConcurrentStreams(64), grpc.ConnectionTimeout(10*time.Second),
	)
	gpb.RegisterGNMIServer(server, &gnmiServer{sw: s})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("serve gNMI: %w", errClosed)
	}
	closer := &stopper{server: server, listener: l, stopped: make(chan struct{})}
	s.closers = append(s.closers, closer)
	s.running.Go(func() {
		if err := server.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			s.log.Error("gnmi server ended", "error", err)
		}
	})
	s.running.Go(func() {
		select {
		case <-ctx.Done():
			_ = closer.Close() // never fails
		case <-closer.stopped:
		}
	})
	return nil
}

type stopper struct {
	server   *grpc.Server
	listener net.Listener
	once     sync.Once
	stopped  chan struct{}
}

func (c *stopper) Close() error {
	c.once.Do(func() {
		c.server.Stop()
		_ = c.listener.Close() // Stop has closed it unless Serve had not begun
		close(c.stopped)
	})
	return nil
}

// authenticator keeps digests, so that comparing takes the same time for every guess.
type authenticator struct{ username, password [sha256.Size]byte }

func (a authenticator) check(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	digest := func(key string) [sha256.Size]byte {
		if v := md.Get(key); len(v) == 1 {
			return sha256.Sum256([]byte(v[0]))
		}
		return [sha256.Size]byte{}
	}
	u, p := digest("username"), digest("password")
	if subtle.ConstantTimeCompare(u[:], a.username[:])&subtle.ConstantTimeCompare(p[:], a.password[:]) != 1 {
		return status.Error(codes.Unauthenticated, "wrong username or password")
	}
	return nil
}

func (a authenticator) unary(ctx context.Context, req any, _ *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
	if err := a.check(ctx); err != nil {
		return nil, err
	}
	return h(ctx, req)
}

func (a authenticator) stream(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
	if err := a.check(ss.Context()); err != nil {
		return err
	}
	return h(srv, ss)
}

type gnmiServer struct {
	gpb.UnimplementedGNMIServer
	sw *Switch
}

func (g *gnmiServer) Capabilities(context.Context, *gpb.CapabilityRequest) (*gpb.CapabilityResponse, error) {
	model := func(name, version string) *gpb.ModelData {
		return &gpb.ModelData{Name: name, Organization: "OpenConfig working group", Version: version}
	}
	return &gpb.CapabilityResponse{
		SupportedModels: []*gpb.ModelData{
			model("openconfig-interfaces", "3.0.0"), model("openconfig-if-ethernet", "2.12.0"),
			model("openconfig-vlan", "3.2.2"), model("openconfig-network-instance", "1.3.0"),
		},
		SupportedEncodings: []gpb.Encoding{gpb.Encoding_JSON_IETF},
		GNMIVersion:        "0.10.0",
	}, nil
}

func (g *gnmiServer) Get(_ context.Context, r *gpb.GetRequest) (*gpb.GetResponse, error) {
	if r.GetEncoding() != gpb.Encoding_JSON_IETF {
		return nil, status.Errorf(codes.Unimplemented, "encoding %s: want JSON_IETF", r.GetEncoding())
	}
	if n := len(r.GetPath()); n == 0 || n > maxPaths {
		return nil, status.Errorf(codes.InvalidArgument, "%d paths: want 1 to %d", n, maxPaths)
	}
	tree := g.sw.tree()
	res := &gpb.GetResponse{}
	for _, p := range r.GetPath() {
		n, err := answer(tree, r.GetPrefix(), p, g.sw.now())
		if err != nil {
			return nil, err
		}
		res.Notification = append(res.Notification, n)
	}
	return res, nil
}

// Subscribe answers ONCE subscriptions; the others would promise updates that this switch does not send.
func (g *gnmiServer) Subscribe(stream gpb.GNMI_SubscribeServer) error {
	r, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	list := r.GetSubscribe()
	if list == nil {
		return status.Error(codes.InvalidArgument, "the first message must hold a subscription list")
	}
	if list.GetMode() != gpb.SubscriptionList_ONCE {
		return status.Errorf(codes.Unimplemented, "subscription mode %s: want ONCE", list.GetMode())
	}
	if list.GetEncoding() != gpb.Encoding_JSON_IETF {
		return status.Errorf(codes.Unimplemented, "encoding %s: want JSON_IETF", list.GetEncoding())
	}
	subscriptions := list.GetSubscription()
	if len(subscriptions) > maxPaths {
		return status.Errorf(codes.InvalidArgument, "%d paths: want at most %d", len(subscriptions), maxPaths)
	}
	if list.GetUpdatesOnly() {
		subscriptions = nil
	}
	tree := g.sw.tree()
	for _, sub := range subscriptions {
		n, err := answer(tree, list.GetPrefix(), sub.GetPath(), g.sw.now())
		if status.Code(err) == codes.NotFound {
			continue // no value for what does not exist (gNMI specification section 3.5.2.4)
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&gpb.SubscribeResponse{Response: &gpb.SubscribeResponse_Update{Update: n}}); err != nil {
			return err
		}
	}
	return stream.Send(&gpb.SubscribeResponse{Response: &gpb.SubscribeResponse_SyncResponse{SyncResponse: true}})
}
