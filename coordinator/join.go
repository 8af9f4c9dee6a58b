package coordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/store"
	"bloomery/images"
	"bloomery/internal/pki"
)

const (
	// joinTimeout bounds the question to one coordinator.
	joinTimeout = 10 * time.Second
	// joinKeyFile keeps the new coordinator's key until it has its certificate: a lost answer is asked for again with the same key.
	joinKeyFile = "join.key"
)

// Join makes a new machine one of the rack's coordinators, as far as files go: it asks a present one for a certificate and the
// rack's secrets. names are DNS names and addresses of this coordinator's API beside those in the configuration.
// The database joins when bloomeryd starts.
func Join(ctx context.Context, config Config, token string, names []string) error {
	t, roots, err := parseJoinToken(token)
	if err != nil {
		return err
	}
	if t.Node != config.Node {
		return fmt.Errorf("the join token is for coordinator %s, the configuration says node: %s", t.Node, config.Node)
	}
	if !config.Cluster.IsValid() {
		return errors.New("cluster.address is not in the configuration: the others could not reach this coordinator's database")
	}
	for _, path := range []string{filepath.Join(config.Data, "dqlite"), filepath.Join(config.PKI, pki.CACert)} {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("%s is already there: this machine is or was a coordinator; to join anew, empty %s and %s", path, config.Data, config.PKI)
		}
	}
	for _, dir := range []string{config.Data, config.PKI} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	key, err := joinKey(filepath.Join(config.Data, joinKeyFile))
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return fmt.Errorf("make a certificate request: %w", err)
	}
	answer, err := askToJoin(ctx, t, roots, &bloomeryv1.JoinRackRequest{
		Secret: t.Secret, Csr: csr, Address: config.Cluster.String(), Names: certificateNames(config, names), Api: advertised(config), Version: Version(),
	})
	if err != nil {
		return err
	}
	if answer.GetNode() != config.Node {
		return fmt.Errorf("the rack answered for coordinator %s", clip(answer.GetNode()))
	}
	return writeJoined(config, key, answer)
}

// certificateNames are the addresses at which a coordinator is reached.
func certificateNames(config Config, more []string) []string {
	all := []string{config.Cluster.Addr().String()}
	for _, a := range config.Listen.API {
		if ap, err := netip.ParseAddrPort(a); err == nil && !ap.Addr().IsUnspecified() {
			all = append(all, ap.Addr().Unmap().String())
		}
	}
	all = append(all, more...)
	slices.Sort(all)
	return slices.Compact(all)
}

func joinKey(path string) (*ecdsa.PrivateKey, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
		text, err := pki.EncodeKey(key)
		if err != nil {
			return nil, err
		}
		return key, pki.Replace(path, 0o600, text)
	}
	if err != nil {
		return nil, err
	}
	key, err := pki.DecodeKey(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w; remove it", path, err)
	}
	return key, nil
}

// askToJoin asks one coordinator after the other until one answers.
func askToJoin(ctx context.Context, t joinToken, roots *x509.CertPool, request *bloomeryv1.JoinRackRequest) (*bloomeryv1.JoinRackResponse, error) {
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, ServerName: pki.ServerName}}
	defer transport.CloseIdleConnections()
	var failures error
	for _, api := range t.API {
		client := bloomeryv1connect.NewRackServiceClient(&http.Client{Transport: transport}, api, connect.WithReadMaxBytes(maxMessage))
		try, cancel := context.WithTimeout(ctx, joinTimeout)
		answer, err := client.JoinRack(try, connect.NewRequest(request))
		cancel()
		if err == nil {
			return answer.Msg, nil
		}
		failures = errors.Join(failures, fmt.Errorf("%s: %w", api, err))
		if code := connect.CodeOf(err); code == connect.CodePermissionDenied || code == connect.CodeInvalidArgument || code == connect.CodeFailedPrecondition {
			break
		}
	}
	return nil, fmt.Errorf("ask the rack's coordinators to let this one join: %w", failures)
}

// writeJoined writes what the rack gave. The certificate is last: with it, the coordinator has joined.
func writeJoined(config Config, key *ecdsa.PrivateKey, answer *bloomeryv1.JoinRackResponse) error {
	var nodes []store.Node
	for _, data := range answer.GetCoordinators() {
		var n store.Node
		if err := json.Unmarshal(data, &n); err != nil {
			return fmt.Errorf("the rack's list of coordinators: %w", err)
		}
		nodes = append(nodes, n)
	}
	imageKey := filepath.Join(config.PKI, "image.pub")
	if err := pki.Replace(imageKey, 0o644, answer.GetImageKey()); err != nil {
		return err
	}
	if _, err := images.LoadPublicKey(imageKey); err != nil {
		return fmt.Errorf("the rack's image key: %w", err)
	}
	var roots, agents [][]byte
	keys := map[string][]byte{}
	for i, data := range answer.GetAuthorities() {
		ca, err := pki.UnmarshalCA(data)
		if err != nil {
			return err
		}
		roots = append(roots, ca.Root.Raw)
		if ca.Agents != nil {
			agents = append(agents, ca.Agents.Raw)
		}
		if i > 0 {
			continue // the store has the keys of older CAs
		}
		for name, k := range map[string]*ecdsa.PrivateKey{pki.CAKey: ca.RootKey, pki.AgentKey: ca.AgentsKey} {
			if k == nil {
				continue
			}
			if keys[name], err = pki.EncodeKey(k); err != nil {
				return err
			}
		}
	}
	if len(roots) == 0 || len(answer.GetSecretKey()) == 0 {
		return errors.New("the rack's answer is not whole")
	}
	roster, err := json.Marshal(nodes)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		mode os.FileMode
		data []byte
	}{
		{filepath.Join(config.Data, "secret.key"), 0o600, answer.GetSecretKey()},
		{filepath.Join(config.Data, rosterFile), 0o600, roster},
		{filepath.Join(config.PKI, pki.AgentKey), 0o600, keys[pki.AgentKey]},
		{filepath.Join(config.PKI, pki.CAKey), 0o600, keys[pki.CAKey]},
		{filepath.Join(config.PKI, pki.AgentCert), 0o644, pki.EncodeCertificates(agents)},
	} {
		if f.data == nil {
			continue
		}
		if err := pki.Replace(f.path, f.mode, f.data); err != nil {
			return err
		}
	}
	if err := pki.WritePair(filepath.Join(config.PKI, pki.ServerCert), filepath.Join(config.PKI, pki.ServerKey), answer.GetCertificates(), key); err != nil {
		return err
	}
	if err := pki.Replace(filepath.Join(config.PKI, pki.CACert), 0o644, pki.EncodeCertificates(roots)); err != nil {
		return err
	}
	if _, err := pki.LoadAuthority(config.PKI); err != nil {
		return fmt.Errorf("check what the rack gave: %w", err)
	}
	return os.Remove(filepath.Join(config.Data, joinKeyFile))
}
