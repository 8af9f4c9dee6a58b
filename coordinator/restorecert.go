package coordinator

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

// certificate reads the restored keys, and gives the node a certificate of its own, for its own addresses too. It is not fresh, but the
// backup's, where the key of the rack's CA is kept elsewhere.
func (r *restore) certificate(ctx context.Context, db *store.Store) (fresh bool, err error) {
	authority, err := pki.LoadAuthority(r.keys)
	if err != nil {
		return false, fmt.Errorf("the backup's keys: %w", err)
	}
	if err := useStored(ctx, db, authority); err != nil {
		return false, fmt.Errorf("the backup's CAs: %w", err)
	}
	leaf, err := x509.ParseCertificate(authority.Server().Certificate[0])
	if err != nil {
		return false, fmt.Errorf("the backup's certificate: %w", err)
	}
	missing := missingAddresses(r.config, leaf)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return false, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return false, fmt.Errorf("make a certificate request: %w", err)
	}
	csr, err := pki.ParseCSR(der)
	if err != nil {
		return false, err
	}
	names := append(missing, leaf.DNSNames...)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	now := time.Now
	if r.config.Now != nil {
		now = r.config.Now
	}
	chain, _, err := authority.SignNode(csr, r.config.Node, names, now())
	switch {
	case errors.Is(err, pki.ErrNoRootKey):
		r.done.Unnamed = missing
		return false, nil
	case err != nil:
		return false, fmt.Errorf("make a certificate for this node's addresses: %w", err)
	}
	return true, pki.WritePair(filepath.Join(r.keys, pki.ServerCert), filepath.Join(r.keys, pki.ServerKey), chain, key)
}

// useStored makes an authority of files know the CAs of the database, if that has any.
func useStored(ctx context.Context, db *store.Store, authority *pki.Authority) error {
	var rows []store.Authority
	err := db.View(ctx, func(s *store.Reader) (err error) {
		rows, err = s.Authorities()
		return err
	})
	if err != nil || len(rows) == 0 {
		return err
	}
	var trusted []*pki.CA
	for _, row := range rows {
		ca, err := pki.UnmarshalCA(row.Secret)
		if err != nil {
			return err
		}
		trusted = append(trusted, ca)
	}
	return authority.Use(trusted)
}

// missingAddresses are those of a configuration at which others call its coordinator and that a certificate does not have.
func missingAddresses(config Config, leaf *x509.Certificate) []string {
	var own []netip.Addr
	for _, listen := range config.Listen.API {
		if ap, err := netip.ParseAddrPort(listen); err == nil { // a unix socket is no address
			own = append(own, ap.Addr())
		}
	}
	if config.Cluster.IsValid() {
		own = append(own, config.Cluster.Addr())
	}
	if config.Provisioning != nil {
		own = append(own, config.Provisioning.Address.Addr())
	}
	var missing []string
	for _, a := range own {
		a = a.Unmap().WithZone("")
		if a.IsUnspecified() || a.IsLoopback() || leaf.VerifyHostname(a.String()) == nil || slices.Contains(missing, a.String()) {
			continue
		}
		missing = append(missing, a.String())
	}
	return missing
}
