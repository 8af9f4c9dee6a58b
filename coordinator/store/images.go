package store

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// CatalogueImage is an image as the rack knows it, wherever its data lie.
type CatalogueImage struct {
	// Image describes it; Copies and Missing are not set.
	*bloomeryv1.Image
	// Origin is the coordinator that had it first.
	Origin string
	// Removed is zero while the rack has the image. One that was removed stays as a note for coordinators that were away.
	Removed time.Time
}

// ImageCopy says that a coordinator held an image with that manifest, whole, when it last looked.
type ImageCopy struct {
	Name, ManifestSHA256, Node string
	Verified                   time.Time
}

// CatalogueImages lists the rack's images by name, those that were removed too.
func (r *Reader) CatalogueImages() ([]CatalogueImage, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT origin, removed, body FROM images ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("read the images: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (CatalogueImage, error) { return scanImage(rows) })
}

// CatalogueImage finds an image, also one that was removed; ErrNotFound when the rack never had it.
func (r *Reader) CatalogueImage(name string) (CatalogueImage, error) {
	image, err := scanImage(r.q.QueryRowContext(r.ctx, "SELECT origin, removed, body FROM images WHERE name = ?", name))
	if errors.Is(err, sql.ErrNoRows) {
		return CatalogueImage{}, fmt.Errorf("image %s: %w", name, ErrNotFound)
	}
	return image, err
}

func scanImage(row interface{ Scan(...any) error }) (CatalogueImage, error) {
	c := CatalogueImage{Image: &bloomeryv1.Image{}}
	var removed int64
	var body []byte
	if err := row.Scan(&c.Origin, &removed, &body); err != nil {
		return c, err
	}
	c.Removed = fromNanos(removed)
	if err := protojson.Unmarshal(body, c.Image); err != nil {
		return c, fmt.Errorf("decode an image: %w", err)
	}
	return c, nil
}

// SaveCatalogueImage adds an image to the rack, or replaces the one of its name.
func (t *Tx) SaveCatalogueImage(image *bloomeryv1.Image, origin string) error {
	body, err := protojson.Marshal(image)
	if err != nil {
		return fmt.Errorf("encode image %s: %w", image.GetName(), err)
	}
	return t.exec(`INSERT INTO images (name, manifest_sha256, origin, added, removed, key_id, body) VALUES (?, ?, ?, ?, 0, ?, ?)
ON CONFLICT (name) DO UPDATE SET manifest_sha256 = excluded.manifest_sha256, origin = excluded.origin, added = excluded.added, removed = 0, key_id = excluded.key_id, body = excluded.body`,
		image.GetName(), image.GetManifestSha256(), origin, nanos(t.now), image.GetKeyId(), body)
}

// RemoveCatalogueImage notes that the rack no longer has an image.
func (t *Tx) RemoveCatalogueImage(name string) error {
	return t.exec("UPDATE images SET removed = ? WHERE name = ?", nanos(t.now), name)
}

// ImageCopies lists the copies of all images that are what the catalogue says, by image and coordinator; of one coordinator unless node is empty.
func (r *Reader) ImageCopies(node string) ([]ImageCopy, error) {
	rows, err := r.q.QueryContext(r.ctx, `SELECT c.name, c.manifest_sha256, c.node, c.verified FROM image_copies c
JOIN images i ON i.name = c.name AND i.manifest_sha256 = c.manifest_sha256 AND i.removed = 0 WHERE ? = '' OR c.node = ? ORDER BY c.name, c.node`, node, node)
	if err != nil {
		return nil, fmt.Errorf("read the images' copies: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (ImageCopy, error) {
		var c ImageCopy
		var verified int64
		err := rows.Scan(&c.Name, &c.ManifestSHA256, &c.Node, &verified)
		c.Verified = fromNanos(verified)
		return c, err
	})
}

// SaveImageCopy notes that a coordinator holds an image whole.
func (t *Tx) SaveImageCopy(name, manifestSHA256, node string) error {
	return t.exec(`INSERT INTO image_copies (name, manifest_sha256, node, verified) VALUES (?, ?, ?, ?)
ON CONFLICT (name, node) DO UPDATE SET manifest_sha256 = excluded.manifest_sha256, verified = excluded.verified`, name, manifestSHA256, node, nanos(t.now))
}

// DropImageCopy notes that a coordinator does not hold an image, or holds it spoilt.
func (t *Tx) DropImageCopy(name, node string) error {
	return t.exec("DELETE FROM image_copies WHERE name = ? AND node = ?", name, node)
}

// DropImageCopies notes that a coordinator has left the rack with all that it held; all of them when node is empty.
func (t *Tx) DropImageCopies(node string) error {
	return t.exec("DELETE FROM image_copies WHERE ? = '' OR node = ?", node, node)
}

// ImagesMissing counts the rack's images that a coordinator has no copy of. Those that a revoked key has signed are not copied.
func (r *Reader) ImagesMissing(node string) (int, error) {
	var n int
	err := r.q.QueryRowContext(r.ctx, `SELECT COUNT(*) FROM images i WHERE i.removed = 0 AND i.key_id NOT IN (SELECT id FROM image_keys WHERE revoked <> 0) AND NOT EXISTS
(SELECT 1 FROM image_copies c WHERE c.name = i.name AND c.manifest_sha256 = i.manifest_sha256 AND c.node = ?)`, node).Scan(&n)
	if err != nil {
		return 0, fmt.Errorf("count the images that %s has no copy of: %w", node, err)
	}
	return n, nil
}
