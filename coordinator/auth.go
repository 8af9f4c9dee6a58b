package coordinator

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

// caller is who made a call and from where; from is the zero Addr on a unix socket.
type caller struct {
	pki.Identity
	from netip.Addr
	// role and teams are an operator's; zero for others.
	role  bloomeryv1.Role
	teams []string
}

// actsFor says whether a caller may lock and unlock in the name of a team.
func (who caller) actsFor(team string) bool {
	return who.role == bloomeryv1.Role_ROLE_ADMIN || slices.Contains(who.teams, team)
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// identify puts who calls into the request's context, and refuses certificates that claim what they were not issued for.
func (c *Coordinator) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id, err := c.Authority.Identify(r.TLS)
		who := caller{Identity: id}
		if id.Role == pki.RoleOperator {
			who.role = bloomeryv1.Role_ROLE_ADMIN
		}
		if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
			who.from = ap.Addr().Unmap()
		}
		if err != nil {
			c.security(r.Context(), "security.certificate_refused", "", who, "a certificate was refused: "+err.Error())
			http.Error(w, "certificate refused", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
	})
}

// requiredRole says whose certificate opens a procedure; anyone may call Enrol, which decides for itself.
func requiredRole(procedure string) pki.Role {
	switch {
	case procedure == bloomeryv1connect.AgentServiceEnrolProcedure, procedure == bloomeryv1connect.RackServiceJoinRackProcedure:
		return pki.RoleNone
	case strings.HasPrefix(procedure, "/"+bloomeryv1connect.NodeServiceName+"/"):
		return pki.RoleNode
	case strings.HasPrefix(procedure, "/"+bloomeryv1connect.AgentServiceName+"/"):
		return pki.RoleAgent
	}
	return pki.RoleOperator
}

// authorize is the interceptor of every RPC.
type authorize struct{ c *Coordinator }

func (a authorize) check(ctx context.Context, procedure string) error {
	want, who := requiredRole(procedure), callerOf(ctx)
	if want == pki.RoleNone || who.Role == want {
		return nil
	}
	if who.Role == pki.RoleNone {
		a.c.security(ctx, "security.call_refused", "", who, fmt.Sprintf("a call of %s without a certificate was refused", procedure))
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("%s needs a client certificate of an %s", procedure, want))
	}
	machine := ""
	if who.Role == pki.RoleAgent {
		machine = who.Name
	}
	a.c.security(ctx, "security.call_refused", machine, who, fmt.Sprintf("a call of %s by %s %s was refused", procedure, who.Role, who.Name))
	return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is for an %s, this is an %s's certificate", procedure, want, who.Role))
}

// WrapUnary implements connect.Interceptor.
func (a authorize) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		if err := a.check(ctx, r.Spec().Procedure); err != nil {
			return nil, err
		}
		response, err := next(ctx, r)
		return response, rpcError(err)
	}
}

// WrapStreamingClient implements connect.Interceptor; a coordinator calls nobody.
func (a authorize) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (a authorize) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		if err := a.check(ctx, conn.Spec().Procedure); err != nil {
			return err
		}
		return rpcError(next(ctx, conn))
	}
}

// security records that something was tried that is not allowed; a flood of tries is not recorded each.
func (c *Coordinator) security(ctx context.Context, kind, machine string, who caller, message string) {
	if !c.limits.security.Allow() {
		c.Logger.Warn("security event not recorded, too many", "event", kind, "machine", machine, "from", who.from)
		return
	}
	err := c.update(context.WithoutCancel(ctx), func(ch *change) error {
		return ch.note(&bloomeryv1.Event{Type: kind, Severity: bloomeryv1.Severity_SEVERITY_SECURITY, Machine: machine, Message: clipTo(message, 1000)},
			map[string]any{"from": addrText(who.from), "role": who.Role.String(), "name": who.Name})
	})
	if err != nil {
		c.Logger.Error("store a security event", "event", kind, "error", err)
	}
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return "unix socket"
	}
	return a.String()
}

// mayReadImages lets operators, and agents whose machine has a job and an enrolled boot, read images.
func (c *Coordinator) mayReadImages(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, allowed := callerOf(r.Context()), false
		switch who.Role {
		case pki.RoleOperator:
			allowed = true
		case pki.RoleAgent:
			err := c.Store.View(r.Context(), func(s *store.Reader) error {
				boot, err := s.Boot(who.Name)
				allowed = err == nil && boot != nil && currentBoot(boot, who, boot.BootID)
				return err
			})
			if err != nil {
				http.Error(w, "the store cannot be read", http.StatusServiceUnavailable)
				return
			}
		}
		if !allowed {
			c.security(r.Context(), "security.image_refused", "", who, "a request for "+clip(r.URL.Path)+" was refused")
			http.Error(w, "not allowed", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}
