package coordinator

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	defaultJoinValid = time.Hour
	minJoinValid     = time.Minute
	maxJoinValid     = 24 * time.Hour
	// maxCoordinators is what a rack may have while one is replaced; three of them vote.
	maxCoordinators = 5
)

// CreateJoinToken implements bloomeryv1connect.RackServiceHandler.
func (c *Coordinator) CreateJoinToken(ctx context.Context, r *connect.Request[bloomeryv1.CreateJoinTokenRequest]) (*connect.Response[bloomeryv1.CreateJoinTokenResponse], error) {
	name := r.Msg.GetNode()
	if err := pki.ValidName(name); err != nil {
		return nil, invalid("node", "NODE_NAME_INVALID", "%v", err)
	}
	valid := time.Duration(r.Msg.GetValidSeconds()) * time.Second
	switch {
	case valid == 0:
		valid = defaultJoinValid
	case valid < minJoinValid || valid > maxJoinValid:
		return nil, invalid("valid_seconds", "VALIDITY_INVALID", "want %d to %d, or 0 for %d", int(minJoinValid.Seconds()), int(maxJoinValid.Seconds()), int(defaultJoinValid.Seconds()))
	}
	if !c.config.Cluster.IsValid() {
		return nil, notNow("node", "NO_CLUSTER_ADDRESS", "coordinator %s has no cluster.address in its configuration, so no other can reach its database: set it and restart", c.config.Node)
	}
	raw := make([]byte, 32)
	if _, err := rand.Read(raw); err != nil {
		return nil, fmt.Errorf("make a join token: %w", err)
	}
	secret := base64.RawURLEncoding.EncodeToString(raw)
	hash := sha256.Sum256([]byte(secret))
	token := joinToken{Node: name, Roots: c.Authority.Roots(), Secret: secret}
	var expires time.Time
	err := c.update(ctx, func(ch *change) error {
		all, err := ch.Nodes()
		if err != nil {
			return err
		}
		token.API = nil
		present := 0
		for _, n := range all {
			if !n.Present() {
				continue
			}
			if n.Name == name {
				return notNow("node", "NODE_PRESENT", "coordinator %s is in the rack: remove it first with \"bloomery rack remove-node %s\"", name, name)
			}
			present++
			api := n.API
			if n.Name == c.config.Node {
				// Right after a restore or a move the record may still hold the old addresses.
				api = advertised(c.config)
			}
			token.API = append(token.API, api...)
		}
		if present >= maxCoordinators {
			return notNow("node", "RACK_FULL", "the rack has %d coordinators: remove one first", present)
		}
		if len(token.API) == 0 {
			return notNow("node", "NO_API_ADDRESS", "no coordinator's API can be reached from elsewhere: add an IP:port to listen.api")
		}
		expires = ch.Now().Add(valid)
		return ch.CreateJoinToken(store.JoinToken{Hash: hash[:], Node: name, CreatedBy: callerOf(ctx).Name, Created: ch.Now(), Expires: expires})
	})
	if err != nil {
		return nil, err
	}
	text, err := token.encode()
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.CreateJoinTokenResponse{Token: text, ExpiresAt: timestamppb.New(expires)}), nil
}

// errJoinRefused is all that a caller with a wrong token is told.
var errJoinRefused = connect.NewError(connect.CodePermissionDenied, errors.New("the join token is wrong, was used or has expired: make another with \"bloomery rack token create\""))

// JoinRack implements bloomeryv1connect.RackServiceHandler. It may be repeated with the same token and key: an answer can be lost.
func (c *Coordinator) JoinRack(ctx context.Context, r *connect.Request[bloomeryv1.JoinRackRequest]) (*connect.Response[bloomeryv1.JoinRackResponse], error) {
	if !c.limits.join.Allow() {
		return nil, connect.NewError(connect.CodeResourceExhausted, errors.New("too many tries to join: wait a minute"))
	}
	csr, err := c.checkJoin(r.Msg)
	if err != nil {
		return nil, err
	}
	secretKey, imageKey, err := c.joinSecrets()
	if err != nil {
		return nil, err
	}
	hash, key := sha256.Sum256([]byte(r.Msg.GetSecret())), sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	var chain [][]byte
	var all []store.Node
	var node string
	why := ""
	err = c.update(ctx, func(ch *change) error {
		chain, all, node, why = nil, nil, "", ""
		token, err := ch.JoinToken(hash[:])
		switch {
		case errors.Is(err, store.ErrNotFound):
			why = "its token is not known"
		case err != nil:
			return err
		case !ch.Now().Before(token.Expires):
			why = "its token for coordinator " + token.Node + " has expired"
		case token.UsedKey != nil && subtle.ConstantTimeCompare(token.UsedKey, key[:]) == 0:
			why = "its token for coordinator " + token.Node + " was used by another"
		}
		if why != "" {
			return errJoinRefused
		}
		node = token.Node
		if all, err = ch.Nodes(); err != nil {
			return err
		}
		joined, err := c.admitNode(ch, r.Msg, token, &all)
		if err != nil {
			return err
		}
		if chain, _, err = c.Authority.SignNode(csr, node, r.Msg.GetNames(), joined); err != nil {
			return err
		}
		return ch.UseJoinToken(hash[:], key[:])
	})
	if why != "" {
		c.security(ctx, "security.join_refused", "", callerOf(ctx), "a coordinator was refused to join: "+why)
	}
	if err != nil {
		return nil, err
	}
	if err := c.readRoster(ctx); err != nil {
		c.Logger.Warn("read the list of coordinators", "error", err)
	}
	answer := &bloomeryv1.JoinRackResponse{Rack: c.Authority.Rack(), Node: node, Certificates: chain, SecretKey: secretKey, ImageKey: imageKey}
	for _, ca := range c.Authority.Trusted() {
		data, err := ca.Marshal()
		if err != nil {
			return nil, err
		}
		answer.Authorities = append(answer.Authorities, data)
	}
	for _, n := range all {
		data, err := json.Marshal(n)
		if err != nil {
			return nil, fmt.Errorf("encode a coordinator's record: %w", err)
		}
		answer.Coordinators = append(answer.Coordinators, data)
	}
	return connect.NewResponse(answer), nil
}

