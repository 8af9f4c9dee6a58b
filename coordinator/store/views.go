package store

import (
	"database/sql"
	"fmt"

	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// SaveView stores a view in place of any of that name.
func (t *Tx) SaveView(v *bloomeryv1.View) error {
	body, err := proto.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode view %s: %w", v.GetName(), err)
	}
	return t.exec("INSERT INTO views (name, body) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET body = excluded.body", v.GetName(), body)
}

// DeleteView removes a view; one that is not there is no error.
func (t *Tx) DeleteView(name string) error {
	return t.exec("DELETE FROM views WHERE name = ?", name)
}

// Views reads the saved views, sorted by name.
func (r *Reader) Views() ([]*bloomeryv1.View, error) {
	rows, err := r.q.QueryContext(r.ctx, "SELECT body FROM views ORDER BY name")
	if err != nil {
		return nil, fmt.Errorf("read views: %w", err)
	}
	return collect(rows, func(rows *sql.Rows) (*bloomeryv1.View, error) {
		var body []byte
		if err := rows.Scan(&body); err != nil {
			return nil, err
		}
		v := &bloomeryv1.View{}
		if err := proto.Unmarshal(body, v); err != nil {
			return nil, fmt.Errorf("decode a view: %w", err)
		}
		return v, nil
	})
}
