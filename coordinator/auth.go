package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"connectrpc.com/connect"

	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

// authorize is the interceptor of every RPC.
type authorize struct{ c *Coordinator }

// check decides by the table of permissions.
func (a authorize) check(ctx context.Context, procedure string, message any) (permission, error) {
	p, ok := a.c.permissions[procedure]
	who := callerOf(ctx)
	var err error
	switch {
	case !ok:
		err = connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is for nobody", procedure))
	case p.peer == pki.RoleNone:
		return p, nil
	case who.Role == pki.RoleNone:
		err = connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("%s needs a client certificate of an %s", procedure, p.peer))
	case who.Role != p.peer:
		err = connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is for an %s, this is an %s's certificate", procedure, p.peer, who.Role))
	case p.peer == pki.RoleOperator && who.unread && p.is(offline):
		return p, nil
	case p.peer == pki.RoleOperator && p.roles&setOf(who.role) == 0:
		err = connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s is not for role %s", shortProcedure(procedure), roleName(who.role)))
	case p.is(byCertificate) && who.token != nil:
		err = connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s needs an operator's certificate: a token does not open it", shortProcedure(procedure)))
	default:
		why := narrow(who.role, message)
		if why == nil {
			return p, nil
		}
		err = connect.NewError(connect.CodePermissionDenied, why)
	}
	machine := ""
	if who.Role == pki.RoleAgent {
		machine = who.Name
	}
	a.c.security(ctx, "security.call_refused", machine, who, fmt.Sprintf("a call of %s by %s was refused", procedure, who.actor()))
	return p, err
}

// WrapUnary implements connect.Interceptor.
func (a authorize) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		p, err := a.check(ctx, r.Spec().Procedure, r.Any())
		if err != nil {
			return nil, err
		}
		ctx = a.c.begin(ctx, p, r.Any())
		if p.is(acts) {
			if err := a.c.auditNow(ctx); err != nil {
				return nil, rpcError(err)
			}
		}
		response, err := next(ctx, r)
		if err == nil {
			err = a.c.auditNow(ctx)
		}
		if err != nil {
			return nil, rpcError(err)
		}
		return response, nil
	}
}

// WrapStreamingClient implements connect.Interceptor; a coordinator calls nobody through it.
func (a authorize) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor. A stream ends when its caller is revoked.
func (a authorize) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		p, err := a.check(ctx, conn.Spec().Procedure, nil)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithCancelCause(a.c.begin(ctx, p, nil))
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel(nil)
		if who := callerOf(ctx); who.Role == pki.RoleOperator {
			wg.Go(func() { a.c.recheck(ctx, who, p, cancel) })
		}
		if p.is(acts) {
			if err := a.c.auditNow(ctx); err != nil {
				return rpcError(err)
			}
		}
		err = next(ctx, guardedConn{conn, ctx})
		var refused *refusedCaller
		if errors.As(context.Cause(ctx), &refused) {
			return connect.NewError(connect.CodeUnauthenticated, refused)
		}
		if err == nil {
			err = a.c.auditNow(ctx)
		}
		return rpcError(err)
	}
}

// guardedConn carries no message once its context has ended.
type guardedConn struct {
	connect.StreamingHandlerConn
	ctx context.Context
}

func (g guardedConn) Receive(message any) error {
	if err := g.StreamingHandlerConn.Receive(message); err != nil {
		return err
	}
	return g.ctx.Err()
}

func (g guardedConn) Send(message any) error {
	if err := g.ctx.Err(); err != nil {
		return err
	}
	return g.StreamingHandlerConn.Send(message)
}

// mayReadImages lets operators, other coordinators, and agents whose machine has a job and an enrolled boot, read images.
func (c *Coordinator) mayReadImages(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who, allowed := callerOf(r.Context()), false
		switch who.Role {
		case pki.RoleOperator, pki.RoleNode:
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
