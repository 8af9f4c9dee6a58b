package store

import (
	"context"
	"database/sql"
	"embed"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migration is one numbered step of the schema. Files are never changed once released; there is no way back.
type migration struct {
	version    int
	statements []string
}

func migrations() ([]migration, error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var all []migration
	for i, name := range names {
		number, _, _ := strings.Cut(strings.TrimPrefix(name, "migrations/"), "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			return nil, fmt.Errorf("migration %s: want number %04d", name, i+1)
		}
		text, err := migrationFiles.ReadFile(name)
		if err != nil {
			return nil, err
		}
		m := migration{version: version}
		for _, s := range strings.Split(string(text), ";\n") {
			if s = strings.TrimSpace(s); s != "" {
				m.statements = append(m.statements, s)
			}
		}
		all = append(all, m)
	}
	return all, nil
}

// migrate brings the schema up to a version, each migration in a transaction of its own; to the newest, also the rows that SQL cannot.
func migrate(ctx context.Context, db *sql.DB, upTo int) error {
	all, err := migrations()
	if err != nil {
		return err
	}
	if err := retry(ctx, func(ctx context.Context) error {
		_, err := db.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS schema_versions (version INTEGER PRIMARY KEY, applied INTEGER NOT NULL)")
		return err
	}); err != nil {
		return fmt.Errorf("prepare the schema: %w", err)
	}
	for _, m := range all[:upTo] {
		if err := retry(ctx, func(ctx context.Context) error { return apply(ctx, db, m) }); err != nil {
			return fmt.Errorf("migrate the schema to version %d: %w", m.version, err)
		}
	}
	if err := retry(ctx, func(ctx context.Context) error {
		var newest int
		if err := db.QueryRowContext(ctx, "SELECT MAX(version) FROM schema_versions").Scan(&newest); err != nil {
			return fmt.Errorf("read the schema's version: %w", err)
		}
		if newest > len(all) {
			return fmt.Errorf("the database has schema version %d, this program knows %d: use a newer bloomeryd", newest, len(all))
		}
		return nil
	}); err != nil {
		return err
	}
	if upTo < len(all) {
		return nil
	}
	return recodeMachines(ctx, db)
}

func apply(ctx context.Context, db *sql.DB, m migration) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	var n int
	if err := tx.QueryRowContext(ctx, "SELECT COUNT(*) FROM schema_versions WHERE version = ?", m.version).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return nil
	}
	for _, s := range m.statements {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return fmt.Errorf("%.40q: %w", s, err)
		}
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO schema_versions (version, applied) VALUES (?, ?)", m.version, time.Now().UnixNano()); err != nil {
		return err
	}
	return tx.Commit()
}
