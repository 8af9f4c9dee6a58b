package coordinator

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sort"
	"time"

	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	// rosterEvery is how often the coordinators' list is read when nothing wakes its reader.
	rosterEvery = 2 * time.Second
	// peerTimeout bounds a question to another coordinator, peerDial the connection to it.
	peerTimeout = 2 * time.Second
	peerDial    = time.Second
)

// clusterOptions says how this coordinator's database reaches the others'; nil in a rack of one.
func clusterOptions(config Config, authority *pki.Authority, r *roster) *store.Cluster {
	if !config.Cluster.IsValid() {
		return nil
	}
	cluster := &store.Cluster{
		Address: config.Cluster.String(), Server: authority.NodeServerTLS, Client: authority.NodeTLS,
		Admit: func(state tls.ConnectionState) error {
			id, err := authority.Identify(&state)
			if err == nil && id.Role != pki.RoleNode {
				err = fmt.Errorf("an %s's certificate does not open the database", id.Role)
			}
			if err != nil {
				return err
			}
			return r.admit(id)
		},
	}
	for _, n := range r.nodes() {
		if n.Present() && n.Name != config.Node {
			cluster.Join = append(cluster.Join, n.Address)
		}
	}
	return cluster
}

// advertised are the addresses of this coordinator's API for the others.
func advertised(config Config) []string {
	var all []string
	for _, a := range config.Listen.API {
		ap, err := netip.ParseAddrPort(a)
		if err != nil {
			continue // a unix socket
		}
		if ap.Addr().IsUnspecified() {
			if !config.Cluster.IsValid() {
				continue
			}
			ap = netip.AddrPortFrom(config.Cluster.Addr(), ap.Port())
		}
		all = append(all, "https://"+ap.String())
	}
	return all
}

// enlist brings this coordinator's record in the database up to date.
func (c *Coordinator) enlist(ctx context.Context) error {
	members, current, err := c.Store.Members(ctx)
	if err != nil {
		return err
	}
	sole := current && len(members) == 1
	recovered, err := c.Store.Recovered()
	if err != nil {
		return err
	}
	err = c.Store.Update(ctx, func(ch *store.Tx) error {
		all, err := ch.Nodes()
		if err != nil {
			return err
		}
		want := store.Node{Name: c.config.Node, Address: c.Store.Address(), API: advertised(c.config), Version: Version(), Joined: ch.Now()}
		i := slices.IndexFunc(all, func(n store.Node) bool { return n.Name == want.Name })
		known := i >= 0 && all[i].Present() && (all[i].Address == want.Address || sole)
		switch {
		case known:
			want.Joined, want.NotBefore = all[i].Joined, all[i].NotBefore
		case !sole:
			return store.ErrRemoved
		}
		// The only node of the database under a name that is not on record was restored or renamed; after a recovery the others' copies are worthless.
		for _, n := range all {
			if n.Present() && n.Name != want.Name && (recovered || !known) {
				if err := ch.RemoveNode(n); err != nil {
					return err
				}
			}
		}
		return ch.SaveNode(want)
	})
	if err != nil {
		return err
	}
	c.hub.notify(map[string]bool{"nodes": true})
	return c.Store.ForgetRecovery()
}

// readRoster takes the coordinators' list from the database.
func (c *Coordinator) readRoster(ctx context.Context) error {
	var all []store.Node
	err := c.Store.View(ctx, func(r *store.Reader) (err error) {
		all, err = r.Nodes()
		return err
	})
	if err != nil {
		return err
	}
	news, err := c.roster.replace(all)
	if err != nil {
		return err
	}
	if news {
		c.Store.Recheck()
		c.hub.hear([]string{"roster"})
	}
	if n, ok := c.roster.node(c.config.Node); ok && !n.Present() {
		return store.ErrRemoved
	}
	return nil
}

// keepRoster puts this coordinator on the list and follows the list until the context ends. It returns ErrRemoved when this one is no
// longer on it.
func (c *Coordinator) keepRoster(ctx context.Context) error {
	wake, stop := c.hub.subscribe("nodes")
	defer stop()
	enlisted := false
	for {
		var err error
		if !enlisted {
			err = c.enlist(ctx)
			enlisted = err == nil
		}
		if err == nil {
			err = c.readRoster(ctx)
		}
		if errors.Is(err, store.ErrNoMajority) {
			err = c.askWhetherRemoved(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, store.ErrRemoved):
			return err
		case err != nil:
			c.Logger.Warn("read the list of coordinators", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(rosterEvery):
		}
	}
}

// askWhetherRemoved asks the others while the database does not answer: to one that was removed it never will again.
func (c *Coordinator) askWhetherRemoved(ctx context.Context) error {
	for _, n := range c.others() {
		if _, err := c.nodeStatus(ctx, n); saysRemoved(err) {
			return fmt.Errorf("coordinator %s says: %w", n.Name, store.ErrRemoved)
		}
	}
	return nil
}

// others are the present coordinators but this one.
func (c *Coordinator) others() []store.Node {
	return slices.DeleteFunc(c.roster.nodes(), func(n store.Node) bool { return !n.Present() || n.Name == c.config.Node })
}

// removedError says what to do with a coordinator that was removed.
func removedError(config Config) error {
	return fmt.Errorf("%w: its data is out of date and its certificate is void; to use %s again, empty %s and %s and join with \"bloomery rack join\"", store.ErrRemoved, config.Node, config.Data, config.PKI)
}

// peerClient makes an HTTP client that reaches another coordinator's API, at the first of its addresses that answers, with this one's certificate.
func (c *Coordinator) peerClient(n store.Node) *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, peerDial)
			defer cancel()
			var failures error
			for _, address := range apiAddresses(n) {
				config := c.Authority.NodeTLS()
				config.NextProtos = []string{"h2", "http/1.1"}
				d := tls.Dialer{Config: config}
				conn, err := d.DialContext(ctx, "tcp", address)
				if err == nil {
					return conn, nil
				}
				failures = errors.Join(failures, err)
			}
			if failures == nil {
				failures = errors.New("it has no address that others can reach: listen.api has a unix socket only")
			}
			return nil, fmt.Errorf("reach coordinator %s: %w", n.Name, failures)
		},
		ForceAttemptHTTP2: true,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: peerTimeout, PingTimeout: peerTimeout},
		IdleConnTimeout:   time.Minute,
	}}
}

func apiAddresses(n store.Node) []string {
	var all []string
	for _, text := range n.API {
		if u, err := url.Parse(text); err == nil {
			all = append(all, u.Host)
		}
	}
	sort.Strings(all)
	return all
}

// peer makes a client of another coordinator's NodeService, and what gives it up.
func (c *Coordinator) peer(n store.Node) (bloomeryv1connect.NodeServiceClient, func()) {
	client := c.peerClient(n)
	return bloomeryv1connect.NewNodeServiceClient(client, "https://"+n.Name), client.CloseIdleConnections
}
