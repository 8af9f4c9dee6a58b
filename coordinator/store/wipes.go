package store

import (
	"database/sql"
	"errors"
	"fmt"
)

// wipesKept is how many certificates of one disk are kept: the database is in memory. Older ones are in the hands of who exported them.
const wipesKept = 16

// Wipe is the record of a disk's wipe.
type Wipe struct {
	// Sequence rises from one to the next in the whole rack; it is given when the wipe is stored.
	Sequence int64
	// ID is the step's.
	ID, Machine         string
	Serial, WWN         string
	Level, Sanitization string
	Successful          bool
	// Document is the signed certificate, JSON.
	Document []byte
}

// AddWipe stores a wipe; one that is stored already stays as it is. The oldest of the disk's are dropped.
func (t *Tx) AddWipe(w Wipe) error {
	if err := t.exec(`INSERT INTO wipe_certificates (id, machine, serial, wwn, level, sanitization, successful, document) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO NOTHING`, w.ID, w.Machine, w.Serial, w.WWN, w.Level, w.Sanitization, w.Successful, w.Document); err != nil {
		return fmt.Errorf("store the certificate of wipe %s: %w", w.ID, err)
	}
	if err := t.exec(`DELETE FROM wipe_certificates WHERE serial = ? AND wwn = ? AND sequence NOT IN
		(SELECT sequence FROM wipe_certificates WHERE serial = ? AND wwn = ? ORDER BY sequence DESC LIMIT ?)`, w.Serial, w.WWN, w.Serial, w.WWN, wipesKept); err != nil {
		return fmt.Errorf("drop old certificates of disk %s: %w", w.Serial, err)
	}
	return nil
}

// Wipes reads a machine's wipes before a sequence number (0: all), newest first.
func (r *Reader) Wipes(machine string, before int64, limit int) (wipes []Wipe, err error) {
	if before == 0 {
		before = 1<<63 - 1
	}
	rows, err := r.q.QueryContext(r.ctx, `SELECT sequence, id, machine, serial, wwn, level, sanitization, successful, document FROM wipe_certificates
		WHERE machine = ? AND sequence < ? ORDER BY sequence DESC LIMIT ?`, machine, before, limit)
	if err != nil {
		return nil, fmt.Errorf("read the wipes of machine %s: %w", machine, err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	for rows.Next() {
		var w Wipe
		if err := rows.Scan(&w.Sequence, &w.ID, &w.Machine, &w.Serial, &w.WWN, &w.Level, &w.Sanitization, &w.Successful, &w.Document); err != nil {
			return nil, fmt.Errorf("read the wipes of machine %s: %w", machine, err)
		}
		wipes = append(wipes, w)
	}
	return wipes, rows.Err()
}

// LastWipe is the last one of a disk that was of another level than the given one; ErrNotFound if there is none. The document is left out.
func (r *Reader) LastWipe(serial, wwn, exceptLevel string) (Wipe, error) {
	var w Wipe
	err := r.q.QueryRowContext(r.ctx, `SELECT sequence, id, machine, serial, wwn, level, sanitization, successful FROM wipe_certificates
		WHERE serial = ? AND wwn = ? AND level <> ? ORDER BY sequence DESC LIMIT 1`, serial, wwn, exceptLevel).
		Scan(&w.Sequence, &w.ID, &w.Machine, &w.Serial, &w.WWN, &w.Level, &w.Sanitization, &w.Successful)
	if errors.Is(err, sql.ErrNoRows) {
		return w, fmt.Errorf("wipe of disk %s: %w", serial, ErrNotFound)
	}
	if err != nil {
		return w, fmt.Errorf("read the last wipe of disk %s: %w", serial, err)
	}
	return w, nil
}
