package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"bloomery/api/bloomery/v1/bloomeryv1connect"
)

// clientConfig is the file that "bloomery rack init" writes for an operator. Relative paths are relative to it.
type clientConfig struct {
	// Servers are https://host:port or unix:/path addresses of the rack's coordinators.
	Servers []string `yaml:"servers"`
	CA      string   `yaml:"ca"`
	Cert    string   `yaml:"cert"`
	Key     string   `yaml:"key"`
	// ServerName is the name in the coordinator's certificate; needed for unix sockets only.
	ServerName string `yaml:"server_name,omitempty"`
	// ImageKey is the minisign private key that signs images; needed by "image add" only.
	ImageKey string `yaml:"image_key,omitempty"`
}

// client holds one connection's services.
type client struct {
	machines bloomeryv1connect.MachineServiceClient
	jobs     bloomeryv1connect.JobServiceClient
	events   bloomeryv1connect.EventServiceClient
	images   bloomeryv1connect.ImageServiceClient
	config   clientConfig
}

// configPath says where the client configuration is.
func (s *settings) path() (string, error) {
	if s.configPath != "" {
		return s.configPath, nil
	}
	if path := os.Getenv("BLOOMERY_CONFIG"); path != "" {
		return path, nil
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("find the client configuration: %w; use --config", err)
	}
	return filepath.Join(dir, "bloomery", "config.yaml"), nil
}

func loadClientConfig(path string) (clientConfig, error) {
	var config clientConfig
	data, err := os.ReadFile(path)
	if err != nil {
		return config, fmt.Errorf("read the client configuration: %w; make one with \"bloomery rack init\" or name it with --config", err)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(&config); err != nil {
		return config, fmt.Errorf("%s: %w", path, err)
	}
	if len(config.Servers) == 0 {
		return config, fmt.Errorf("%s: servers: name at least one coordinator", path)
	}
	for _, file := range []*string{&config.CA, &config.Cert, &config.Key, &config.ImageKey} {
		if *file != "" && !filepath.IsAbs(*file) {
			*file = filepath.Join(filepath.Dir(path), *file)
		}
	}
	return config, nil
}

// connect reads the configuration and makes the services' clients; nothing is dialled before the first call.
func (s *settings) connect() (*client, error) {
	path, err := s.path()
	if err != nil {
		return nil, err
	}
	config, err := loadClientConfig(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(config.CA)
	if err != nil {
		return nil, fmt.Errorf("%s: ca: %w", path, err)
	}
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: ca: %s holds no certificate", path, config.CA)
	}
	cert, err := tls.LoadX509KeyPair(config.Cert, config.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: cert and key: %w", path, err)
	}
	base, dial, err := endpoint(config.Servers)
	if err != nil {
		return nil, fmt.Errorf("%s: servers: %w", path, err)
	}
	httpClient := &http.Client{Transport: &http.Transport{
		DialContext: dial,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS13, RootCAs: pool, Certificates: []tls.Certificate{cert}, ServerName: config.ServerName,
		},
		ForceAttemptHTTP2:   true,
		TLSHandshakeTimeout: 10 * time.Second,
		// A watch that is silent because the other side is gone must end, so that it is opened again.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
	}}
	return &client{
		machines: bloomeryv1connect.NewMachineServiceClient(httpClient, base),
		jobs:     bloomeryv1connect.NewJobServiceClient(httpClient, base),
		events:   bloomeryv1connect.NewEventServiceClient(httpClient, base),
		images:   bloomeryv1connect.NewImageServiceClient(httpClient, base),
		config:   config,
	}, nil
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// endpoint gives the base URL of a list of coordinators and a dialler that tries each in turn.
func endpoint(servers []string) (string, dialFunc, error) {
	type target struct{ network, address string }
	var targets []target
	base := "https://coordinator"
	for _, server := range servers {
		if path, ok := strings.CutPrefix(server, "unix:"); ok {
			targets = append(targets, target{"unix", strings.TrimPrefix(path, "//")})
			continue
		}
		parsed, err := url.Parse(server)
		if err != nil || parsed.Scheme != "https" || parsed.Host == "" {
			return "", nil, fmt.Errorf("%q: want https://host:port or unix:/path", server)
		}
		address := parsed.Host
		if parsed.Port() == "" {
			address = net.JoinHostPort(parsed.Hostname(), "8443")
		}
		if len(targets) == 0 {
			base = "https://" + address
		}
		targets = append(targets, target{"tcp", address})
	}
	dialer := &net.Dialer{Timeout: 5 * time.Second}
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var last error
		for _, t := range targets {
			conn, err := dialer.DialContext(ctx, t.network, t.address)
			if err == nil {
				return conn, nil
			}
			last = err
		}
		return nil, last
	}
	return base, dial, nil
}
