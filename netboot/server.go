package netboot

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/net/netutil"
)

// Config is what Run needs. Every listener that is "" is off.
type Config struct {
	// Interface is the network interface of the provisioning network. DHCP
	// answers there and nowhere else.
	Interface string
	// Address is the coordinator's address on it and the network's mask.
	Address netip.Prefix
	// Range is where leases come from.
	Range Range
	// DHCP, TFTP and HTTP are listening addresses: ":67", "10.66.0.1:69",
	// "10.66.0.1:80". Firmware knows no other ports for DHCP and TFTP.
	DHCP, TFTP, HTTP string
	// BootURL is as for DHCPConfig. If it is "" and HTTP is on, it is made of
	// Address and HTTP's port.
	BootURL string
	// Files is the directory of bloomery-agent.efi, vmlinuz and
	// initramfs.cpio.zst. A file that is replaced by renaming is served as it
	// was to those who are fetching it, and new to those who come later; links
	// that lead out of the directory are not followed.
	Files string
	// Router, DNS and LeaseTime are as for DHCPConfig.
	Router    netip.Addr
	DNS       []netip.Addr
	LeaseTime time.Duration

	Directory Directory
	Allowed   Allowed
	// Observer may be nil.
	Observer Observer
	Logger   *slog.Logger
}

// shutdownTimeout is how long downloads under way are waited for at the end.
const shutdownTimeout = 2 * time.Second

// httpConnections is several for each machine of a rack; more wait their turn.
const httpConnections = 256

// Server is the three servers, listening, not yet answering.
type Server struct {
	cfg  Config
	root *os.Root

	dhcp     *DHCPServer
	dhcpConn net.PacketConn
	link     *rawLink

	tftp     *TFTPServer
	tftpConn net.PacketConn

	http     *http.Server
	httpConn net.Listener
}

// Listen opens what Run serves. Serve or Close must follow.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	s := &Server{cfg: cfg}
	if err := s.listen(ctx); err != nil {
		s.Close()
		return nil, fmt.Errorf("netboot: %w", err)
	}
	return s, nil
}

// Run listens and serves until ctx ends, which is no error.
func Run(ctx context.Context, cfg Config) error {
	s, err := Listen(ctx, cfg)
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}

func (s *Server) listen(ctx context.Context) error {
	if s.cfg.Logger == nil {
		return errors.New("logger: want one")
	}
	var err error
	if s.root, err = os.OpenRoot(s.cfg.Files); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	files := s.root.FS()
	if s.cfg.HTTP != "" {
		if err := s.listenHTTP(ctx, files); err != nil {
			return err
		}
	}
	if s.cfg.TFTP != "" {
		if err := s.listenTFTP(ctx, files); err != nil {
			return err
		}
	}
	if s.cfg.DHCP != "" {
		return s.listenDHCP(ctx)
	}
	return nil
}

func (s *Server) listenHTTP(ctx context.Context, files fs.FS) error {
	handler, err := NewHTTPHandler(HTTPConfig{Files: files, Allowed: s.cfg.Allowed, Observer: s.cfg.Observer, Logger: s.cfg.Logger})
	if err != nil {
		return err
	}
	conn, err := new(net.ListenConfig).Listen(ctx, "tcp4", s.cfg.HTTP)
	if err != nil {
		return fmt.Errorf("http: %w", err)
	}
	s.httpConn = netutil.LimitListener(conn, httpConnections)
	s.http = NewHTTPServer(handler, s.cfg.Logger)
	if s.cfg.BootURL == "" {
		_, port, err := net.SplitHostPort(s.httpConn.Addr().String())
		if err != nil {
			return fmt.Errorf("http: %w", err)
		}
		host := s.cfg.Address.Addr().String()
		if port != "80" {
			host = net.JoinHostPort(host, port)
		}
		s.cfg.BootURL = "http://" + host + BootPath
	}
	return nil
}

func (s *Server) listenTFTP(ctx context.Context, files fs.FS) error {
	var err error
	s.tftp, err = NewTFTPServer(TFTPConfig{Files: files, Allowed: s.cfg.Allowed, Observer: s.cfg.Observer, Logger: s.cfg.Logger})
	if err != nil {
		return err
	}
	if s.tftpConn, err = new(net.ListenConfig).ListenPacket(ctx, "udp4", s.cfg.TFTP); err != nil {
		return fmt.Errorf("tftp: %w", err)
	}
	return nil
}

func (s *Server) listenDHCP(ctx context.Context) error {
	cfg := DHCPConfig{
		Address: s.cfg.Address, Range: s.cfg.Range, BootURL: s.cfg.BootURL, TFTP: s.tftp != nil,
		Router: s.cfg.Router, DNS: s.cfg.DNS, LeaseTime: s.cfg.LeaseTime,
		Directory: s.cfg.Directory, Observer: s.cfg.Observer, Logger: s.cfg.Logger,
	}
	ifi, err := net.InterfaceByName(s.cfg.Interface)
	if err != nil {
		return fmt.Errorf("interface %q: %w", s.cfg.Interface, err)
	}
	if s.link, err = newRawLink(ifi, s.cfg.Address.Addr()); err != nil {
		return err
	}
	cfg.Link = s.link
	if s.dhcp, err = NewDHCPServer(cfg); err != nil {
		return err
	}
	if s.dhcpConn, err = ListenDHCP(ctx, s.cfg.Interface, s.cfg.DHCP); err != nil {
		return fmt.Errorf("dhcp: %w", err)
	}
	return nil
}

// Close gives up what Listen opened. It is not needed after Serve.
func (s *Server) Close() {
	if s.httpConn != nil {
		s.httpConn.Close()
	}
	if s.tftpConn != nil {
		s.tftpConn.Close()
	}
	if s.dhcpConn != nil {
		s.dhcpConn.Close()
	}
	if s.link != nil {
		s.link.Close()
	}
	if s.root != nil {
		s.root.Close()
	}
}

// Stats is the DHCP server's; zero if that is off.
func (s *Server) Stats() DHCPStats {
	if s.dhcp == nil {
		return DHCPStats{}
	}
	return s.dhcp.Stats()
}

// Serve answers until ctx ends, which is no error, or one of the servers fails,
// which ends the others. Nothing of it runs any more when it returns.
func (s *Server) Serve(ctx context.Context) error {
	defer s.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var running sync.WaitGroup
	failures := make(chan error, 3)
	start := func(serve func(context.Context) error) {
		running.Go(func() {
			if err := serve(ctx); err != nil {
				failures <- err
				cancel()
			}
		})
	}
	if s.dhcp != nil {
		start(func(ctx context.Context) error { return s.dhcp.Serve(ctx, s.dhcpConn) })
	}
	if s.tftp != nil {
		start(func(ctx context.Context) error { return s.tftp.Serve(ctx, s.tftpConn) })
	}
	if s.http != nil {
		start(s.serveHTTP)
	}
	<-ctx.Done()
	running.Wait()
	close(failures)
	var all error
	for err := range failures {
		all = errors.Join(all, err)
	}
	return all
}

func (s *Server) serveHTTP(ctx context.Context) error {
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if s.http.Shutdown(grace) != nil {
			s.http.Close()
		}
	})
	err := s.http.Serve(s.httpConn)
	if !stop() {
		<-stopped
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("http boot server: %w", err)
}
