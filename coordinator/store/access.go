package store

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// SaveOperator stores an operator in place of any of that name.
func (t *Tx) SaveOperator(o *bloomeryv1.Operator) error {
	body, err := protojson.Marshal(o)
	if err != nil {
		return fmt.Errorf("encode operator %s: %w", o.GetName(), err)
	}
	return t.exec("INSERT INTO operators (name, role, revoked, body) VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET role = excluded.role, revoked = excluded.revoked, body = excluded.body",
		o.GetName(), int64(o.GetRole()), stamp(o.GetRevokedAt()), body)
}

const operatorColumns = "o.body, COALESCE((SELECT MAX(c.not_after) FROM operator_certificates c WHERE c.operator = o.name), 0)"

// Operator reads one operator.
func (r *Reader) Operator(name string) (*bloomeryv1.Operator, error) {
	return r.operator("SELECT "+operatorColumns+" FROM operators o WHERE o.name = ?", name)
}

// OperatorByCertificate reads the operator who has a certificate, by its SHA-256; ErrNotFound when none has.
func (r *Reader) OperatorByCertificate(fingerprint []byte) (*bloomeryv1.Operator, error) {
	return r.operator("SELECT "+operatorColumns+" FROM operators o JOIN operator_certificates k ON k.operator = o.name WHERE k.fingerprint = ?", fingerprint)
}

func (r *Reader) operator(query string, key any) (*bloomeryv1.Operator, error) {
	o, err := scanOperator(r.q.QueryRowContext(r.ctx, query, key).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("operator: %w", ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read an operator: %w", err)
	}
	return o, nil
}

func scanOperator(scan func(...any) error) (*bloomeryv1.Operator, error) {
	var body []byte
	var notAfter int64
	if err := scan(&body, &notAfter); err != nil {
		return nil, err
	}
	o := &bloomeryv1.Operator{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, o); err != nil {
		return nil, fmt.Errorf("decode an operator: %w", err)
	}
	o.NotAfter = timestamp(notAfter)
	return o, nil
}

// Operators reads all operators, revoked ones too, sorted by name.
func (r *Reader) Operators() ([]*bloomeryv1.Operator, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT "+operatorColumns+" FROM operators o ORDER BY o.name")
	if err != nil {
		return nil, fmt.Errorf("read operators: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (*bloomeryv1.Operator, error) { return scanOperator(rows.Scan) })
}

// Certificate is an operator's certificate on record.
type Certificate struct {
	Fingerprint []byte
	Operator    string
	// Authority is the fingerprint of the root that it was signed by.
	Authority string
	NotAfter  time.Time
}

// AddCertificate puts an operator's certificate on record; only those on record open anything.
func (t *Tx) AddCertificate(c Certificate) error {
	return t.exec("INSERT INTO operator_certificates (fingerprint, operator, authority, created, not_after) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
		c.Fingerprint, c.Operator, c.Authority, nanos(t.now), nanos(c.NotAfter))
}

// KeepCertificate drops all of an operator's certificates but one; nil drops all.
func (t *Tx) KeepCertificate(operator string, fingerprint []byte) error {
	if fingerprint == nil {
		return t.exec("DELETE FROM operator_certificates WHERE operator = ?", operator)
	}
	return t.exec("DELETE FROM operator_certificates WHERE operator = ? AND fingerprint <> ?", operator, fingerprint)
}

// OtherAdmins counts the operators but one who can do everything now: administrators with a valid certificate.
func (r *Reader) OtherAdmins(but string, now time.Time) (n int, err error) {
	err = r.q.QueryRowContext(r.ctx, `SELECT COUNT(DISTINCT o.name) FROM operators o JOIN operator_certificates c ON c.operator = o.name
WHERE o.role = ? AND o.revoked = 0 AND c.not_after > ? AND o.name <> ?`, int64(bloomeryv1.Role_ROLE_ADMIN), nanos(now), but).Scan(&n)
	return n, err
}

// SaveToken stores a token in place of any of that name. hash is the SHA-256 of its secret; the secret itself is nowhere.
func (t *Tx) SaveToken(token *bloomeryv1.Token, hash []byte) error {
	body, err := protojson.Marshal(token)
	if err != nil {
		return fmt.Errorf("encode token %s: %w", token.GetName(), err)
	}
	return t.exec(`INSERT INTO tokens (name, hash, role, expires, revoked, used, body) VALUES (?, ?, ?, ?, ?, 0, ?)
ON CONFLICT (name) DO UPDATE SET hash = excluded.hash, role = excluded.role, expires = excluded.expires, revoked = excluded.revoked, used = excluded.used, body = excluded.body`,
		token.GetName(), hash, int64(token.GetRole()), stamp(token.GetExpiresAt()), stamp(token.GetRevokedAt()), body)
}

// RevokeToken ends a token that was read in this transaction.
func (t *Tx) RevokeToken(token *bloomeryv1.Token) error {
	token.RevokedAt = timestamppb.New(t.now)
	body, err := protojson.Marshal(token)
	if err != nil {
		return fmt.Errorf("encode token %s: %w", token.GetName(), err)
	}
	return t.exec("UPDATE tokens SET revoked = ?, body = ? WHERE name = ?", nanos(t.now), body, token.GetName())
}

// UseToken notes when a token was used last.
func (t *Tx) UseToken(name string, at time.Time) error {
	return t.exec("UPDATE tokens SET used = ? WHERE name = ?", nanos(at), name)
}

// Token reads one token.
func (r *Reader) Token(name string) (*bloomeryv1.Token, error) {
	return r.token("SELECT body, used FROM tokens WHERE name = ?", name)
}

// TokenByHash reads the token whose secret has a SHA-256; ErrNotFound when none has.
func (r *Reader) TokenByHash(hash []byte) (*bloomeryv1.Token, error) {
	return r.token("SELECT body, used FROM tokens WHERE hash = ?", hash)
}

func (r *Reader) token(query string, key any) (*bloomeryv1.Token, error) {
	token, err := scanToken(r.q.QueryRowContext(r.ctx, query, key).Scan)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("token: %w", ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("read a token: %w", err)
	}
	return token, nil
}

func scanToken(scan func(...any) error) (*bloomeryv1.Token, error) {
	var body []byte
	var used int64
	if err := scan(&body, &used); err != nil {
		return nil, err
	}
	token := &bloomeryv1.Token{}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, token); err != nil {
		return nil, fmt.Errorf("decode a token: %w", err)
	}
	token.UsedAt = timestamp(used)
	return token, nil
}

// Tokens reads all tokens, revoked ones too, sorted by name.
func (r *Reader) Tokens() ([]*bloomeryv1.Token, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT body, used FROM tokens ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("read tokens: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (*bloomeryv1.Token, error) { return scanToken(rows.Scan) })
}

// stamp is nanos for a message's time; none is 0.
func stamp(t *timestamppb.Timestamp) int64 {
	if t == nil {
		return 0
	}
	return nanos(t.AsTime())
}

func timestamp(n int64) *timestamppb.Timestamp {
	if n == 0 {
		return nil
	}
	return timestamppb.New(fromNanos(n))
}
