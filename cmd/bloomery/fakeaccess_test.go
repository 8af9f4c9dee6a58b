package main

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/internal/pki"
)

// fakeAccess keeps operators and tokens, and signs as a coordinator does.
type fakeAccess struct {
	bloomeryv1connect.UnimplementedAccessServiceHandler
	authority *pki.Authority

	accessMu  sync.Mutex
	operators []*bloomeryv1.Operator
	tokens    []*bloomeryv1.Token
	rotating  bool
}

const fakeSecret = "blm_0123456789012345678901234567890123456789012"

type fakeCaller struct{}

// asCaller tells handlers whether a call came with a certificate or a token.
func asCaller(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := ""
		if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			name = r.TLS.PeerCertificates[0].Subject.CommonName
		}
		if r.Header.Get("Authorization") == "Bearer "+fakeSecret {
			name = "token"
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), fakeCaller{}, name)))
	})
}

func (f *fakeAccess) WhoAmI(ctx context.Context, _ *connect.Request[bloomeryv1.WhoAmIRequest]) (*connect.Response[bloomeryv1.WhoAmIResponse], error) {
	name, _ := ctx.Value(fakeCaller{}).(string)
	if name == "" {
		return nil, connect.NewError(connect.CodeUnauthenticated, errors.New("nobody"))
	}
	return connect.NewResponse(&bloomeryv1.WhoAmIResponse{Name: name, Role: bloomeryv1.Role_ROLE_ADMIN, Teams: []string{"install"}, Token: name == "token",
		ExpiresAt: timestamppb.New(time.Date(2027, 1, 2, 0, 0, 0, 0, time.UTC)), Rack: f.authority.Rack()}), nil
}

func (f *fakeAccess) AddOperator(_ context.Context, r *connect.Request[bloomeryv1.AddOperatorRequest]) (*connect.Response[bloomeryv1.AddOperatorResponse], error) {
	o := proto.Clone(r.Msg.GetOperator()).(*bloomeryv1.Operator)
	f.accessMu.Lock()
	defer f.accessMu.Unlock()
	for _, had := range f.operators {
		if had.GetName() == o.GetName() {
			return nil, connect.NewError(connect.CodeAlreadyExists, errors.New("operator "+o.GetName()+": already exists"))
		}
	}
	chain, err := f.sign(r.Msg.GetCsr(), o.GetName())
	if err != nil {
		return nil, err
	}
	o.CreatedBy, o.NotAfter = "admin", timestamppb.New(time.Date(2028, 1, 2, 0, 0, 0, 0, time.UTC))
	f.operators = append(f.operators, o)
	return connect.NewResponse(&bloomeryv1.AddOperatorResponse{Operator: o, Certificates: chain, Authorities: f.authority.Roots()}), nil
}

func (f *fakeAccess) sign(der []byte, name string) ([][]byte, error) {
	csr, err := pki.ParseCSR(der)
	if err != nil {
		return nil, err
	}
	signed, err := f.authority.SignOperator(csr, name, time.Now())
	if err != nil {
		return nil, err
	}
	return signed.Chain, nil
}

func (f *fakeAccess) ListOperators(context.Context, *connect.Request[bloomeryv1.ListOperatorsRequest]) (*connect.Response[bloomeryv1.ListOperatorsResponse], error) {
	f.accessMu.Lock()
	defer f.accessMu.Unlock()
	return connect.NewResponse(&bloomeryv1.ListOperatorsResponse{Operators: f.operators}), nil
}

func (f *fakeAccess) RevokeOperator(_ context.Context, r *connect.Request[bloomeryv1.RevokeOperatorRequest]) (*connect.Response[bloomeryv1.RevokeOperatorResponse], error) {
	f.accessMu.Lock()
	defer f.accessMu.Unlock()
	for _, o := range f.operators {
		if o.GetName() == r.Msg.GetName() {
			o.RevokedAt = timestamppb.New(time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC))
			return connect.NewResponse(&bloomeryv1.RevokeOperatorResponse{Operator: o}), nil
		}
	}
	return nil, connect.NewError(connect.CodeNotFound, errors.New("operator: not found"))
}

func (f *fakeAccess) RenewCertificate(ctx context.Context, r *connect.Request[bloomeryv1.RenewCertificateRequest]) (*connect.Response[bloomeryv1.RenewCertificateResponse], error) {
	name, _ := ctx.Value(fakeCaller{}).(string)
	chain, err := f.sign(r.Msg.GetCsr(), name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.RenewCertificateResponse{Certificates: chain, Authorities: f.authority.Roots()}), nil
}

func (f *fakeAccess) AddToken(_ context.Context, r *connect.Request[bloomeryv1.AddTokenRequest]) (*connect.Response[bloomeryv1.AddTokenResponse], error) {
	token := proto.Clone(r.Msg.GetToken()).(*bloomeryv1.Token)
	if strings.Contains(token.GetName(), "bad") {
		return nil, fieldErrors("wrong", &bloomeryv1.FieldError{Field: "token.name", Reason: "NAME_INVALID", Message: "want another name"})
	}
	f.accessMu.Lock()
	defer f.accessMu.Unlock()
	token.CreatedBy = "admin"
	f.tokens = append(f.tokens, token)
	return connect.NewResponse(&bloomeryv1.AddTokenResponse{Token: token, Secret: fakeSecret}), nil
}

func (f *fakeAccess) ListTokens(context.Context, *connect.Request[bloomeryv1.ListTokensRequest]) (*connect.Response[bloomeryv1.ListTokensResponse], error) {
	f.accessMu.Lock()
	defer f.accessMu.Unlock()
	return connect.NewResponse(&bloomeryv1.ListTokensResponse{Tokens: f.tokens}), nil
}

func (f *fakeAccess) RevokeToken(_ context.Context, r *connect.Request[bloomeryv1.RevokeTokenRequest]) (*connect.Response[bloomeryv1.RevokeTokenResponse], error) {
	return connect.NewResponse(&bloomeryv1.RevokeTokenResponse{Token: &bloomeryv1.Token{Name: r.Msg.GetName()}}), nil
}

func (f *fakeCoordinator) GetAuthorities(context.Context, *connect.Request[bloomeryv1.GetAuthoritiesRequest]) (*connect.Response[bloomeryv1.GetAuthoritiesResponse], error) {
	return connect.NewResponse(&bloomeryv1.GetAuthoritiesResponse{Authorities: f.authorities()}), nil
}

func (f *fakeCoordinator) authorities() []*bloomeryv1.Authority {
	ca := f.authority.Trusted()[0]
	all := []*bloomeryv1.Authority{{Subject: ca.Root.Subject.String(), Fingerprint: ca.Fingerprint(), NotAfter: timestamppb.New(ca.Root.NotAfter), Active: !f.rotating}}
	if f.rotating {
		all = append(all, &bloomeryv1.Authority{Subject: "the new one", Fingerprint: "ffff", Active: true})
	}
	return all
}

func (f *fakeCoordinator) RotateCA(_ context.Context, r *connect.Request[bloomeryv1.RotateCARequest]) (*connect.Response[bloomeryv1.RotateCAResponse], error) {
	f.accessMu.Lock()
	defer f.accessMu.Unlock()
	if r.Msg.GetPhase() == bloomeryv1.RotateCARequest_PHASE_FINISH && !r.Msg.GetForce() {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("in use by operator admin"))
	}
	f.rotating = r.Msg.GetPhase() == bloomeryv1.RotateCARequest_PHASE_BEGIN
	return connect.NewResponse(&bloomeryv1.RotateCAResponse{Authorities: f.authorities()}), nil
}
