package coordinator

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"

	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

// importOperators puts the operators whose certificates lie in the PKI folder on record as administrators, while no administrator
// has a valid certificate: at a rack's first start, after the upgrade of a rack that had no roles, and when all were lost.
// One that was revoked stays so.
func (c *Coordinator) importOperators(ctx context.Context) error {
	found, err := pki.ReadOperators(c.config.PKI)
	if err != nil {
		return fmt.Errorf("look for operators' certificates: %w", err)
	}
	admins := 0
	err = c.update(ctx, func(ch *change) (err error) {
		if admins, err = ch.OtherAdmins("", ch.Now()); err != nil || admins > 0 {
			return err
		}
		for _, cert := range found {
			added, err := c.importOperator(ch, cert)
			if err != nil {
				return err
			}
			if added {
				admins++
			}
		}
		return nil
	})
	if err == nil && admins == 0 {
		c.Logger.Warn("this rack has no administrator: put operator-NAME.crt, signed by the rack's CA, into the PKI folder and restart", "pki", c.config.PKI)
	}
	return err
}

func (c *Coordinator) importOperator(ch *change, cert *x509.Certificate) (bool, error) {
	authority, ok := c.Authority.Issued(cert)
	name := cert.Subject.CommonName
	if !ok || !cert.NotAfter.After(ch.Now()) {
		c.Logger.Warn("an operator's certificate in the PKI folder is not of this rack or has expired", "operator", name)
		return false, nil
	}
	o, err := ch.Operator(name)
	switch {
	case err == nil && o.GetRevokedAt() != nil:
		return false, nil
	case errors.Is(err, store.ErrNotFound):
		o = &bloomeryv1.Operator{Name: name, CreatedAt: timestamppb.New(ch.Now()), CreatedBy: "coordinator"}
	case err != nil:
		return false, err
	}
	o.Role = bloomeryv1.Role_ROLE_ADMIN
	if err := ch.SaveOperator(o); err != nil {
		return false, err
	}
	fingerprint := sha256.Sum256(cert.Raw)
	if err := ch.AddCertificate(store.Certificate{Fingerprint: fingerprint[:], Operator: name, Authority: authority, NotAfter: cert.NotAfter}); err != nil {
		return false, err
	}
	return true, ch.note(&bloomeryv1.Event{Type: "access.operator_imported", Severity: bloomeryv1.Severity_SEVERITY_WARNING,
		Message: fmt.Sprintf("operator %s was put on record as an administrator, by the certificate in the PKI folder", name)}, map[string]any{"operator": name})
}
