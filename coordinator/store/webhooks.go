package store

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// newestEvent is the highest sequence number that was given to an event, whether it is still there or not.
const newestEvent = "(SELECT COALESCE(MAX(seq), 0) FROM sqlite_sequence WHERE name = 'events')"

// NewestEvent returns the highest sequence number that was given to an event.
func (r *Reader) NewestEvent() (sequence int64, err error) {
	return sequence, r.q.QueryRowContext(r.ctx, "SELECT "+newestEvent).Scan(&sequence)
}

// CreateWebhook stores a new webhook and seals its secret.
func (t *Tx) CreateWebhook(w *bloomeryv1.Webhook, secret []byte) error {
	sealed, err := t.sealer.seal(string(secret), "webhook/"+w.GetName())
	if err != nil {
		return err
	}
	w.CreatedAt = timestamppb.New(t.now)
	body, err := protojson.Marshal(&bloomeryv1.Webhook{Url: w.GetUrl(), TypePrefixes: w.GetTypePrefixes(), CreatedAt: w.GetCreatedAt(), CreatedBy: w.GetCreatedBy()})
	if err != nil {
		return fmt.Errorf("encode webhook %s: %w", w.GetName(), err)
	}
	err = t.exec("INSERT INTO webhooks (name, secret, delivered, failures, next_try, last_error, body) VALUES (?, ?, ?, 0, 0, '', ?)", w.GetName(), sealed, w.GetDelivered(), body)
	if isUnique(err) {
		return fmt.Errorf("webhook %s: %w", w.GetName(), ErrExists)
	}
	return err
}

// Webhooks reads all webhooks by name, with how far each has come.
func (r *Reader) Webhooks() ([]*bloomeryv1.Webhook, error) { return r.webhooks("") }

// Webhook reads one webhook.
func (r *Reader) Webhook(name string) (*bloomeryv1.Webhook, error) {
	all, err := r.webhooks(name)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("webhook %s: %w", name, ErrNotFound)
	}
	return all[0], nil
}

func (r *Reader) webhooks(name string) ([]*bloomeryv1.Webhook, error) {
	rows, err := r.q.QueryContext(r.ctx, `SELECT name, delivered, failures, next_try, last_error, body, `+newestEvent+`,
(SELECT COUNT(*) FROM dead_letters d WHERE d.webhook = w.name) FROM webhooks w WHERE ? = '' OR name = ? ORDER BY name`, name, name)
	if err != nil {
		return nil, fmt.Errorf("read webhooks: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (*bloomeryv1.Webhook, error) {
		var name, lastError string
		var delivered, failures, nextTry, newest, dead int64
		var body []byte
		if err := rows.Scan(&name, &delivered, &failures, &nextTry, &lastError, &body, &newest, &dead); err != nil {
			return nil, err
		}
		w := &bloomeryv1.Webhook{}
		if err := protojson.Unmarshal(body, w); err != nil {
			return nil, fmt.Errorf("decode webhook %s: %w", name, err)
		}
		w.Name, w.Delivered, w.Failures, w.LastError, w.DeadLetters = name, delivered, int32(failures), lastError, dead
		w.Lag = max(0, newest-delivered)
		if nextTry > 0 {
			w.NextTryAt = timestamppb.New(fromNanos(nextTry))
		}
		return w, nil
	})
}

// WebhookSecret opens the key that a webhook's deliveries are signed with.
func (r *Reader) WebhookSecret(name string) ([]byte, error) {
	var sealed []byte
	err := r.q.QueryRowContext(r.ctx, "SELECT secret FROM webhooks WHERE name = ?", name).Scan(&sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, fmt.Errorf("webhook %s: %w", name, ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	secret, err := r.sealer.open(sealed, "webhook/"+name)
	if err != nil {
		return nil, fmt.Errorf("webhook %s: %w", name, err)
	}
	return []byte(secret), nil
}

// DeleteWebhook removes a webhook and its dead letters.
func (t *Tx) DeleteWebhook(name string) error {
	if _, err := t.Webhook(name); err != nil {
		return err
	}
	return errors.Join(t.exec("DELETE FROM dead_letters WHERE webhook = ?", name), t.exec("DELETE FROM webhooks WHERE name = ?", name))
}

// WebhookReached says that all events up to a sequence number were delivered or given up. The mark never goes back.
func (t *Tx) WebhookReached(name string, sequence int64) error {
	return t.exec("UPDATE webhooks SET delivered = ?, failures = 0, next_try = 0, last_error = '' WHERE name = ? AND delivered <= ?", sequence, name, sequence)
}

// WebhookFailed notes that the next delivery failed, how often in a row, and when it is tried again.
func (t *Tx) WebhookFailed(name string, failures int, next time.Time, why string) error {
	return t.exec("UPDATE webhooks SET failures = ?, next_try = ?, last_error = ? WHERE name = ?", failures, nanos(next), why, name)
}

// GiveUp puts an event on a webhook's list of dead letters.
func (t *Tx) GiveUp(name string, e *bloomeryv1.Event, tries int, why string) error {
	body, err := proto.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event %d: %w", e.GetSequence(), err)
	}
	return t.exec(`INSERT INTO dead_letters (webhook, sequence, tries, error, given_up, again, event) VALUES (?, ?, ?, ?, ?, 0, ?)
ON CONFLICT (webhook, sequence) DO UPDATE SET tries = tries + excluded.tries, error = excluded.error, given_up = excluded.given_up, again = 0`,
		name, e.GetSequence(), tries, why, nanos(t.now), body)
}

// DeadLetters reads what a webhook has given up after a sequence number, in order; those that are in line again only, if again is set.
func (r *Reader) DeadLetters(name string, after int64, again bool, limit int) ([]*bloomeryv1.DeadLetter, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT tries, error, given_up, event FROM dead_letters WHERE webhook = ? AND sequence > ? AND again >= ? ORDER BY sequence LIMIT ?", name, after, again, limit)
	if err != nil {
		return nil, fmt.Errorf("read dead letters: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (*bloomeryv1.DeadLetter, error) {
		d := &bloomeryv1.DeadLetter{Webhook: name, Event: &bloomeryv1.Event{}}
		var tries, givenUp int64
		var body []byte
		if err := rows.Scan(&tries, &d.Error, &givenUp, &body); err != nil {
			return nil, err
		}
		d.Tries, d.GivenUpAt = int32(tries), timestamppb.New(fromNanos(givenUp))
		return d, proto.Unmarshal(body, d.Event)
	})
}

// RetryDeadLetters puts what a webhook has given up in line again and says how many there are.
func (t *Tx) RetryDeadLetters(name string) (n int64, err error) {
	if err := t.q.QueryRowContext(t.ctx, "SELECT COUNT(*) FROM dead_letters WHERE webhook = ?", name).Scan(&n); err != nil {
		return 0, err
	}
	return n, t.exec("UPDATE dead_letters SET again = 1 WHERE webhook = ?", name)
}

// DeleteDeadLetter removes one that was delivered after all.
func (t *Tx) DeleteDeadLetter(name string, sequence int64) error {
	return t.exec("DELETE FROM dead_letters WHERE webhook = ? AND sequence = ?", name, sequence)
}
