package store

import (
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"time"
)

// Errors of a replicated database.
var (
	// ErrNoMajority says that the database did not answer because no majority of its nodes works together.
	ErrNoMajority = errors.New("the rack's coordinators have no majority")
	// ErrUnsure comes with ErrNoMajority when a change may have been made and may be made later.
	ErrUnsure = errors.New("whether the change was made is not known")
	// ErrRemoved says that this node is no longer one of the database's.
	ErrRemoved = errors.New("this coordinator was removed from the rack")
)

// Cluster says how the nodes of the database reach each other.
type Cluster struct {
	// Address is this node's, IP:port; it listens there, and the others dial it there.
	Address string
	// Join names nodes that are there already, for the first start of a node that joins them.
	Join []string
	// Server and Client are asked for each connection, so that certificates can change under way.
	Server, Client func() *tls.Config
	// Admit says why the other end of an accepted connection may not be a node.
	Admit func(tls.ConnectionState) error
}

// Role is a node's part in the replication.
type Role uint8

// The roles: a voter counts for the majority, a standby has the data only, a spare has nothing.
const (
	RoleVoter Role = iota
	RoleStandby
	RoleSpare
)

func (r Role) String() string {
	switch r {
	case RoleVoter:
		return "voter"
	case RoleStandby:
		return "standby"
	}
	return "spare"
}

// Member is a node of the replicated database, as the replicated log has it.
type Member struct {
	ID      uint64
	Address string
	Role    Role
}

// engine is the database node of this process.
type engine interface {
	pools() (write, read *sql.DB)
	// ready is closed once the node is a member and knows the leader; failed gives an error that ends the node.
	ready() <-chan struct{}
	failed() <-chan error
	// leader is the address of the leader that this node knows, empty without one, and since when.
	leader() (address string, since time.Time, changes int64)
	address() string
	// members asks the leader, or says what this node saw last and that it is that.
	members(ctx context.Context) (all []Member, current bool, err error)
	probe(ctx context.Context, address string) error
	remove(ctx context.Context, address string) error
	transfer(ctx context.Context) error
	// recheck ends connections of nodes that are not admitted any more.
	recheck()
	// hangUp ends the connections of all that use the database, those of this process too, and with them their transactions.
	hangUp()
	// isolate ends all connections for good, those of the replication too.
	isolate()
	// tidy is what the leader asks for the addresses that may stay members; nil removes none.
	tidy(keep func(context.Context) (map[string]bool, error))
	close() error
}

// Address is this node's in the replicated database.
func (s *Store) Address() string { return s.node.address() }

// Leader is the address of the leading node that this one knows; empty without one.
func (s *Store) Leader() string {
	address, _, _ := s.node.leader()
	return address
}

// Leading says whether this node leads.
func (s *Store) Leading() bool { return s.Leader() == s.Address() }

// LeaderChanges counts how often this node has seen another leader than before.
func (s *Store) LeaderChanges() int64 {
	_, _, changes := s.node.leader()
	return changes
}

// Members lists the nodes; current is false when no leader could be asked and they are what this node saw last.
func (s *Store) Members(ctx context.Context) (all []Member, current bool, err error) {
	return s.node.members(ctx)
}

// Probe says whether the node at an address answers.
func (s *Store) Probe(ctx context.Context, address string) error { return s.node.probe(ctx, address) }

// RemoveMember takes a node out of the replication; one that is not there is no error.
func (s *Store) RemoveMember(ctx context.Context, address string) error {
	return s.node.remove(ctx, address)
}

// Recheck ends connections of nodes that Cluster.Admit does not admit any more.
func (s *Store) Recheck() { s.node.recheck() }

// Wait returns when the context ends, which is no error, or when this node cannot go on: it was removed, or its program is too old.
func (s *Store) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-s.lost:
		return err
	}
}
