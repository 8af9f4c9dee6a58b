//go:build !cgo

package store

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
)

// openDatabase refuses: dqlite is a C library. The package still compiles, so that its users can be checked without one.
func openDatabase(context.Context, string, *slog.Logger) (write, read *sql.DB, stop func() error, err error) {
	return nil, nil, nil, errors.New("built without cgo: the database is not there")
}
