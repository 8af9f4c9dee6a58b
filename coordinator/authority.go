package coordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	// authorityEvery is how soon a coordinator that missed a hint knows what the rack trusts.
	authorityEvery = time.Second
	// authoritySettle is how long a coordinator trusts a new CA before it signs with it, by its own monotonic clock: until then the
	// others have heard of it, so that nobody is shown a certificate that he does not know yet.
	authoritySettle = 4 * time.Second
	// beginTimeout is how long callers wait at the start for the record of who they are.
	beginTimeout = 2 * time.Second
)

// authorityKeeper follows which CAs the rack trusts, and keeps this coordinator's own certificate fresh. One goroutine owns it.
type authorityKeeper struct {
	c      *Coordinator
	settle time.Duration
	// seen is when each CA was first heard of.
	seen map[string]time.Time
	// prepared says that the database knows who may use the rack.
	prepared bool
	// trouble is the last failure, so that each is said once.
	trouble string
}

func (c *Coordinator) newAuthorityKeeper(settle time.Duration) *authorityKeeper {
	k := &authorityKeeper{c: c, settle: settle, seen: map[string]time.Time{}}
	for _, ca := range c.Authority.Trusted() {
		k.seen[ca.Fingerprint()] = time.Time{}
	}
	return k
}

// begin tries to put on record who may use the rack before anybody is answered: at a rack's first start its operator would be refused else.
// Without the database run tries on.
func (k *authorityKeeper) begin(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, beginTimeout)
	defer cancel()
	if err := k.prepare(ctx); err != nil {
		k.c.Logger.Warn("put on record who may use the rack", "error", err)
		return
	}
	k.prepared = true
}

// run follows until the context ends.
func (k *authorityKeeper) run(ctx context.Context) error {
	wake, stop := k.c.hub.subscribe("authorities")
	defer stop()
	for {
		attempt, cancel := context.WithTimeout(ctx, lookupTimeout)
		err := k.follow(attempt)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != k.trouble && text != "" {
			k.c.Logger.Error("follow the rack's CAs", "error", err)
		}
		k.trouble = text
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(authorityEvery):
		}
	}
}

// follow does one round.
func (k *authorityKeeper) follow(ctx context.Context) error {
	if !k.prepared {
		if err := k.prepare(ctx); err != nil {
			return err
		}
		k.prepared = true
	}
	rows, nodes, err := k.read(ctx)
	if err != nil {
		return err
	}
	trusted, err := k.order(rows)
	if err != nil {
		return err
	}
	if !slices.EqualFunc(trusted, k.c.Authority.Trusted(), sameCA) {
		if err := k.c.Authority.Use(trusted); err != nil {
			return err
		}
	}
	if err := k.c.Authority.WriteCAs(k.c.config.PKI); err != nil {
		return err
	}
	return k.renew(ctx, trusted[0], nodes)
}

func sameCA(a, b *pki.CA) bool {
	return a.Root.Equal(b.Root) && (a.RootKey == nil) == (b.RootKey == nil) && (a.AgentsKey == nil) == (b.AgentsKey == nil) && (a.Cross == nil) == (b.Cross == nil)
}

func (k *authorityKeeper) read(ctx context.Context) (rows []store.Authority, nodes []store.NodeCertificate, err error) {
	err = k.c.Store.View(ctx, func(s *store.Reader) (err error) {
		if rows, err = s.Authorities(); err != nil {
			return err
		}
		nodes, err = s.NodeCertificates()
		return err
	})
	return rows, nodes, err
}

// prepare makes a new or an older rack's database know its CA, its key of images and who may use it.
func (k *authorityKeeper) prepare(ctx context.Context) error {
	if err := k.importCAs(ctx); err != nil {
		return fmt.Errorf("take the rack's CA over from the PKI folder: %w", err)
	}
	if _, err := k.c.loadImageKeys(ctx); err != nil {
		return fmt.Errorf("take the key of images over from the PKI folder: %w", err)
	}
	return k.c.importOperators(ctx)
}

