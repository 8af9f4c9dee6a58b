package coordinator

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	// lookupTimeout bounds the look-up of who calls; offlineTimeout that of calls which work without it.
	lookupTimeout  = 5 * time.Second
	offlineTimeout = time.Second
	// usedEvery is how exactly a token's last use is known.
	usedEvery = time.Hour
	// recheckEvery is how long a stream may outlive the revocation of its caller.
	recheckEvery = time.Second
)

// refusedCaller is somebody whose certificate or token opens nothing (any more).
type refusedCaller struct{ why string }

func (e *refusedCaller) Error() string { return e.why }

// identify puts who calls into the request's context. It refuses certificates that claim what they were not issued for, that are
// not on record or revoked, and tokens that are not known, expired or revoked.
func (c *Coordinator) identify(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := caller{outside: true}
		if from, ok := remote(r); ok {
			who.from = from
		}
		id, err := c.Authority.Identify(r.TLS)
		if err != nil {
			c.security(r.Context(), "security.certificate_refused", "", who, "a certificate was refused: "+err.Error())
			refuseRequest(w, r, connect.NewError(connect.CodePermissionDenied, errors.New("certificate refused")))
			return
		}
		who.Identity = id
		if len(r.Header.Values("Authorization")) > 0 && !c.limits.stranger.left(limitKey(who.from)) {
			refuseRequest(w, r, connect.NewError(connect.CodeResourceExhausted, errTooMany))
			return
		}
		if err := c.roster.admit(id); err != nil {
			c.security(r.Context(), "security.certificate_refused", "", who, "a certificate was refused: "+err.Error())
			refuseRequest(w, r, err)
			return
		}
		if who, err = c.lookUp(r, who); err != nil {
			var refused *refusedCaller
			if !errors.As(err, &refused) {
				refuseRequest(w, r, rpcError(fmt.Errorf("look up who calls: %w", err)))
				return
			}
			c.limits.stranger.allow(limitKey(who.from))
			c.security(r.Context(), "security.call_refused", "", who, "a call of "+clip(r.URL.Path)+" was refused: "+refused.why)
			refuseRequest(w, r, connect.NewError(connect.CodeUnauthenticated, err))
			return
		}
		if !c.limits.within(who) {
			refuseRequest(w, r, connect.NewError(connect.CodeResourceExhausted, errTooMany))
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, who)))
	})
}

// refuseRequest answers in the form that the client understands.
func refuseRequest(w http.ResponseWriter, r *http.Request, err error) {
	if writer := connect.NewErrorWriter(); writer.IsSupported(r) {
		// The client may be gone; there is nobody else to tell.
		_ = writer.Write(w, r, err)
		return
	}
	status := http.StatusForbidden
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated:
		status = http.StatusUnauthorized
	case connect.CodeResourceExhausted:
		status = http.StatusTooManyRequests
	case connect.CodeUnavailable, connect.CodeInternal, connect.CodeDeadlineExceeded:
		status = http.StatusServiceUnavailable
	}
	http.Error(w, err.Error(), status)
}

// lookUp finds out what an operator's certificate or a bearer token allows.
func (c *Coordinator) lookUp(r *http.Request, who caller) (caller, error) {
	header := r.Header.Values("Authorization")
	switch {
	case r.URL.Path == healthzPath:
		return who, nil // whether the process lives does not depend on the database
	case len(header) > 0 && who.Role != pki.RoleNone:
		return who, &refusedCaller{"it shows both a certificate and a token: use one"}
	case len(header) > 0:
		secret, ok := strings.CutPrefix(header[0], "Bearer ")
		if !ok || len(header) > 1 || !wellFormed(secret) {
			return who, &refusedCaller{"its token is not one of this rack's: want \"Authorization: Bearer " + tokenPrefix + "...\""}
		}
		who.token = hashToken(secret)
	case who.Role != pki.RoleOperator:
		return who, nil
	}
	works := c.permissions[r.URL.Path].is(offline) && who.token == nil
	timeout := lookupTimeout
	if works {
		timeout = offlineTimeout
	}
	ctx, cancel := context.WithTimeout(r.Context(), timeout)
	defer cancel()
	found, stale, err := c.resolve(ctx, who)
	var refused *refusedCaller
	switch {
	case err == nil && stale:
		c.useToken(r.Context(), found.Name)
	case err != nil && works && !errors.As(err, &refused):
		who.unread = true
		return who, nil
	}
	return found, err
}