// admitNode puts a coordinator on the list, and says when its certificate is signed.
func (c *Coordinator) admitNode(ch *change, r *bloomeryv1.JoinRackRequest, token store.JoinToken, all *[]store.Node) (time.Time, error) {
	fresh := store.Node{Name: token.Node, Address: r.GetAddress(), Joined: ch.Now(), API: r.GetApi(), Version: r.GetVersion()}
	i := slices.IndexFunc(*all, func(n store.Node) bool { return n.Name == token.Node })
	for _, n := range *all {
		if n.Present() && n.Name != token.Node && n.Address == fresh.Address {
			return fresh.Joined, notNow("address", "ADDRESS_TAKEN", "coordinator %s has the address %s", n.Name, n.Address)
		}
	}
	var before *bloomeryv1.Node
	switch {
	case i < 0:
		*all = append(*all, fresh)
	case (*all)[i].Present() && token.UsedKey == nil:
		return fresh.Joined, notNow("node", "NODE_PRESENT", "coordinator %s is in the rack: remove it first", token.Node)
	case (*all)[i].Present():
		before = nodeMessage((*all)[i])
		fresh.NotBefore = (*all)[i].NotBefore
		(*all)[i] = fresh
	default:
		// What the name's earlier holder has must not open anything.
		fresh.NotBefore = fresh.Joined
		(*all)[i] = fresh
	}
	if err := ch.saveNode(fresh, before); err != nil {
		return fresh.Joined, err
	}
	if token.UsedKey != nil {
		return fresh.Joined, nil
	}
	return fresh.Joined, ch.note(&bloomeryv1.Event{Type: "node.joined", Message: fmt.Sprintf("coordinator %s joins the rack at %s", fresh.Name, fresh.Address)},
		map[string]any{"node": fresh.Name, "address": fresh.Address})
}

// saveNode stores the record of a coordinator that is in the rack, and wakes who follows the list.
func (ch *change) saveNode(n store.Node, before *bloomeryv1.Node) error {
	ch.topics["nodes"] = true
	ch.changed("coordinator "+n.Name, before, nodeMessage(n))
	return ch.SaveNode(n)
}

func nodeMessage(n store.Node) *bloomeryv1.Node {
	return &bloomeryv1.Node{Name: n.Name, Address: n.Address, Api: n.API, Version: n.Version}
}

func (c *Coordinator) checkJoin(r *bloomeryv1.JoinRackRequest) (*x509.CertificateRequest, error) {
	if len(r.GetSecret()) != joinSecretLength {
		return nil, errJoinRefused
	}
	csr, err := pki.ParseCSR(r.GetCsr())
	if err != nil {
		return nil, invalid("csr", "CSR_INVALID", "%v", err)
	}
	address, err := netip.ParseAddrPort(r.GetAddress())
	if err != nil || address.Addr().IsUnspecified() || address.Port() == 0 || address.String() != r.GetAddress() {
		return nil, invalid("address", "ADDRESS_INVALID", "%q: want the IP address and port of cluster.address", clip(r.GetAddress()))
	}
	if err := checkAPI(r.GetApi()); err != nil {
		return nil, invalid("api", "ADDRESS_INVALID", "%v", err)
	}
	if len(r.GetNames()) > maxAddresses {
		return nil, invalid("names", "TOO_MANY", "%d names, want at most %d", len(r.GetNames()), maxAddresses)
	}
	for _, name := range r.GetNames() {
		if _, err := netip.ParseAddr(name); err != nil && !validHost(name) {
			return nil, invalid("names", "NAME_INVALID", "%q: want an IP address or a DNS name", clip(name))
		}
	}
	if len(r.GetVersion()) > 100 {
		return nil, invalid("version", "VERSION_INVALID", "longer than 100 bytes")
	}
	return csr, nil
}

// validHost says whether a name can be a DNS name (RFC 1123, section 2.1).
func validHost(name string) bool {
	if len(name) == 0 || len(name) > 253 {
		return false
	}
	for _, label := range strings.Split(name, ".") {
		if pki.ValidName(strings.ToLower(label)) != nil {
			return false
		}
	}
	return true
}

// joinSecrets reads what every coordinator has the same.
func (c *Coordinator) joinSecrets() (secretKey, imageKey []byte, err error) {
	if secretKey, err = os.ReadFile(filepath.Join(c.config.Data, "secret.key")); err != nil {
		return nil, nil, fmt.Errorf("read the rack's secret: %w", err)
	}
	if imageKey, err = os.ReadFile(filepath.Join(c.config.PKI, "image.pub")); err != nil {
		return nil, nil, fmt.Errorf("read the key that images are signed by: %w", err)
	}
	return secretKey, imageKey, nil
}
