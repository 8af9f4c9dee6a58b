//go:build !cgo

package store

import (
	"context"
	"errors"
)

// startEngine refuses: dqlite is a C library. The package still compiles, so that its users can be checked without one.
func startEngine(context.Context, Options) (engine, error) {
	return nil, errors.New("built without cgo: the database is not there")
}

func forceMembers(nodeFiles, Member) error {
	return errors.New("built without cgo: the database is not there")
}
