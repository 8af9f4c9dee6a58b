package coordinator

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"bloomery/internal/pki"
)

const (
	// maxJoinToken bounds a join token's text: a few addresses and at most a few CA certificates of 600 bytes.
	maxJoinToken = 16 << 10
	// joinPrefix makes a token known for what it is, wherever it turns up.
	joinPrefix = "blj_"
	// joinSecretLength is 32 random bytes in base64.
	joinSecretLength = 43
	maxAddresses     = 16
)

// joinToken is what a new coordinator needs to know.
type joinToken struct {
	Node string `json:"node"`
	// API are https:// addresses of the rack's coordinators.
	API []string `json:"api"`
	// Roots are the rack's CA certificates, DER, by which those are known.
	Roots  [][]byte `json:"roots"`
	Secret string   `json:"secret"`
}

func (t joinToken) encode() (string, error) {
	data, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("encode the join token: %w", err)
	}
	return joinPrefix + base64.RawURLEncoding.EncodeToString(data), nil
}

// parseJoinToken reads a token as somebody pasted it.
func parseJoinToken(text string) (joinToken, *x509.CertPool, error) {
	var t joinToken
	text, ok := strings.CutPrefix(strings.TrimSpace(text), joinPrefix)
	if !ok || len(text) > maxJoinToken {
		return t, nil, fmt.Errorf("the join token is not whole: it begins with %s and is one line, as \"bloomery rack token create\" printed it", joinPrefix)
	}
	data, err := base64.RawURLEncoding.DecodeString(text)
	if err == nil {
		err = json.Unmarshal(data, &t)
	}
	if err != nil {
		return t, nil, fmt.Errorf("the join token is not whole: %w", err)
	}
	if err := pki.ValidName(t.Node); err != nil {
		return t, nil, fmt.Errorf("join token: %w", err)
	}
	if err := checkAPI(t.API); err != nil {
		return t, nil, fmt.Errorf("join token: %w", err)
	}
	if len(t.API) == 0 || len(t.Secret) != joinSecretLength {
		return t, nil, errors.New("the join token is not whole")
	}
	pool := x509.NewCertPool()
	for _, der := range t.Roots {
		root, err := x509.ParseCertificate(der)
		if err != nil {
			return t, nil, fmt.Errorf("join token: the rack's CA: %w", err)
		}
		pool.AddCert(root)
	}
	if len(t.Roots) == 0 {
		return t, nil, errors.New("the join token is not whole: it has no CA")
	}
	return t, pool, nil
}

// checkAPI checks addresses of a coordinator's API.
func checkAPI(all []string) error {
	if len(all) > maxAddresses {
		return fmt.Errorf("%d addresses, want at most %d", len(all), maxAddresses)
	}
	for _, text := range all {
		u, err := url.Parse(text)
		if err != nil || u.Scheme != "https" || u.Port() == "" || len(text) > 300 || u.String() != "https://"+u.Host {
			return fmt.Errorf("address %q: want https://host:port", clip(text))
		}
	}
	return nil
}