// resolve reads what a caller's certificate or token is worth now. stale says that a token's last use should be noted.
func (c *Coordinator) resolve(ctx context.Context, who caller) (found caller, stale bool, err error) {
	fingerprint := sha256.Sum256(who.Certificate)
	err = c.Store.View(ctx, func(s *store.Reader) error {
		found, stale = who, false
		now := c.config.Now()
		if who.token == nil {
			o, err := s.OperatorByCertificate(fingerprint[:])
			switch {
			case errors.Is(err, store.ErrNotFound):
				return &refusedCaller{"the certificate of operator " + who.Name + " is not on record or was revoked: ask an administrator for \"bloomery operator add\""}
			case err != nil:
				return err
			case o.GetName() != who.Name || o.GetRevokedAt() != nil:
				return &refusedCaller{"operator " + who.Name + " was revoked"}
			}
			found.role, found.teams = o.GetRole(), o.GetTeams()
			return nil
		}
		t, err := s.TokenByHash(who.token)
		switch {
		case errors.Is(err, store.ErrNotFound):
			return &refusedCaller{"its token is not known"}
		case err != nil:
			return err
		case t.GetRevokedAt() != nil:
			return &refusedCaller{"token " + t.GetName() + " was revoked"}
		case !now.Before(t.GetExpiresAt().AsTime()):
			return &refusedCaller{"token " + t.GetName() + " has expired"}
		}
		found.Identity = pki.Identity{Role: pki.RoleOperator, Name: t.GetName()}
		found.role, found.teams, found.expires = t.GetRole(), t.GetTeams(), t.GetExpiresAt().AsTime()
		stale = t.GetUsedAt() == nil || now.Sub(t.GetUsedAt().AsTime()) >= usedEvery
		return nil
	})
	return found, stale, err
}

// useToken notes that a token is in use; the call goes on when that fails.
func (c *Coordinator) useToken(ctx context.Context, name string) {
	ctx, cancel := context.WithTimeout(ctx, offlineTimeout)
	defer cancel()
	err := c.Store.Update(ctx, func(tx *store.Tx) error { return tx.UseToken(name, tx.Now().Truncate(usedEvery)) })
	if err != nil {
		c.Logger.Warn("note the use of a token", "token", name, "error", err)
	}
}

// recheck cancels a stream whose caller was revoked since it began, on whichever coordinator that was done.
func (c *Coordinator) recheck(ctx context.Context, who caller, p permission, cancel context.CancelCauseFunc) {
	wake, stop := c.hub.subscribe("access")
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wake:
		case <-time.After(recheckEvery):
		}
		attempt, done := context.WithTimeout(ctx, lookupTimeout)
		now, _, err := c.resolve(attempt, who)
		done()
		var refused *refusedCaller
		if errors.As(err, &refused) {
			cancel(refused)
			return
		}
		if err == nil && p.roles&setOf(now.role) == 0 {
			cancel(&refusedCaller{fmt.Sprintf("%s is %s now", now.actor(), roleName(now.role))})
			return
		}
	}
}

// security records that something was tried that is not allowed; a flood of tries is not recorded each.
func (c *Coordinator) security(ctx context.Context, kind, machine string, who caller, message string) {
	if !c.limits.securityFrom.allow(limitKey(who.from)) || !c.limits.security.Allow() {
		c.Logger.Warn("security event not recorded, too many", "event", kind, "machine", machine, "from", who.from)
		return
	}
	// A refusal is no part of the call's own audit.
	ctx = context.WithValue(context.WithoutCancel(ctx), callKey{}, (*call)(nil))
	err := c.update(ctx, func(ch *change) error {
		return ch.note(&bloomeryv1.Event{Type: kind, Severity: bloomeryv1.Severity_SEVERITY_SECURITY, Machine: machine, Message: clipTo(message, 1000), Actor: who.actor(), Source: who.source()},
			map[string]any{"from": addrText(who.from), "role": who.Role.String(), "name": who.Name})
	})
	if err != nil {
		c.Logger.Error("store a security event", "event", kind, "error", err)
	}
}
