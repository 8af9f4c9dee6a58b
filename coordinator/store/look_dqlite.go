//go:build cgo

package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/canonical/go-dqlite/client"
)

// look joins the database if this node is new, learns its members, and as leader gives them their roles.
func (n *node) look(ctx context.Context) {
	for {
		every := lookEvery
		settled, err := n.lookOnce(ctx)
		if err != nil && ctx.Err() == nil {
			n.log.Debug("look at the database's members", "error", err)
		}
		if !settled {
			every = settleEvery
		}
		if errors.Is(err, ErrRemoved) {
			n.failedCh <- err
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}

func (n *node) lookOnce(ctx context.Context) (settled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, promoteTimeout)
	defer cancel()
	cli, err := n.findLeader(ctx)
	if err != nil {
		return false, err
	}
	defer func() { _ = cli.Close() }()
	short, done := context.WithTimeout(ctx, adminTimeout)
	defer done()
	all, err := membersAt(short, cli)
	if err != nil {
		return false, err
	}
	joining, err := n.files.has(joinFile)
	if err != nil {
		return false, err
	}
	self := slices.IndexFunc(all, func(m Member) bool { return m.ID == n.self.ID })
	switch {
	case self < 0 && joining:
		return false, n.join(short, cli, all)
	case self < 0:
		return false, ErrRemoved
	case joining:
		if err := os.Remove(n.files.path(joinFile)); err != nil {
			return false, err
		}
	}
	if err := n.learn(all); err != nil {
		return false, err
	}
	if leader, _, _ := n.leader(); leader != n.self.Address {
		return all[self].Role != RoleSpare, nil
	}
	removed, err := n.removeStrangers(ctx, cli, all)
	if removed || err != nil {
		return false, err
	}
	return n.giveRoles(ctx, cli, all)
}

// join asks the leader to take this node in.
func (n *node) join(ctx context.Context, cli *client.Client, all []Member) error {
	for _, m := range all {
		if m.Address == n.self.Address {
			return fmt.Errorf("join the database: another node has the address %s: remove it from the rack first", m.Address)
		}
	}
	if err := cli.Add(ctx, client.NodeInfo{ID: n.self.ID, Address: n.self.Address, Role: client.Spare}); err != nil {
		n.log.Warn("join the database", "error", err)
		return fmt.Errorf("join the database: %w", err)
	}
	n.log.Info("this node has joined the database", "address", n.self.Address)
	return nil
}

// learn remembers the members on disk, and that this node is one.
func (n *node) learn(all []Member) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !slices.Equal(all, n.known) {
		if err := n.files.writePeers(all); err != nil {
			return err
		}
		n.known = all
	}
	if !n.readied {
		n.readied = true
		close(n.readyCh)
	}
	return nil
}

// removeStrangers takes out members that are no coordinators of the rack any more: whoever removed them may have died before.
func (n *node) removeStrangers(ctx context.Context, cli *client.Client, all []Member) (bool, error) {
	n.mu.Lock()
	keep := n.keep
	n.mu.Unlock()
	if keep == nil || len(all) == 1 {
		return false, nil
	}
	addresses, err := keep(ctx)
	if err != nil || addresses == nil {
		return false, err
	}
	for _, m := range all {
		if addresses[m.Address] {
			continue
		}
		if m.ID == n.self.ID {
			if err := n.transfer(ctx); err != nil {
				return false, err
			}
			continue
		}
		short, cancel := context.WithTimeout(ctx, adminTimeout)
		defer cancel()
		if err := cli.Remove(short, m.ID); err != nil {
			return false, fmt.Errorf("remove %s from the database: %w", m.Address, err)
		}
		n.log.Info("a node that is no coordinator any more was removed from the database", "address", m.Address)
		return true, nil
	}
	return false, nil
}

// giveRoles makes the first change of roles that can be made.
func (n *node) giveRoles(ctx context.Context, cli *client.Client, all []Member) (settled bool, err error) {
	if settledRoles(all, n.self.Address) {
		return true, nil
	}
	alive := n.alive(ctx, all)
	changes := roleChanges(all, n.self.Address, func(a string) bool { return alive[a] })
	for _, c := range changes {
		if e := cli.Assign(ctx, c.member.ID, client.NodeRole(c.role)); e != nil {
			err = errors.Join(err, fmt.Errorf("make %s a %s: %w", c.member.Address, c.role, e))
			continue
		}
		n.log.Info("a database node has a new role", "address", c.member.Address, "role", c.role.String())
		return false, nil
	}
	return len(changes) == 0, err
}

// alive asks every member at once whether it answers.
func (n *node) alive(ctx context.Context, all []Member) map[string]bool {
	var mu sync.Mutex
	var wg sync.WaitGroup
	answered := map[string]bool{}
	for _, m := range all {
		wg.Go(func() {
			if n.probe(ctx, m.Address) == nil {
				mu.Lock()
				defer mu.Unlock()
				answered[m.Address] = true
			}
		})
	}
	wg.Wait()
	return answered
}
