package agent

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/url"
	"time"

	"bloomery/images"
)

// ConfigPath is where the agent's configuration is in its image.
const ConfigPath = "/etc/bloomery/agent.json"

const (
	maxConfig = 256 << 10
	maxURLs   = 16
)

// Config is the rack's part of the agent image. None of it is secret.
type Config struct {
	// Coordinators are base URLs (https), any of which answers.
	Coordinators []string
	// TimeURLs answer with the time as RFC 3339 text over plain HTTP. Without any the machine's own clock must do.
	TimeURLs []string
	// CA holds the rack's own certificate authority, the only one that is trusted.
	CA *x509.CertPool
	// ImageKey is the key that images must be signed by.
	ImageKey images.PublicKey
	// BuildDate of the image: no right clock shows an earlier time.
	BuildDate time.Time
}

// ParseConfig reads agent.json:
//
//	{"coordinators": ["https://10.66.0.1:8443"], "time_urls": ["http://10.66.0.1:80/time"],
//	 "ca": "-----BEGIN CERTIFICATE-----…", "image_key": "RWQ…", "build_date": "2026-01-02T15:04:05Z"}
//
// A field that it does not know, or a missing one other than time_urls, is an error that names the field.
func ParseConfig(data []byte) (Config, error) {
	if len(data) > maxConfig {
		return Config{}, fmt.Errorf("agent configuration has %d bytes, at most %d are accepted", len(data), maxConfig)
	}
	var file struct {
		Coordinators []string  `json:"coordinators"`
		TimeURLs     []string  `json:"time_urls"`
		CA           string    `json:"ca"`
		ImageKey     string    `json:"image_key"`
		BuildDate    time.Time `json:"build_date"`
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		return Config{}, fmt.Errorf("agent configuration: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Config{}, errors.New("agent configuration: data after the JSON object")
	}
	c := Config{Coordinators: file.Coordinators, TimeURLs: file.TimeURLs, BuildDate: file.BuildDate}
	if len(c.Coordinators) == 0 {
		return Config{}, errors.New("agent configuration: coordinators: want at least one URL")
	}
	if err := checkURLs("coordinators", c.Coordinators, "https"); err != nil {
		return Config{}, err
	}
	if err := checkURLs("time_urls", c.TimeURLs, "http"); err != nil {
		return Config{}, err
	}
	if c.BuildDate.IsZero() {
		return Config{}, errors.New("agent configuration: build_date: want the image's build time as RFC 3339")
	}
	var err error
	if c.CA, err = parseCA([]byte(file.CA)); err != nil {
		return Config{}, fmt.Errorf("agent configuration: ca: %w", err)
	}
	if err := c.ImageKey.UnmarshalText([]byte(file.ImageKey)); err != nil {
		return Config{}, fmt.Errorf("agent configuration: image_key: not a minisign public key: %w", err)
	}
	return c, nil
}

func checkURLs(field string, list []string, scheme string) error {
	if len(list) > maxURLs {
		return fmt.Errorf("agent configuration: %s: has %d URLs, want at most %d", field, len(list), maxURLs)
	}
	for i, text := range list {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != scheme || u.Host == "" || u.User != nil {
			return fmt.Errorf("agent configuration: %s[%d]: %.100q is not a URL of the form %s://host:port", field, i, text, scheme)
		}
	}
	return nil
}

func parseCA(data []byte) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	n := 0
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !certificate.IsCA {
			return nil, fmt.Errorf("certificate of %.100q is no certificate authority", certificate.Subject)
		}
		pool.AddCert(certificate)
		n++
	}
	if n == 0 {
		return nil, errors.New("want the rack's CA certificate as PEM")
	}
	return pool, nil
}
