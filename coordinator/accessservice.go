package coordinator

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const (
	maxTeams = 32
	// tokenPrefix lets scanners of leaked secrets find a bearer token; 43 characters of base64url follow, 256 random bits.
	tokenPrefix  = "blm_"
	defaultToken = 90 * 24 * time.Hour
	longestToken = 366 * 24 * time.Hour
)

// wellFormed says that text looks like a bearer token.
func wellFormed(secret string) bool {
	encoded, ok := strings.CutPrefix(secret, tokenPrefix)
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	return ok && err == nil && len(raw) == tokenBytes
}

// WhoAmI implements bloomery.v1.AccessService.
func (c *Coordinator) WhoAmI(ctx context.Context, _ *connect.Request[bloomeryv1.WhoAmIRequest]) (*connect.Response[bloomeryv1.WhoAmIResponse], error) {
	who := callerOf(ctx)
	response := &bloomeryv1.WhoAmIResponse{Name: who.Name, Role: who.role, Teams: who.teams, Token: who.token != nil, Rack: c.Authority.Rack()}
	if who.token != nil {
		response.ExpiresAt = timestamppb.New(who.expires)
	} else {
		response.ExpiresAt = timestamppb.New(who.NotAfter)
	}
	return connect.NewResponse(response), nil
}

// AddOperator implements bloomery.v1.AccessService. The operator's key never leaves the client.
func (c *Coordinator) AddOperator(ctx context.Context, r *connect.Request[bloomeryv1.AddOperatorRequest]) (*connect.Response[bloomeryv1.AddOperatorResponse], error) {
	in := r.Msg.GetOperator()
	if err := pki.ValidName(in.GetName()); err != nil {
		return nil, invalid("operator.name", "NAME_INVALID", "%v", err)
	}
	if err := checkRole("operator", in.GetRole(), in.GetTeams()); err != nil {
		return nil, err
	}
	signed, err := c.signOperator(r.Msg.GetCsr(), in.GetName())
	if err != nil {
		return nil, err
	}
	o := &bloomeryv1.Operator{Name: in.GetName(), Role: in.GetRole(), Teams: in.GetTeams(), CreatedBy: callerOf(ctx).Name}
	err = c.update(ctx, func(ch *change) error {
		had, err := ch.Operator(o.GetName())
		if err == nil && had.GetRevokedAt() == nil {
			return fmt.Errorf("operator %s: %w; revoke it first to give it another role, team or key", o.GetName(), store.ErrExists)
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		o.CreatedAt = timestamppb.New(ch.Now())
		if err := ch.SaveOperator(o); err != nil {
			return err
		}
		return ch.AddCertificate(signed.record)
	})
	if err != nil {
		return nil, err
	}
	o.NotAfter = timestamppb.New(signed.record.NotAfter)
	return connect.NewResponse(&bloomeryv1.AddOperatorResponse{Operator: o, Certificates: signed.chain, Authorities: c.Authority.Roots()}), nil
}

// signedOperator is a new certificate, and how it is put on record.
type signedOperator struct {
	chain  [][]byte
	record store.Certificate
}

func (c *Coordinator) signOperator(der []byte, name string) (*signedOperator, error) {
	csr, err := pki.ParseCSR(der)
	if err != nil {
		return nil, invalid("csr", "CSR_INVALID", "%v", err)
	}
	signed, err := c.Authority.SignOperator(csr, name, c.config.Now())
	if errors.Is(err, pki.ErrNoRootKey) {
		return nil, notNow("operator", "NO_CA_KEY", "%v: put ca.key into the pki folder of a coordinator and restart it", err)
	}
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of operator %s: %w", name, err)
	}
	fingerprint := sha256.Sum256(signed.Chain[0])
	return &signedOperator{signed.Chain, store.Certificate{Fingerprint: fingerprint[:], Operator: name, Authority: signed.Authority, NotAfter: signed.NotAfter}}, nil
}

// ListOperators implements bloomery.v1.AccessService.
func (c *Coordinator) ListOperators(ctx context.Context, _ *connect.Request[bloomeryv1.ListOperatorsRequest]) (*connect.Response[bloomeryv1.ListOperatorsResponse], error) {
	response := &bloomeryv1.ListOperatorsResponse{}
	err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		response.Operators, err = s.Operators()
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}

