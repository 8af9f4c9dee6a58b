package coordinator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/images"
)

const (
	headerTimeout = 10 * time.Second
	idleTimeout   = 2 * time.Minute
	// pingAfter and pingTimeout find connections whose other end has lost its power.
	pingAfter   = 15 * time.Second
	pingTimeout = 15 * time.Second
	// stopTimeout is how long calls under way may take to end when the coordinator stops.
	stopTimeout = 3 * time.Second
	// maxMessage bounds a message of any service but ImageService, whose header carries a manifest.
	maxMessage      = maxReportBytes + 64<<10
	maxImageMessage = images.MaxManifestSize + 1<<20
)

// Handler is everything that the API listeners serve: the RPC services, /images/, /archive/, /metrics, /healthz and /readyz.
func (c *Coordinator) Handler() http.Handler {
	options := func(limit int) []connect.HandlerOption {
		return []connect.HandlerOption{connect.WithInterceptors(measure{c.metrics}, authorize{c}), connect.WithReadMaxBytes(limit)}
	}
	mux := http.NewServeMux()
	mux.Handle(bloomeryv1connect.NewMachineServiceHandler(c, options(maxMessage)...))
	mux.Handle(bloomeryv1connect.NewJobServiceHandler(c, options(maxMessage)...))
	mux.Handle(bloomeryv1connect.NewEventServiceHandler(c, options(maxMessage)...))
	mux.Handle(bloomeryv1connect.NewAgentServiceHandler(c, options(maxMessage)...))
	mux.Handle(bloomeryv1connect.NewWebhookServiceHandler(c, options(maxMessage)...))
	mux.Handle(bloomeryv1connect.NewAccessServiceHandler(c, options(maxMessage)...))
	mux.Handle(bloomeryv1connect.NewRackServiceHandler(c, options(maxMessage)...))
	mux.Handle(bloomeryv1connect.NewNodeServiceHandler(c, options(maxMessage)...))
	mux.Handle(bloomeryv1connect.NewImageServiceHandler(c, options(maxImageMessage)...))
	mux.HandleFunc("GET "+archivePath, c.serveArchive)
	mux.Handle("/images/", c.mayReadImages(images.Handler(c.Images, c.Logger)))
	mux.Handle("GET /metrics", c.serveMetrics(c.metricsHandler()))
	mux.HandleFunc("GET "+healthzPath, c.serveHealthz)
	mux.HandleFunc("GET /readyz", c.serveReadyz)
	return paced(c.limit(c.identify(mux)), stallTimeout, bodyTimeout)
}

// server is an HTTP server with limits that leave room for long polls and streams.
func server(h http.Handler, config *tls.Config, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, TLSConfig: config,
		ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: 64 << 10,
		HTTP2:    &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout, MaxConcurrentStreams: 100},
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// serve serves on all listeners until the context ends, then lets calls under way end.
func serve(ctx context.Context, s *http.Server, listeners []net.Listener) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	s.BaseContext = func(net.Listener) context.Context { return base }
	ended := make(chan error, len(listeners))
	for _, l := range listeners {
		l := capped(l, maxConnections, maxPerAddress)
		go func() {
			if s.TLSConfig != nil {
				ended <- s.ServeTLS(l, "", "")
			} else {
				ended <- s.Serve(l)
			}
		}()
	}
	left := len(listeners)
	var err error
	select {
	case <-ctx.Done():
	case err = <-ended:
		left--
	}
	cancel() // ends long polls and streams
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer done()
	if s.Shutdown(stop) != nil {
		_ = s.Close()
	}
	for range left {
		if e := <-ended; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// listen opens "host:port" or "unix:/path"; a socket that a dead process left is replaced.
func listen(ctx context.Context, address string) (net.Listener, error) {
	var config net.ListenConfig
	path, unix := strings.CutPrefix(address, "unix:")
	if !unix {
		l, err := config.Listen(ctx, "tcp", address)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		return l, nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == os.ModeSocket {
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			return nil, errors.Join(fmt.Errorf("listen on %s: another process does already", address), conn.Close())
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("listen on %s: remove the socket of a dead process: %w", address, err)
		}
	}
	l, err := config.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		return nil, errors.Join(fmt.Errorf("listen on %s: %w", address, err), l.Close())
	}
	return l, nil
}
