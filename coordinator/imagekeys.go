package coordinator

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/images"
)

const (
	// maxImageKeys bounds the keys that are trusted at a time: an agent takes no more with a step.
	maxImageKeys = 32
	// maxKeyFile is more than a minisign public key file has, in bytes.
	maxKeyFile = 4 << 10
)

// keepImageKeys makes the image store go by the keys of the database whenever another coordinator changes them, until the context ends.
func (c *Coordinator) keepImageKeys(ctx context.Context) error {
	wake, done := c.hub.subscribe("image keys")
	defer done()
	for {
		if _, err := c.loadImageKeys(ctx); err != nil && ctx.Err() == nil {
			c.Logger.Warn("read the keys that images are trusted by", "error", err)
		}
		every := max(c.config.Timing.Images, shortestPause)
		timer := time.NewTimer(every/2 + rand.N(every))
		select {
		case <-ctx.Done():
		case <-wake:
		case <-timer.C:
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
	}
}

// loadImageKeys makes the image store go by the keys of the database. The keys that it was opened with, those of the PKI folder, go there when it
// has none. It returns the ids of those that were revoked.
func (c *Coordinator) loadImageKeys(ctx context.Context) (map[string]bool, error) {
	c.imageKeys.Lock() // no older list may come after a newer one
	defer c.imageKeys.Unlock()
	var rows []*bloomeryv1.ImageKey
	err := c.Store.View(ctx, func(r *store.Reader) (err error) { rows, err = r.ImageKeys(); return err })
	if err == nil && len(rows) == 0 {
		rows, err = c.importImageKeys(ctx)
	}
	if err != nil {
		return nil, err
	}
	var trusted, revoked []images.PublicKey
	for _, row := range rows {
		key, err := decodeImageKey(row)
		switch {
		case err != nil:
			return nil, err
		case row.GetRevokedAt() != nil:
			revoked = append(revoked, key)
		default:
			trusted = append(trusted, key)
		}
	}
	c.Images.SetKeys(trusted, revoked)
	return revokedKeys(rows), nil
}

func revokedKeys(rows []*bloomeryv1.ImageKey) map[string]bool {
	ids := map[string]bool{}
	for _, row := range rows {
		if row.GetRevokedAt() != nil {
			ids[row.GetId()] = true
		}
	}
	return ids
}

func decodeImageKey(row *bloomeryv1.ImageKey) (images.PublicKey, error) {
	var key images.PublicKey
	if err := key.UnmarshalText([]byte(row.GetPublicKey())); err != nil {
		return key, fmt.Errorf("key %s of images: %w", row.GetId(), err)
	}
	return key, nil
}

func (c *Coordinator) importImageKeys(ctx context.Context) (rows []*bloomeryv1.ImageKey, err error) {
	err = c.update(ctx, func(ch *change) error {
		if rows, err = ch.ImageKeys(); err != nil || len(rows) > 0 {
			return err // another coordinator was quicker
		}
		for _, key := range c.Images.Keys() {
			row := &bloomeryv1.ImageKey{Id: images.KeyID(key), PublicKey: key.String(), AddedAt: timestamppb.New(ch.Now()), AddedBy: c.config.Node}
			if err := ch.AddImageKey(row); err != nil {
				return err
			}
			rows = append(rows, row)
			if err := ch.noteImageKey("image.key_added", fmt.Sprintf("images may be signed by key %s, which was in the PKI folder of coordinator %s", row.GetId(), c.config.Node), row); err != nil {
				return err
			}
		}
		return nil
	})
	return rows, err
}

func (ch *change) noteImageKey(kind, message string, k *bloomeryv1.ImageKey) error {
	return ch.note(&bloomeryv1.Event{Type: kind, Severity: bloomeryv1.Severity_SEVERITY_WARNING, Message: message}, map[string]any{"key": k.GetId()})
}

// refuseRevoked says why an image cannot be used whose key was revoked.
func (v imageView) refuseRevoked(field string, image store.CatalogueImage) error {
	if !v.revoked[image.GetKeyId()] {
		return nil
	}
	return notNow(field, keyRevoked, "image %s is signed by key %s, which was revoked: sign it with a trusted key and add it again, or remove it", image.GetName(), image.GetKeyId())
}

// giveImageKeys sends the keys that are trusted now along with a step that puts an image onto a machine. The stored step stays without them.
func (ch *change) giveImageKeys(response *bloomeryv1.NextStepResponse) error {
	if imageOf(response.GetStep()) == "" {
		return nil
	}
	rows, err := ch.ImageKeys()
	if err != nil {
		return err
	}
	var keys []string
	for _, row := range rows {
		if row.GetRevokedAt() == nil {
			keys = append(keys, row.GetPublicKey())
		}
	}
	step := proto.CloneOf(response.GetStep())
	switch spec := step.GetSpec().(type) {
	case *bloomeryv1.Step_WriteImage:
		spec.WriteImage.ImageKeys = keys
	case *bloomeryv1.Step_UnpackImage:
		spec.UnpackImage.ImageKeys = keys
	}
	response.Step = step
	return nil
}

// ListImageKeys implements bloomery.v1.ImageService.
func (c *Coordinator) ListImageKeys(ctx context.Context, _ *connect.Request[bloomeryv1.ListImageKeysRequest]) (*connect.Response[bloomeryv1.ListImageKeysResponse], error) {
	if _, err := c.loadImageKeys(ctx); err != nil {
		return nil, err
	}
	response := &bloomeryv1.ListImageKeysResponse{}
	err := c.Store.View(ctx, func(r *store.Reader) (err error) { response.Keys, err = r.ImageKeys(); return err })
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(response), nil
}

// AddImageKey implements bloomery.v1.ImageService.
func (c *Coordinator) AddImageKey(ctx context.Context, r *connect.Request[bloomeryv1.AddImageKeyRequest]) (*connect.Response[bloomeryv1.AddImageKeyResponse], error) {
	var key images.PublicKey
	if text := r.Msg.GetPublicKey(); len(text) > maxKeyFile {
		return nil, invalid("public_key", "TOO_LONG", "%d bytes are more than %d", len(text), maxKeyFile)
	} else if err := key.UnmarshalText([]byte(text)); err != nil {
		return nil, invalid("public_key", "KEY_INVALID", "want a minisign public key: %v", err)
	}
	if _, err := c.loadImageKeys(ctx); err != nil { // the first key is on record before the second
		return nil, err
	}
	k := &bloomeryv1.ImageKey{Id: images.KeyID(key), PublicKey: key.String(), AddedBy: callerOf(ctx).Name}
	err := c.update(ctx, func(ch *change) error {
		rows, err := ch.ImageKeys()
		if err != nil {
			return err
		}
		if err := mayAddKey(rows, k); err != nil {
			return err
		}
		k.AddedAt = timestamppb.New(ch.Now())
		if err := ch.AddImageKey(k); err != nil {
			return err
		}
		return ch.noteImageKey("image.key_added", fmt.Sprintf("images may be signed by key %s, which %s has added", k.GetId(), k.GetAddedBy()), k)
	})
	if err != nil {
		return nil, err
	}
	if _, err := c.loadImageKeys(ctx); err != nil {
		return nil, err
	}
	return connect.NewResponse(&bloomeryv1.AddImageKeyResponse{Key: k}), nil
}

// mayAddKey refuses a key that is on record already, be it under another id: minisign's ids are chosen, not computed.
func mayAddKey(rows []*bloomeryv1.ImageKey, k *bloomeryv1.ImageKey) error {
	added, err := keyBytes(k)
	if err != nil {
		return err
	}
	trusted := 0
	for _, row := range rows {
		known, err := keyBytes(row)
		if err != nil {
			return err
		}
		switch same := row.GetId() == k.GetId() || known == added; {
		case same && row.GetRevokedAt() != nil:
			return notNow("public_key", keyRevoked, "key %s was revoked by %s: make a new one", row.GetId(), row.GetRevokedBy())
		case same:
			return connect.NewError(connect.CodeAlreadyExists, fmt.Errorf("key %s is on record already", row.GetId()))
		case row.GetRevokedAt() == nil:
			trusted++
		}
	}
	if trusted >= maxImageKeys {
		return notNow("public_key", "TOO_MANY", "%d keys are trusted already: revoke one first", trusted)
	}
	return nil
}

// RevokeImageKey implements bloomery.v1.ImageService.
func (c *Coordinator) RevokeImageKey(ctx context.Context, r *connect.Request[bloomeryv1.RevokeImageKeyRequest]) (*connect.Response[bloomeryv1.RevokeImageKeyResponse], error) {
	id := strings.ToUpper(clip(r.Msg.GetId()))
	if _, err := c.loadImageKeys(ctx); err != nil {
		return nil, err
	}
	var k *bloomeryv1.ImageKey
	err := c.update(ctx, func(ch *change) error {
		rows, err := ch.ImageKeys()
		if err != nil {
			return err
		}
		before, err := mayRevokeKey(rows, id)
		if err != nil {
			return err
		}
		k = proto.CloneOf(before)
		k.RevokedAt, k.RevokedBy = timestamppb.New(ch.Now()), callerOf(ctx).Name
		if err := ch.RevokeImageKey(before, k); err != nil {
			return err
		}
		return ch.noteImageKey("image.key_revoked", fmt.Sprintf("key %s of images was revoked by %s", id, k.GetRevokedBy()), k)
	})
	if err != nil {
		return nil, err
	}
	if _, err := c.loadImageKeys(ctx); err != nil {
		return nil, fmt.Errorf("key %s is revoked, but this coordinator could not read the keys again: %w", id, err)
	}
	return connect.NewResponse(&bloomeryv1.RevokeImageKeyResponse{Key: k}), nil
}

// mayRevokeKey finds a trusted key that is not the last one.
func mayRevokeKey(rows []*bloomeryv1.ImageKey, id string) (*bloomeryv1.ImageKey, error) {
	var found *bloomeryv1.ImageKey
	others := 0
	for _, row := range rows {
		switch {
		case row.GetId() == id:
			found = row
		case row.GetRevokedAt() == nil:
			others++
		}
	}
	switch {
	case found == nil:
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("key %s of images: %w", id, store.ErrNotFound))
	case found.GetRevokedAt() != nil:
		return nil, notNow("id", keyRevoked, "key %s is revoked already", id)
	case others == 0:
		return nil, notNow("id", "LAST_KEY", "key %s is the last one that images can be signed by: add another one first", id)
	}
	return found, nil
}

// keyBytes are a key without the id in front of it.
func keyBytes(k *bloomeryv1.ImageKey) (string, error) {
	raw, err := base64.StdEncoding.DecodeString(k.GetPublicKey())
	if err != nil || len(raw) < ed25519.PublicKeySize {
		return "", errors.Join(fmt.Errorf("key %s of images cannot be read", k.GetId()), err)
	}
	return string(raw[len(raw)-ed25519.PublicKeySize:]), nil
}
