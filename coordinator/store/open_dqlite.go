//go:build cgo

package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/canonical/go-dqlite/app"
	"github.com/canonical/go-dqlite/client"
)

// nodeAddress names the only node. A rack that grows gives each node a real address here, with app.WithTLS and app.WithCluster.
const nodeAddress = "coordinator-1"

// readers is how many reads may run beside each other.
const readers = 4

// openDatabase starts the dqlite node of this process and returns pools for writing and for reading, and what stops it all.
func openDatabase(ctx context.Context, dir string, log *slog.Logger) (write, read *sql.DB, stop func() error, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, nil, fmt.Errorf("make the database's directory: %w", err)
	}
	options, err := nodeOptions(log)
	if err != nil {
		return nil, nil, nil, err
	}
	node, err := app.New(filepath.Clean(dir), options...)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("start the database node: %w", err)
	}
	fail := func(err error) (*sql.DB, *sql.DB, func() error, error) {
		_ = node.Close()
		return nil, nil, nil, err
	}
	if err := node.Ready(ctx); err != nil {
		return fail(fmt.Errorf("wait for the database node: %w", err))
	}
	write, err = node.Open(ctx, "bloomery")
	if err != nil {
		return fail(fmt.Errorf("open the database: %w", err))
	}
	write.SetMaxOpenConns(1)
	read, err = node.Open(ctx, "bloomery")
	if err != nil {
		_ = write.Close()
		return fail(fmt.Errorf("open the database for reading: %w", err))
	}
	read.SetMaxOpenConns(readers)
	return write, read, node.Close, nil
}

// nodeOptions is the one place where the node's options stand.
// dqlite can only listen on TCP or on an abstract socket, and the latter has no owner or mode: its name
// is random so that two nodes on one host do not collide, but it is no secret, since /proc/net/unix lists it. Whoever runs programs in
// the coordinator's network namespace can reach the database: see docs/security.md.
func nodeOptions(log *slog.Logger) ([]app.Option, error) {
	suffix := make([]byte, 16)
	if _, err := rand.Read(suffix); err != nil {
		return nil, fmt.Errorf("name the database's socket: %w", err)
	}
	socket := "@bloomery-" + hex.EncodeToString(suffix)
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return []app.Option{
		app.WithAddress(nodeAddress),
		app.WithUnixSocket(socket),
		app.WithExternalConn(dial, make(chan net.Conn)),
		app.WithNetworkLatency(5 * time.Millisecond),
		app.WithLogFunc(func(level client.LogLevel, format string, a ...any) {
			if level >= client.LogWarn {
				log.Warn("dqlite: " + fmt.Sprintf(format, a...))
			}
		}),
	}, nil
}
