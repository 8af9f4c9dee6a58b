package store

import (
	"database/sql"
	"fmt"
	"slices"
	"time"
)

// AuthorityState is what a CA of the rack is for.
type AuthorityState int

// The states: the active one signs, a trusted one is being replaced.
const (
	AuthorityTrusted AuthorityState = 1
	AuthorityActive  AuthorityState = 2
)

// Authority is a CA of the rack. Secret is the CA with its keys; it is sealed in the database.
type Authority struct {
	Fingerprint string
	State       AuthorityState
	Created     time.Time
	Secret      []byte
}

// Authorities reads the rack's CAs, the active one first.
func (r *Reader) Authorities() ([]Authority, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT fingerprint, state, created, body FROM authorities ORDER BY state DESC, created")
	if err != nil {
		return nil, fmt.Errorf("read the rack's CAs: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (Authority, error) {
		var a Authority
		var created int64
		var sealed []byte
		if err := rows.Scan(&a.Fingerprint, &a.State, &created, &sealed); err != nil {
			return a, err
		}
		a.Created = fromNanos(created)
		secret, err := r.sealer.open(sealed, sealedCA(a.Fingerprint))
		if err != nil {
			return a, fmt.Errorf("read CA %.16s: %w; is secret.key this rack's?", a.Fingerprint, err)
		}
		a.Secret = []byte(secret)
		return a, nil
	})
}

// sealedCA is what a CA's secret is bound to; no machine has such a name.
func sealedCA(fingerprint string) string { return "authority/" + fingerprint }

// SaveAuthority stores a CA in place of any with that fingerprint.
func (t *Tx) SaveAuthority(a Authority) error {
	sealed, err := t.sealer.seal(string(a.Secret), sealedCA(a.Fingerprint))
	if err != nil {
		return err
	}
	return t.exec("INSERT INTO authorities (fingerprint, state, created, body) VALUES (?, ?, ?, ?) ON CONFLICT (fingerprint) DO UPDATE SET state = excluded.state, body = excluded.body",
		a.Fingerprint, int64(a.State), nanos(a.Created), sealed)
}

// DeleteAuthority drops a CA, and the records of what it signed for operators.
func (t *Tx) DeleteAuthority(fingerprint string) error {
	if err := t.exec("DELETE FROM operator_certificates WHERE authority = ?", fingerprint); err != nil {
		return err
	}
	return t.exec("DELETE FROM authorities WHERE fingerprint = ?", fingerprint)
}

// NodeCertificate is what a coordinator's own certificate is.
type NodeCertificate struct {
	Node string
	// Authority is the fingerprint of the root that it was signed by.
	Authority string
	NotAfter  time.Time
}

// SaveNodeCertificate notes which certificate a coordinator has now.
func (t *Tx) SaveNodeCertificate(c NodeCertificate) error {
	return t.exec("INSERT INTO node_certificates (node, authority, not_after) VALUES (?, ?, ?) ON CONFLICT (node) DO UPDATE SET authority = excluded.authority, not_after = excluded.not_after",
		c.Node, c.Authority, nanos(c.NotAfter))
}

// NodeCertificates reads the certificates of the coordinators that are in the rack; one with an empty authority for each that has not
// said yet which it has. Before a rack has a list of coordinators, all who said so are.
func (r *Reader) NodeCertificates() ([]NodeCertificate, error) {
	nodes, err := r.Nodes()
	if err != nil {
		return nil, fmt.Errorf("read the coordinators: %w", err)
	}
	rows, err := r.q.QueryContext(r.ctx, "SELECT node, authority, not_after FROM node_certificates ORDER BY node")
	if err != nil {
		return nil, fmt.Errorf("read the coordinators' certificates: %w", err)
	}
	said, err := collect(rows, func(rows *sql.Rows) (NodeCertificate, error) {
		var c NodeCertificate
		var notAfter int64
		if err := rows.Scan(&c.Node, &c.Authority, &notAfter); err != nil {
			return c, err
		}
		c.NotAfter = fromNanos(notAfter)
		return c, nil
	})
	if err != nil || len(nodes) == 0 {
		return said, err
	}
	var all []NodeCertificate
	for _, n := range nodes {
		if !n.Present() {
			continue
		}
		mine := NodeCertificate{Node: n.Name}
		if i := slices.IndexFunc(said, func(c NodeCertificate) bool { return c.Node == n.Name }); i >= 0 {
			mine = said[i]
		}
		all = append(all, mine)
	}
	return all, nil
}

// OperatorsUnder names the operators who have no valid certificate but of one CA.
func (r *Reader) OperatorsUnder(authority string, now time.Time) ([]string, error) {
	return r.names(`SELECT DISTINCT c.operator FROM operator_certificates c JOIN operators o ON o.name = c.operator
WHERE c.authority = ? AND c.not_after > ? AND o.revoked = 0
AND NOT EXISTS (SELECT 1 FROM operator_certificates k WHERE k.operator = c.operator AND k.authority <> ? AND k.not_after > ?) ORDER BY 1`,
		authority, nanos(now), authority, nanos(now))
}

// AgentsUnder names the machines whose agent has a certificate of one CA. Those that enrolled before it was noted count.
func (r *Reader) AgentsUnder(authority string) ([]string, error) {
	return r.names("SELECT machine FROM boots WHERE enrolled > 0 AND authority IN (?, '') ORDER BY machine", authority)
}

func (r *Reader) names(query string, args ...any) ([]string, error) {
	rows, err := r.q.QueryContext(r.ctx, query, args...)
	if err != nil {
		return nil, err
	}
	return collect(rows, func(rows *sql.Rows) (name string, err error) {
		err = rows.Scan(&name)
		return name, err
	})
}