// importCAs stores the CA of the PKI folder at the first start, and later the keys that were missing before.
func (k *authorityKeeper) importCAs(ctx context.Context) error {
	files := k.c.Authority.Trusted()
	return k.c.update(ctx, func(ch *change) error {
		rows, err := ch.Authorities()
		if err != nil {
			return err
		}
		if len(rows) == 0 {
			for i, ca := range files {
				state := store.AuthorityTrusted
				if i == 0 {
					state = store.AuthorityActive
				}
				if err := ch.saveAuthority(ca, state, ch.Now()); err != nil {
					return err
				}
			}
			return nil
		}
		for _, row := range rows {
			ca, err := pki.UnmarshalCA(row.Secret)
			if err != nil {
				return err
			}
			for _, file := range files {
				if !file.Root.Equal(ca.Root) || (ca.RootKey != nil || file.RootKey == nil) && (ca.AgentsKey != nil || file.AgentsKey == nil) {
					continue
				}
				if ca.RootKey == nil {
					ca.RootKey = file.RootKey
				}
				if ca.AgentsKey == nil {
					ca.Agents, ca.AgentsKey = file.Agents, file.AgentsKey
				}
				if err := ch.saveAuthority(ca, row.State, row.Created); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (ch *change) saveAuthority(ca *pki.CA, state store.AuthorityState, created time.Time) error {
	secret, err := ca.Marshal()
	if err != nil {
		return err
	}
	ch.topics["authorities"] = true
	return ch.SaveAuthority(store.Authority{Fingerprint: ca.Fingerprint(), State: state, Created: created, Secret: secret})
}

// order decodes the rack's CAs and says which one signs: the active one, unless it is too new here.
func (k *authorityKeeper) order(rows []store.Authority) ([]*pki.CA, error) {
	if len(rows) == 0 {
		return nil, errors.New("the rack's CA is not in the database")
	}
	now := time.Now()
	var trusted []*pki.CA
	for _, row := range rows {
		ca, err := pki.UnmarshalCA(row.Secret)
		if err != nil {
			return nil, err
		}
		if _, ok := k.seen[row.Fingerprint]; !ok {
			k.seen[row.Fingerprint] = now
		}
		trusted = append(trusted, ca)
	}
	if since := k.seen[rows[0].Fingerprint]; len(trusted) > 1 && !since.IsZero() && now.Sub(since) < k.settle {
		trusted[0], trusted[1] = trusted[1], trusted[0]
	}
	return trusted, nil
}

// renew replaces this coordinator's certificate when two thirds of its life are over, when another CA signs now, and when the
// coordinator has another name; and says in the database which one it has.
func (k *authorityKeeper) renew(ctx context.Context, signing *pki.CA, nodes []store.NodeCertificate) error {
	leaf, err := x509.ParseCertificate(k.c.Authority.Server().Certificate[0])
	if err != nil {
		return fmt.Errorf("read this coordinator's certificate: %w", err)
	}
	authority, known := k.c.Authority.Issued(leaf)
	due := leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3)
	renewed := !known || authority != signing.Fingerprint() || leaf.Subject.CommonName != k.c.config.Node || k.c.config.Now().After(due)
	var failure error
	if renewed {
		fresh, err := k.reissue(leaf)
		if err != nil {
			failure = fmt.Errorf("renew this coordinator's certificate, which ends on %s: %w", leaf.NotAfter.UTC().Format(time.DateOnly), err)
			renewed = false
		} else {
			leaf, authority = fresh, signing.Fingerprint()
		}
	}
	mine := store.NodeCertificate{Node: k.c.config.Node, Authority: authority, NotAfter: leaf.NotAfter}
	if slices.ContainsFunc(nodes, func(n store.NodeCertificate) bool {
		return n.Node == mine.Node && n.Authority == mine.Authority && n.NotAfter.Equal(mine.NotAfter)
	}) {
		return failure
	}
	return errors.Join(failure, k.c.update(ctx, func(ch *change) error {
		if renewed {
			if err := ch.note(&bloomeryv1.Event{Type: "access.node_renewed", Message: fmt.Sprintf("coordinator %s renewed its certificate; it is valid until %s", mine.Node, mine.NotAfter.UTC().Format(time.DateOnly))},
				map[string]any{"node": mine.Node, "authority": mine.Authority}); err != nil {
				return err
			}
		}
		return ch.SaveNodeCertificate(mine)
	}))
}

// reissue makes a new key and certificate with the addresses of the present one.
func (k *authorityKeeper) reissue(leaf *x509.Certificate) (*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	csr, err := pki.ParseCSR(der)
	if err != nil {
		return nil, err
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	chain, _, err := k.c.Authority.SignNode(csr, k.c.config.Node, names, k.c.config.Now())
	if err != nil {
		return nil, err
	}
	if err := pki.WritePair(filepath.Join(k.c.config.PKI, pki.ServerCert), filepath.Join(k.c.config.PKI, pki.ServerKey), chain, key); err != nil {
		return nil, err
	}
	fresh, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	k.c.Authority.UseServer(tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: fresh})
	return fresh, nil
}

// findCA reads the CAs of a transaction: the active one, and the one that is being replaced, nil when none is.
func (ch *change) findCA() (active, other *store.Authority, err error) {
	rows, err := ch.Authorities()
	if err != nil {
		return nil, nil, err
	}
	for i := range rows {
		if rows[i].State == store.AuthorityActive {
			active = &rows[i]
		} else {
			other = &rows[i]
		}
	}
	if active == nil {
		return nil, nil, errors.New("the rack's CA is not in the database yet: try again in a second")
	}
	return active, other, nil
}
