package store

import (
	"database/sql"
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// ImageKeys lists the keys that images were ever trusted by, in the order in which they were added.
func (r *Reader) ImageKeys() ([]*bloomeryv1.ImageKey, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT id, public_key, added, added_by, revoked, revoked_by FROM image_keys ORDER BY added, id")
	if err != nil {
		return nil, fmt.Errorf("read the keys of images: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (*bloomeryv1.ImageKey, error) {
		k := &bloomeryv1.ImageKey{}
		var added, revoked int64
		if err := rows.Scan(&k.Id, &k.PublicKey, &added, &k.AddedBy, &revoked, &k.RevokedBy); err != nil {
			return nil, err
		}
		k.AddedAt, k.RevokedAt = timestamp(added), timestamp(revoked)
		return k, nil
	})
}

// AddImageKey stores a new key.
func (t *Tx) AddImageKey(k *bloomeryv1.ImageKey) error {
	return t.exec("INSERT INTO image_keys (id, public_key, added, added_by, revoked, revoked_by) VALUES (?, ?, ?, ?, 0, '')",
		k.GetId(), k.GetPublicKey(), stamp(k.GetAddedAt()), k.GetAddedBy())
}

// RevokeImageKey stores who has revoked a key and when.
func (t *Tx) RevokeImageKey(k *bloomeryv1.ImageKey) error {
	return t.exec("UPDATE image_keys SET revoked = ?, revoked_by = ? WHERE id = ?", stamp(k.GetRevokedAt()), k.GetRevokedBy(), k.GetId())
}

// LabelCatalogueImage notes by which key an image is signed that was added before that was on record.
func (t *Tx) LabelCatalogueImage(image *bloomeryv1.Image) error {
	body, err := protojson.Marshal(image)
	if err != nil {
		return fmt.Errorf("encode image %s: %w", image.GetName(), err)
	}
	return t.exec("UPDATE images SET key_id = ?, body = ? WHERE name = ? AND manifest_sha256 = ?", image.GetKeyId(), body, image.GetName(), image.GetManifestSha256())
}
