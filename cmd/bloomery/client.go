package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"go.yaml.in/yaml/v3"

	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/internal/pki"
)

// clientConfig is the file that "bloomery rack init" writes for an operator. Relative paths are relative to it.
type clientConfig struct {
	// Servers are https://host:port or unix:/path addresses of the rack's coordinators.
	Servers []string `yaml:"servers"`
	CA      string   `yaml:"ca"`
	Cert    string   `yaml:"cert,omitempty"`
	Key     string   `yaml:"key,omitempty"`
	// TokenFile holds a bearer token, in place of Cert and Key.
	TokenFile string `yaml:"token_file,omitempty"`
	// ServerName is the name in the coordinator's certificate; needed for unix sockets only.
	ServerName string `yaml:"server_name,omitempty"`
	// ImageKey is the minisign private key that signs images; needed by "image add" only.
	ImageKey string `yaml:"image_key,omitempty"`
}

// client holds one connection's services.
type client struct {
	rack     bloomeryv1connect.RackServiceClient
	access   bloomeryv1connect.AccessServiceClient
	machines bloomeryv1connect.MachineServiceClient
	jobs     bloomeryv1connect.JobServiceClient
	events   bloomeryv1connect.EventServiceClient
	webhooks bloomeryv1connect.WebhookServiceClient
	images   bloomeryv1connect.ImageServiceClient
	config   clientConfig
}

// anyCoordinator stands in URLs for whichever coordinator answers; newCoordinators says which are tried.
const anyCoordinator = "https://coordinator"

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
	for _, file := range []*string{&config.CA, &config.Cert, &config.Key, &config.TokenFile, &config.ImageKey} {
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
	secure := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: pool}
	var token string
	if config.TokenFile != "" {
		if token, err = readToken(config.TokenFile); err != nil {
			return nil, fmt.Errorf("%s: token_file: %w", path, err)
		}
	} else {
		cert, err := pki.LoadPair(config.Cert, config.Key)
		if err != nil {
			return nil, fmt.Errorf("%s: cert and key: %w", path, err)
		}
		secure.Certificates = []tls.Certificate{cert}
	}
	targets, err := parseTargets(config.Servers, config.ServerName)
	if err != nil {
		return nil, fmt.Errorf("%s: servers: %w", path, err)
	}
	ways := newCoordinators(targets, secure)
	httpClient, again := &http.Client{Transport: withToken{ways, token}}, connect.WithInterceptors(repeat{ways})
	return &client{
		rack:     bloomeryv1connect.NewRackServiceClient(httpClient, anyCoordinator, again),
		access:   bloomeryv1connect.NewAccessServiceClient(httpClient, anyCoordinator, again),
		machines: bloomeryv1connect.NewMachineServiceClient(httpClient, anyCoordinator, again),
		jobs:     bloomeryv1connect.NewJobServiceClient(httpClient, anyCoordinator, again),
		events:   bloomeryv1connect.NewEventServiceClient(httpClient, anyCoordinator, again),
		webhooks: bloomeryv1connect.NewWebhookServiceClient(httpClient, anyCoordinator, again),
		images:   bloomeryv1connect.NewImageServiceClient(httpClient, anyCoordinator, again),
		config:   config,
	}, nil
}

// maxTokenFile bounds a file that holds a token, in bytes.
const maxTokenFile = 4096

// readToken reads a bearer token from a file that nobody else can read.
func readToken(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return "", fmt.Errorf("%s has mode %04o, want 0600", path, info.Mode().Perm())
	}
	if info.Size() > maxTokenFile {
		return "", fmt.Errorf("%s: %d bytes are more than a token", path, info.Size())
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	token := strings.TrimSpace(string(data))
	if token == "" {
		return "", fmt.Errorf("%s is empty", path)
	}
	return token, nil
}

// withToken shows a bearer token with each request, unless it is empty.
type withToken struct {
	http.RoundTripper
	token string
}

func (t withToken) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.token != "" {
		r = r.Clone(r.Context())
		r.Header.Set("Authorization", "Bearer "+t.token)
	}
	return t.RoundTripper.RoundTrip(r)
}
