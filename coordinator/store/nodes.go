package store

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// Node is a coordinator that is or was one of the rack's.
type Node struct {
	Name string `json:"name"`
	// Address is where the others reach its database; empty once it was removed.
	Address string    `json:"address,omitempty"`
	Joined  time.Time `json:"joined"`
	// API are the https:// addresses of its API.
	API     []string `json:"api,omitempty"`
	Version string   `json:"version,omitempty"`
	// NotBefore is set when the name was another coordinator's before: certificates from before are that one's.
	NotBefore time.Time `json:"not_before,omitzero"`
	// Removed is when it was taken out of the rack; zero while it is in.
	Removed time.Time `json:"removed,omitzero"`
}

// Present says that the coordinator is in the rack.
func (n Node) Present() bool { return n.Removed.IsZero() }

// JoinToken lets one coordinator join.
type JoinToken struct {
	Hash             []byte
	Node, CreatedBy  string
	Created, Expires time.Time
	// UsedKey is the SHA-256 of the public key that it was used with; nil when it was not used.
	UsedKey []byte
}

// Nodes lists the coordinators by name, those that were removed too.
func (r *Reader) Nodes() ([]Node, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT body FROM nodes ORDER BY name")
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []Node
	for rows.Next() {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			return nil, err
		}
		var n Node
		if err := json.Unmarshal(body, &n); err != nil {
			return nil, fmt.Errorf("decode a coordinator's record: %w", err)
		}
		all = append(all, n)
	}
	return all, rows.Err()
}

// SaveNode stores a coordinator's record.
func (t *Tx) SaveNode(n Node) error {
	body, err := json.Marshal(n)
	if err != nil {
		return fmt.Errorf("encode the record of coordinator %s: %w", n.Name, err)
	}
	address := n.Address
	if !n.Present() {
		// The column is unique, and another coordinator may have the address now.
		address = "removed:" + n.Name
	}
	err = t.exec(`INSERT INTO nodes (name, address, joined, body) VALUES (?, ?, ?, ?)
		ON CONFLICT (name) DO UPDATE SET address = excluded.address, joined = excluded.joined, body = excluded.body`,
		n.Name, address, nanos(n.Joined), body)
	if isUnique(err) {
		return fmt.Errorf("a coordinator with the address %s: %w", n.Address, ErrExists)
	}
	return err
}

// RemoveNode notes that a coordinator has left the rack, with all that it held.
func (t *Tx) RemoveNode(n Node) error {
	n.Removed, n.Address = t.now, ""
	if err := t.SaveNode(n); err != nil {
		return err
	}
	for _, statement := range []string{"DELETE FROM node_certificates WHERE node = ?", "DELETE FROM archive_copies WHERE node = ?"} {
		if err := t.exec(statement, n.Name); err != nil {
			return fmt.Errorf("forget what coordinator %s held: %w", n.Name, err)
		}
	}
	return t.DropImageCopies(n.Name)
}

// JoinToken finds a token by its hash.
func (r *Reader) JoinToken(hash []byte) (JoinToken, error) {
	t := JoinToken{Hash: bytes.Clone(hash)}
	var created, expires int64
	err := r.q.QueryRowContext(r.ctx, "SELECT node, created, expires, created_by, used_key FROM join_tokens WHERE hash = ?", hash).
		Scan(&t.Node, &created, &expires, &t.CreatedBy, &t.UsedKey)
	if errors.Is(err, sql.ErrNoRows) {
		return t, fmt.Errorf("join token: %w", ErrNotFound)
	}
	t.Created, t.Expires = fromNanos(created), fromNanos(expires)
	return t, err
}

// CreateJoinToken stores a token. Earlier ones for the same coordinator, and those that have expired, are gone.
func (t *Tx) CreateJoinToken(j JoinToken) error {
	if err := t.exec("DELETE FROM join_tokens WHERE node = ? OR expires < ?", j.Node, nanos(t.now)); err != nil {
		return err
	}
	return t.exec("INSERT INTO join_tokens (hash, node, created, expires, created_by) VALUES (?, ?, ?, ?, ?)",
		j.Hash, j.Node, nanos(j.Created), nanos(j.Expires), j.CreatedBy)
}

// UseJoinToken notes the key that a token was used with.
func (t *Tx) UseJoinToken(hash, key []byte) error {
	return t.exec("UPDATE join_tokens SET used_key = ? WHERE hash = ?", key, hash)
}

// SchemaVersion is the version of the schema that this program makes.
func SchemaVersion() (int, error) {
	all, err := migrations()
	return len(all), err
}
