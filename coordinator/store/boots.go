package store

import (
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// Boot is the expectation that a machine boots the agent: one at a time, for one round of one job.
type Boot struct {
	Machine string
	JobID   string
	Round   int
	Created time.Time
	// Enrolled is zero until an agent has enrolled for this boot; Heard is its last call.
	Enrolled time.Time
	Heard    time.Time
	// BootID is the agent's own id of this boot. The hashes are SHA-256 of its public key and of its certificate.
	// After a renewal CertificateHash is that of the new certificate followed by that of the one that asked for it.
	BootID          string
	KeyHash         []byte
	CertificateHash []byte
	// Authority is the fingerprint of the root under which the certificate was signed.
	Authority string
}

// Open says that an agent may enrol for this boot: none has. Whoever drives the job ends a boot for which none comes.
func (b *Boot) Open() bool { return b != nil && b.Enrolled.IsZero() }

const bootColumns = "job_id, round, created, enrolled, heard, b.boot_id, key_hash, certificate_hash, authority"

// Boot reads what a machine is expected to boot; nil when nothing is.
func (r *Reader) Boot(machine string) (*Boot, error) {
	b := &Boot{Machine: machine}
	err := scanBoot(b, r.q.QueryRowContext(r.ctx, "SELECT "+bootColumns+" FROM boots b WHERE machine = ?", machine).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the boot of machine %s: %w", machine, err)
	}
	return b, nil
}

// scanBoot reads bootColumns.
func scanBoot(b *Boot, scan func(into ...any) error) error {
	var created, enrolled, heard int64
	if err := scan(&b.JobID, &b.Round, &created, &enrolled, &heard, &b.BootID, &b.KeyHash, &b.CertificateHash, &b.Authority); err != nil {
		return err
	}
	b.Created, b.Enrolled, b.Heard = fromNanos(created), fromNanos(enrolled), fromNanos(heard)
	return nil
}

// SaveBoot stores a machine's boot in place of any before.
func (t *Tx) SaveBoot(b *Boot) error {
	if err := t.DeleteBoot(b.Machine); err != nil {
		return err
	}
	return t.exec("INSERT INTO boots (machine, job_id, round, created, enrolled, heard, boot_id, key_hash, certificate_hash, authority) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
		b.Machine, b.JobID, b.Round, nanos(b.Created), nanos(b.Enrolled), nanos(b.Heard), b.BootID, b.KeyHash, b.CertificateHash, b.Authority)
}

// DeleteBoot ends the expectation that a machine boots the agent, and with it what its agent may do.
func (t *Tx) DeleteBoot(machine string) error {
	return t.exec("DELETE FROM boots WHERE machine = ?", machine)
}
