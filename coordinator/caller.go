package coordinator

import (
	"context"
	"net/netip"
	"slices"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/internal/pki"
)

// caller is who made a call and from where.
type caller struct {
	// Identity of a bearer token is an operator without a certificate, by the token's name.
	pki.Identity
	// from is the zero Addr on a unix socket.
	from netip.Addr
	// role and teams are an operator's or a token's; zero for others.
	role  bloomeryv1.Role
	teams []string
	// token is the hash of the bearer token that was shown.
	token   []byte
	expires time.Time
	// unread says that the database could not be asked whether the certificate is on record.
	unread bool
	// outside tells a call from what the coordinator does by itself.
	outside bool
}

// actsFor says whether a caller may lock and unlock in the name of a team.
func (who caller) actsFor(team string) bool {
	return who.role == bloomeryv1.Role_ROLE_ADMIN || slices.Contains(who.teams, team)
}

// actor is the caller as events name it: "operator anna", "token billing", "agent m1", "coordinator c1".
func (who caller) actor() string {
	switch {
	case who.token != nil:
		return "token " + who.Name
	case who.Role == pki.RoleNone && who.outside:
		return "anonymous"
	case who.Role == pki.RoleNone:
		return "coordinator " + who.Name
	}
	return who.Role.String() + " " + who.Name
}

// source is where the call came from, as events name it; empty when there was no call.
func (who caller) source() string {
	if !who.outside {
		return ""
	}
	return addrText(who.from)
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return "unix socket"
	}
	return a.String()
}