// RevokeOperator implements bloomery.v1.AccessService. The last administrator stays: nobody could let others in any more.
func (c *Coordinator) RevokeOperator(ctx context.Context, r *connect.Request[bloomeryv1.RevokeOperatorRequest]) (*connect.Response[bloomeryv1.RevokeOperatorResponse], error) {
	var o *bloomeryv1.Operator
	err := c.update(ctx, func(ch *change) (err error) {
		if o, err = ch.Operator(clip(r.Msg.GetName())); err != nil {
			return fmt.Errorf("%s: %w", clip(r.Msg.GetName()), err)
		}
		if o.GetRevokedAt() != nil {
			return notNow("name", "REVOKED", "operator %s is revoked already", o.GetName())
		}
		if o.GetRole() == bloomeryv1.Role_ROLE_ADMIN {
			others, err := ch.OtherAdmins(o.GetName(), ch.Now())
			if err != nil {
				return err
			}
			if others == 0 {
				return notNow("name", "LAST_ADMIN", "operator %s is the last administrator: add another one first", o.GetName())
			}
		}
		o.RevokedAt = timestamppb.New(ch.Now())
		if err := ch.SaveOperator(o); err != nil {
			return err
		}
		return ch.KeepCertificate(o.GetName(), nil)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.RevokeOperatorResponse{Operator: o}), nil
}

// RenewCertificate implements bloomery.v1.AccessService. The certificate that asks stays good until it ends: its client may fail to
// keep the new one. Older ones are dropped.
func (c *Coordinator) RenewCertificate(ctx context.Context, r *connect.Request[bloomeryv1.RenewCertificateRequest]) (*connect.Response[bloomeryv1.RenewCertificateResponse], error) {
	who := callerOf(ctx)
	signed, err := c.signOperator(r.Msg.GetCsr(), who.Name)
	if err != nil {
		return nil, err
	}
	present := sha256.Sum256(who.Certificate)
	err = c.update(ctx, func(ch *change) error {
		o, err := ch.OperatorByCertificate(present[:])
		if err != nil {
			return err
		}
		if err := ch.KeepCertificate(o.GetName(), present[:]); err != nil {
			return err
		}
		after := &bloomeryv1.Operator{Name: o.GetName(), NotAfter: timestamppb.New(signed.record.NotAfter)}
		ch.changed("operator "+o.GetName(), &bloomeryv1.Operator{Name: o.GetName(), NotAfter: o.GetNotAfter()}, after)
		return ch.AddCertificate(signed.record)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.RenewCertificateResponse{Certificates: signed.chain, Authorities: c.Authority.Roots()}), nil
}

// AddToken implements bloomery.v1.AccessService.
func (c *Coordinator) AddToken(ctx context.Context, r *connect.Request[bloomeryv1.AddTokenRequest]) (*connect.Response[bloomeryv1.AddTokenResponse], error) {
	in := r.Msg.GetToken()
	if err := pki.ValidName(in.GetName()); err != nil {
		return nil, invalid("token.name", "NAME_INVALID", "%v", err)
	}
	if err := checkRole("token", in.GetRole(), in.GetTeams()); err != nil {
		return nil, err
	}
	now := c.config.Now()
	expires := now.Add(defaultToken)
	if in.GetExpiresAt() != nil {
		expires = in.GetExpiresAt().AsTime()
	}
	if !expires.After(now) || expires.After(now.Add(longestToken)) {
		return nil, invalid("token.expires_at", "OUT_OF_RANGE", "want a time within the next 366 days")
	}
	raw := make([]byte, tokenBytes)
	if _, err := rand.Read(raw); err != nil {
		return nil, fmt.Errorf("make a token: %w", err)
	}
	secret := tokenPrefix + base64.RawURLEncoding.EncodeToString(raw)
	token := &bloomeryv1.Token{Name: in.GetName(), Role: in.GetRole(), Teams: in.GetTeams(), CreatedBy: callerOf(ctx).Name, ExpiresAt: timestamppb.New(expires.Truncate(time.Second))}
	err := c.update(ctx, func(ch *change) error {
		had, err := ch.Token(token.GetName())
		if err == nil && had.GetRevokedAt() == nil && had.GetExpiresAt().AsTime().After(ch.Now()) {
			return fmt.Errorf("token %s: %w; revoke it first", token.GetName(), store.ErrExists)
		}
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		token.CreatedAt = timestamppb.New(ch.Now())
		ch.topics["access"] = true
		ch.changed("token "+token.GetName(), had, token)
		return ch.SaveToken(token, hashToken(secret))
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.AddTokenResponse{Token: token, Secret: secret}), nil
}

// ListTokens implements bloomery.v1.AccessService.
func (c *Coordinator) ListTokens(ctx context.Context, _ *connect.Request[bloomeryv1.ListTokensRequest]) (*connect.Response[bloomeryv1.ListTokensResponse], error) {
	response := &bloomeryv1.ListTokensResponse{}
	err := c.Store.View(ctx, func(s *store.Reader) (err error) {
		response.Tokens, err = s.Tokens()
		return err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}

// RevokeToken implements bloomery.v1.AccessService.
func (c *Coordinator) RevokeToken(ctx context.Context, r *connect.Request[bloomeryv1.RevokeTokenRequest]) (*connect.Response[bloomeryv1.RevokeTokenResponse], error) {
	var token *bloomeryv1.Token
	err := c.update(ctx, func(ch *change) (err error) {
		if token, err = ch.Token(clip(r.Msg.GetName())); err != nil {
			return fmt.Errorf("%s: %w", clip(r.Msg.GetName()), err)
		}
		if token.GetRevokedAt() != nil {
			return notNow("name", "REVOKED", "token %s is revoked already", token.GetName())
		}
		ch.topics["access"] = true
		ch.changed("token "+token.GetName(), &bloomeryv1.Token{}, &bloomeryv1.Token{RevokedAt: timestamppb.New(ch.Now())})
		return ch.Tx.RevokeToken(token)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.RevokeTokenResponse{Token: token}), nil
}
