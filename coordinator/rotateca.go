package coordinator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

// GetAuthorities implements bloomery.v1.RackService.
func (c *Coordinator) GetAuthorities(ctx context.Context, _ *connect.Request[bloomeryv1.GetAuthoritiesRequest]) (*connect.Response[bloomeryv1.GetAuthoritiesResponse], error) {
	var rows []store.Authority
	err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		rows, err = s.Authorities()
		return err
	})
	if err != nil {
		return nil, err
	}
	all, err := authorityMessages(rows)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.GetAuthoritiesResponse{Authorities: all}), nil
}

func authorityMessages(rows []store.Authority) ([]*bloomeryv1.Authority, error) {
	var all []*bloomeryv1.Authority
	for _, row := range rows {
		ca, err := pki.UnmarshalCA(row.Secret)
		if err != nil {
			return nil, err
		}
		all = append(all, &bloomeryv1.Authority{
			Subject: ca.Root.Subject.String(), Fingerprint: row.Fingerprint, NotAfter: timestamppb.New(ca.Root.NotAfter),
			Active: row.State == store.AuthorityActive, Certificate: ca.Root.Raw,
		})
	}
	return all, nil
}

// RotateCA implements bloomery.v1.RackService. From begin to finish two CAs are trusted; everybody has time to move from one to the
// other. Abort makes the old one sign again, and finish then drops the new one.
func (c *Coordinator) RotateCA(ctx context.Context, r *connect.Request[bloomeryv1.RotateCARequest]) (*connect.Response[bloomeryv1.RotateCAResponse], error) {
	var rows []store.Authority
	err := c.update(ctx, func(ch *change) error {
		active, other, err := ch.findCA()
		if err != nil {
			return err
		}
		before, err := ch.Authorities()
		if err != nil {
			return err
		}
		switch r.Msg.GetPhase() {
		case bloomeryv1.RotateCARequest_PHASE_BEGIN:
			err = ch.beginRotation(active, other)
		case bloomeryv1.RotateCARequest_PHASE_FINISH:
			err = ch.finishRotation(other, r.Msg.GetForce())
		case bloomeryv1.RotateCARequest_PHASE_ABORT:
			err = ch.abortRotation(active, other)
		default:
			err = invalid("phase", "REQUIRED", "want begin, finish or abort")
		}
		if err != nil {
			return err
		}
		if rows, err = ch.Authorities(); err != nil {
			return err
		}
		ch.topics["authorities"] = true
		return ch.changedCAs(before, rows)
	})
	if err != nil {
		return nil, err
	}
	all, err := authorityMessages(rows)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.RotateCAResponse{Authorities: all}), nil
}

// changedCAs records what a phase did, without any key.
func (ch *change) changedCAs(before, after []store.Authority) error {
	old, err := authorityMessages(before)
	if err != nil {
		return err
	}
	now, err := authorityMessages(after)
	if err != nil {
		return err
	}
	find := func(all []*bloomeryv1.Authority, fingerprint string) *bloomeryv1.Authority {
		for _, a := range all {
			if a.GetFingerprint() == fingerprint {
				return a
			}
		}
		return nil
	}
	for _, a := range old {
		ch.changed("authority "+a.GetFingerprint()[:16], a, find(now, a.GetFingerprint()))
	}
	for _, a := range now {
		if find(old, a.GetFingerprint()) == nil {
			ch.changed("authority "+a.GetFingerprint()[:16], nil, a)
		}
	}
	return nil
}

func (ch *change) beginRotation(active, other *store.Authority) error {
	if other != nil {
		return notNow("phase", "ROTATION_UNDER_WAY", "the rack's CA is being replaced already: finish or abort that first")
	}
	present, err := pki.UnmarshalCA(active.Secret)
	if err != nil {
		return err
	}
	if present.RootKey == nil {
		return notNow("phase", "NO_CA_KEY", "%v: put ca.key into the pki folder of a coordinator and restart it", pki.ErrNoRootKey)
	}
	next, err := pki.NewCA(present, ch.Now())
	if err != nil {
		return err
	}
	active.State = store.AuthorityTrusted
	if err := ch.SaveAuthority(*active); err != nil {
		return err
	}
	return ch.saveAuthority(next, store.AuthorityActive, ch.Now())
}

func (ch *change) abortRotation(active, other *store.Authority) error {
	if other == nil {
		return notNow("phase", "NO_ROTATION", "the rack's CA is not being replaced")
	}
	active.State, other.State = store.AuthorityTrusted, store.AuthorityActive
	if err := ch.SaveAuthority(*active); err != nil {
		return err
	}
	return ch.SaveAuthority(*other)
}

// maxNamed bounds how many names a refusal lists.
const maxNamed = 20

func (ch *change) finishRotation(other *store.Authority, force bool) error {
	if other == nil {
		return notNow("phase", "NO_ROTATION", "the rack's CA is not being replaced")
	}
	users, err := usersOf(&ch.Reader, other.Fingerprint, ch.Now())
	if err != nil {
		return err
	}
	if len(users) > 0 && !force {
		more := ""
		if len(users) > maxNamed {
			more = fmt.Sprintf(" and %d more", len(users)-maxNamed)
			users = users[:maxNamed]
		}
		return notNow("phase", "CA_IN_USE", "certificates of the CA that would go are in use by %s%s: operators renew with \"bloomery operator renew\", coordinators and agents by themselves; --force cuts them off", strings.Join(users, ", "), more)
	}
	if err := ch.keepAnAdmin(other.Fingerprint); err != nil {
		return err
	}
	return ch.DeleteAuthority(other.Fingerprint)
}

// keepAnAdmin refuses, forced or not, what would leave nobody who can let others in.
func (ch *change) keepAnAdmin(authority string) error {
	locked, err := ch.OperatorsUnder(authority, ch.Now())
	if err != nil {
		return err
	}
	operators, err := ch.Operators()
	if err != nil {
		return err
	}
	without := map[string]bool{}
	for _, name := range locked {
		without[name] = true
	}
	for _, o := range operators {
		if o.GetRole() == bloomeryv1.Role_ROLE_ADMIN && o.GetRevokedAt() == nil && !without[o.GetName()] && o.GetNotAfter().AsTime().After(ch.Now()) {
			return nil
		}
	}
	return notNow("phase", "LAST_ADMIN", "no administrator has a certificate of the CA that stays: renew yours first with \"bloomery operator renew\"")
}

// usersOf names everybody whose certificate would be worth nothing without a CA.
func usersOf(r *store.Reader, authority string, now time.Time) ([]string, error) {
	var users []string
	operators, err := r.OperatorsUnder(authority, now)
	if err != nil {
		return nil, err
	}
	for _, name := range operators {
		users = append(users, "operator "+name)
	}
	nodes, err := r.NodeCertificates()
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		if n.Authority == authority || n.Authority == "" {
			users = append(users, "coordinator "+n.Node)
		}
	}
	agents, err := r.AgentsUnder(authority)
	if err != nil {
		return nil, err
	}
	for _, machine := range agents {
		users = append(users, "the agent of machine "+machine)
	}
	return users, nil
}
