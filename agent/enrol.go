package agent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"time"

	"connectrpc.com/connect"

	pb "bloomery/api/bloomery/v1"
)

const (
	minEnrolBackoff = 200 * time.Millisecond
	maxEnrolBackoff = 15 * time.Second
	// A machine that nobody expects asks seldom: each refusal is a security event at the coordinator.
	refusedBackoff = 30 * time.Second
)

// enroller gets the machine its certificate. The key never leaves memory.
type enroller struct {
	connection *connection
	identity   func(context.Context) (identity, error)
	bootID     string
	version    string
	say        func(format string, a ...any)
	// refused replaces refusedBackoff in tests.
	refused time.Duration
}

// enrol asks until a coordinator signs, and makes the connection use the certificate. It returns early only when ctx ends.
// All tries are for one key: a coordinator whose answer was lost has signed for it, and signs for no other.
func (e *enroller) enrol(ctx context.Context) (*pb.EnrolResponse, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	backoff := minEnrolBackoff
	for {
		response, err := e.try(ctx, key)
		if err == nil {
			return response, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		wait := backoff/2 + mathrand.N(backoff)
		if connect.CodeOf(err) == connect.CodePermissionDenied {
			wait = e.refused/2 + mathrand.N(e.refused)
			e.say("the coordinator refuses this machine (it is not expected to boot); asking again in %.0f s: %v", wait.Seconds(), err)
		} else {
			e.say("not enrolled, trying again in %.1f s: %v", wait.Seconds(), err)
		}
		if !sleep(ctx, wait) {
			return nil, ctx.Err()
		}
		backoff = min(2*backoff, maxEnrolBackoff)
	}
}

func (e *enroller) try(ctx context.Context, key *ecdsa.PrivateKey) (*pb.EnrolResponse, error) {
	id, err := e.identity(ctx)
	if err != nil {
		return nil, fmt.Errorf("find out who this machine is: %w", err)
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id.uuid}}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}
	response, err := e.connection.enrol(ctx, &pb.EnrolRequest{
		Uuid: id.uuid, ProductSerial: plain(id.serial), Macs: id.macs, Csr: csr, BootId: e.bootID, AgentVersion: e.version,
	})
	if err != nil {
		return nil, err
	}
	certificate, err := clientCertificate(response.Certificates, key)
	if err != nil {
		return nil, fmt.Errorf("certificate from the coordinator: %w", err)
	}
	e.connection.use(certificate)
	return response, nil
}

func clientCertificate(chain [][]byte, key *ecdsa.PrivateKey) (*tls.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("none came")
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, err
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("it is not for this machine's key")
	}
	return &tls.Certificate{Certificate: chain, PrivateKey: key, Leaf: leaf}, nil
}

// renew keeps the certificate fresh until ctx ends: each is replaced when two thirds of its life are over. The call shows the present one.
func (e *enroller) renew(ctx context.Context, notAfter time.Time) {
	for {
		if !sleep(ctx, max(time.Until(notAfter)*2/3, time.Second)) {
			return
		}
		response, err := e.enrol(ctx)
		if err != nil {
			return
		}
		notAfter = response.NotAfter.AsTime()
	}
}
