//go:build cgo

package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/canonical/go-dqlite"
	"github.com/canonical/go-dqlite/client"
	"github.com/canonical/go-dqlite/driver"
)

const (
	// latency is what dqlite derives raft's times from: heartbeats every 1.5 times of it, an election after 15 times without one.
	latency = 15 * time.Millisecond
	// snapshotEvery is after how many entries the database is written whole, keepTrailing how many older entries stay, in memory too,
	// for nodes that are behind. An entry has the pages that a transaction changed, 10 to 60 KiB.
	snapshotEvery = 1024
	keepTrailing  = 1024
	// watchEvery is how often this node asks itself who leads, settleEvery how often a node that is not settled looks
	// at the members, and lookEvery how often one that is.
	watchEvery  = 50 * time.Millisecond
	settleEvery = 200 * time.Millisecond
	lookEvery   = time.Second
	// adminTimeout bounds one exchange about members and roles; a new voter gets the whole database within promoteTimeout.
	adminTimeout   = 2 * time.Second
	promoteTimeout = time.Minute
	// readers is how many reads may run beside each other.
	readers = 4
)

// node is a dqlite node. It does for Bloomery what go-dqlite's app package does in general: that one cannot follow
// changing certificates, cannot say that a node was removed, and waits without bounds in places.
type node struct {
	self  Member
	files nodeFiles
	log   *slog.Logger
	links *links

	raft        *dqlite.Node
	write, read *sql.DB

	readyCh  chan struct{}
	failedCh chan error
	stop     context.CancelFunc
	wg       sync.WaitGroup

	mu       sync.Mutex
	known    []Member
	leading  string
	since    time.Time
	changes  int64
	last     string
	keep     func(context.Context) (map[string]bool, error)
	readied  bool
	listener net.Listener
}

// startEngine starts the dqlite node of this process. It does not wait for others.
func startEngine(ctx context.Context, o Options) (engine, error) {
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the database's directory: %w", err)
	}
	files := nodeFiles{o.Dir}
	self, err := identity(ctx, files, o)
	if err != nil {
		return nil, err
	}
	return startNode(ctx, files, self, o)
}

// identity reads who this node is, or makes it on the first start.
func identity(ctx context.Context, files nodeFiles, o Options) (Member, error) {
	want := loneAddress
	if o.Cluster != nil {
		want = o.Cluster.Address
	}
	record, ok, err := files.info()
	switch {
	case err != nil:
		return Member{}, err
	case ok && record.Address == want:
		return Member(record), nil
	case ok && o.Cluster == nil:
		return Member{}, fmt.Errorf("the database's node has the address %s: set cluster.address to it", record.Address)
	case ok:
		return readdress(ctx, files, Member(record), o)
	}
	self := Member{ID: dqlite.BootstrapID, Address: want}
	peers := []Member{self}
	if o.Cluster != nil && len(o.Cluster.Join) > 0 {
		self.ID, self.Role, peers = dqlite.GenerateID(want), RoleSpare, nil
		for _, a := range o.Cluster.Join {
			peers = append(peers, Member{Address: a})
		}
		if err := writeWhole(files.path(joinFile), nil, 0o600); err != nil {
			return Member{}, err
		}
	}
	// info.yaml is last: it makes the others count.
	if err := files.writePeers(peers); err != nil {
		return Member{}, err
	}
	return self, files.writeInfo(nodeRecord(self))
}

// readdress gives the only node of a database a new address. The replicated log says whether it is the only one.
func readdress(ctx context.Context, files nodeFiles, old Member, o Options) (Member, error) {
	renamed := fmt.Errorf("the database's node has the address %s, cluster.address is %s: a coordinator that others know keeps its address; remove it from the rack and join it again", old.Address, o.Cluster.Address)
	joining, err := files.has(joinFile)
	if err != nil {
		return Member{}, err
	}
	if joining {
		return Member{}, renamed
	}
	lone := o
	lone.Cluster = nil
	n, err := startNode(ctx, files, old, lone)
	if err != nil {
		return Member{}, err
	}
	wait, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	members, current, err := n.members(wait)
	for err == nil && !current && wait.Err() == nil {
		time.Sleep(watchEvery)
		members, current, err = n.members(wait)
	}
	if err := errors.Join(err, n.close()); err != nil {
		return Member{}, err
	}
	if !current || len(members) != 1 || members[0].ID != old.ID {
		return Member{}, renamed
	}
	self := Member{ID: old.ID, Address: o.Cluster.Address}
	if err := forceMembers(files, self); err != nil {
		return Member{}, err
	}
	o.Logger.Info("the database's node has a new address", "old", old.Address, "new", self.Address)
	return self, nil
}

// forceMembers makes a node the only one of the database in its directory. Done halfway it can be done again.
func forceMembers(files nodeFiles, self Member) error {
	self.Role = RoleVoter
	if err := dqlite.ReconfigureMembershipExt(files.dir, []dqlite.NodeInfo{nodeInfo(self)}); err != nil {
		return fmt.Errorf("make this node the only one of the database: %w", err)
	}
	if err := files.writePeers([]Member{self}); err != nil {
		return err
	}
	return files.writeInfo(nodeRecord(self))
}

func nodeInfo(m Member) dqlite.NodeInfo {
	return dqlite.NodeInfo{ID: m.ID, Address: m.Address, Role: client.NodeRole(m.Role)}
}

// startNode starts the node and everything that runs beside it.
// dqlite can only listen on TCP or on an abstract socket, and the latter has no owner or mode: its name
// is random so that two nodes on one host do not collide, but it is no secret, since /proc/net/unix lists it. Whoever runs programs in
// the coordinator's network namespace can reach the database: see docs/security.md.
func startNode(ctx context.Context, files nodeFiles, self Member, o Options) (*node, error) {
	suffix := make([]byte, 16)
	if _, err := rand.Read(suffix); err != nil {
		return nil, fmt.Errorf("name the database's socket: %w", err)
	}
	socket := "@bloomery-" + hex.EncodeToString(suffix)
	known, err := files.peers()
	if err != nil {
		return nil, err
	}
	if err := verify(files.dir, o.Logger); err != nil {
		return nil, fmt.Errorf("check the database: %w", err)
	}
	n := &node{self: self, files: files, log: o.Logger, known: known, readyCh: make(chan struct{}), failedCh: make(chan error, 1), since: time.Now()}
	n.links = newLinks(self.Address, socket, o.Cluster, o.Logger)
	if o.Cluster != nil {
		var config net.ListenConfig
		if n.listener, err = config.Listen(ctx, "tcp", o.Cluster.Address); err != nil {
			return nil, fmt.Errorf("listen for the other coordinators: %w", err)
		}
	}
	fail := func(err error) (*node, error) {
		if n.listener != nil {
			err = errors.Join(err, n.listener.Close())
		}
		n.links.close()
		return nil, err
	}
	n.raft, err = dqlite.New(self.ID, self.Address, files.dir, dqlite.WithBindAddress(socket), dqlite.WithDialFunc(n.links.raft), dqlite.WithNetworkLatency(latency),
		dqlite.WithSnapshotParams(dqlite.SnapshotParams{Threshold: snapshotEvery, Trailing: keepTrailing}))
	if err != nil {
		return fail(fmt.Errorf("make the database node in %s: %w", files.dir, err))
	}
	if err := n.raft.Start(); err != nil {
		return fail(fmt.Errorf("start the database node in %s: %w", files.dir, err))
	}
	if err := setAside(files.dir); err != nil {
		return fail(errors.Join(err, n.raft.Close()))
	}
	d, err := driver.New(n, driver.WithDialFunc(n.links.client), driver.WithLogFunc(n.driverLog), driver.WithAttemptTimeout(dialTimeout),
		driver.WithConnectionBackoffFactor(firstPause), driver.WithConnectionBackoffCap(longPause), driver.WithRetryLimit(1))
	if err != nil {
		return fail(errors.Join(fmt.Errorf("make the database's driver: %w", err), n.raft.Close()))
	}
	connector, err := d.OpenConnector("bloomery")
	if err != nil {
		return fail(errors.Join(fmt.Errorf("make the database's driver: %w", err), n.raft.Close()))
	}
	n.write, n.read = sql.OpenDB(connector), sql.OpenDB(connector)
	n.write.SetMaxOpenConns(1)
	n.read.SetMaxOpenConns(readers)
	n.read.SetMaxIdleConns(readers)
	var life context.Context
	life, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	if n.listener != nil {
		n.wg.Go(func() { n.links.accept(life, n.listener) })
	}
	n.wg.Go(func() { n.watch(life) })
	n.wg.Go(func() { n.look(life) })
	return n, nil
}

// driverLog takes the driver's log; that a node does not lead or does not answer is everyday news there.
func (n *node) driverLog(level client.LogLevel, format string, a ...any) {
	if level >= client.LogError {
		n.log.Warn("dqlite: " + fmt.Sprintf(format, a...))
		return
	}
	n.log.Debug("dqlite: " + fmt.Sprintf(format, a...))
}

// Get implements client.NodeStore: this node first, since it knows who leads.
func (n *node) Get(context.Context) ([]client.NodeInfo, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := []client.NodeInfo{{ID: n.self.ID, Address: n.self.Address}}
	for _, m := range n.known {
		if m.Address != n.self.Address {
			all = append(all, nodeInfo(m))
		}
	}
	return all, nil
}

// Set implements client.NodeStore; the members are learnt elsewhere.
func (n *node) Set(context.Context, []client.NodeInfo) error { return nil }

func (n *node) pools() (write, read *sql.DB) { return n.write, n.read }
func (n *node) ready() <-chan struct{}       { return n.readyCh }
func (n *node) failed() <-chan error         { return n.failedCh }
func (n *node) address() string              { return n.self.Address }
func (n *node) recheck()                     { n.links.recheck() }
func (n *node) hangUp()                      { n.links.hangUpClients() }
func (n *node) isolate()                     { n.links.close() }

func (n *node) leader() (string, time.Time, int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.leading, n.since, n.changes
}

func (n *node) tidy(keep func(context.Context) (map[string]bool, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.keep = keep
}

// watch asks the node of this process who leads, again and again.
func (n *node) watch(ctx context.Context) {
	var local *client.Client
	defer func() {
		if local != nil {
			_ = local.Close()
		}
	}()
	for {
		call, cancel := context.WithTimeout(ctx, adminTimeout)
		leader := ""
		var err error
		if local == nil {
			local, err = n.dial(call, n.self.Address)
		}
		if err == nil {
			var info *client.NodeInfo
			if info, err = local.Leader(call); err == nil {
				leader = info.Address
			}
		}
		cancel()
		if err != nil && local != nil {
			_ = local.Close()
			local = nil
		}
		n.led(leader)
		select {
		case <-ctx.Done():
			return
		case <-time.After(watchEvery):
		}
	}
}

// led notes who leads.
func (n *node) led(leader string) {
	n.mu.Lock()
	if leader == n.leading {
		n.mu.Unlock()
		return
	}
	n.leading, n.since = leader, time.Now()
	changed := leader != "" && leader != n.last
	if changed {
		if n.last != "" {
			n.changes++
		}
		n.last = leader
	}
	n.mu.Unlock()
	if changed {
		n.links.follow(leader)
		n.log.Info("the database has a leader", "leader", leader, "here", leader == n.self.Address)
	}
}

// dial opens a connection for questions about members and roles.
func (n *node) dial(ctx context.Context, address string) (*client.Client, error) {
	return client.New(ctx, address, client.WithDialFunc(n.links.client), client.WithLogFunc(n.driverLog))
}

// findLeader opens a connection to the leader.
func (n *node) findLeader(ctx context.Context) (*client.Client, error) {
	candidates, err := n.Get(ctx)
	if err != nil {
		return nil, err
	}
	var failures error
	for i := 0; i < len(candidates) && i < 16; i++ {
		cli, err := n.dial(ctx, candidates[i].Address)
		if err != nil {
			failures = errors.Join(failures, err)
			continue
		}
		info, err := cli.Leader(ctx)
		if err == nil && info.Address == candidates[i].Address {
			return cli, nil
		}
		_ = cli.Close()
		failures = errors.Join(failures, err)
		if err == nil && info.Address != "" && !slices.ContainsFunc(candidates, func(m client.NodeInfo) bool { return m.Address == info.Address }) {
			candidates = slices.Insert(candidates, i+1, client.NodeInfo{Address: info.Address})
		}
	}
	return nil, errors.Join(ErrNoMajority, failures)
}

// members implements engine.
func (n *node) members(ctx context.Context) ([]Member, bool, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	cli, err := n.findLeader(ctx)
	if err == nil {
		var all []Member
		all, err = membersAt(ctx, cli)
		_ = cli.Close()
		if err == nil {
			return all, true, nil
		}
	}
	n.log.Debug("ask the leader for the members", "error", err)
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.known), false, nil
}

func membersAt(ctx context.Context, cli *client.Client) ([]Member, error) {
	infos, err := cli.Cluster(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the database's members: %w", err)
	}
	var all []Member
	for _, i := range infos {
		all = append(all, Member{ID: i.ID, Address: i.Address, Role: Role(i.Role)})
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Address, b.Address) })
	return all, nil
}

// probe implements engine.
func (n *node) probe(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	cli, err := n.dial(ctx, address)
	if err != nil {
		return err
	}
	defer func() { _ = cli.Close() }()
	_, err = cli.Describe(ctx)
	return err
}

// remove implements engine. A leader hands over first: it could not carry out its own removal.
func (n *node) remove(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*adminTimeout)
	defer cancel()
	if err := n.stepDown(ctx, address); err != nil {
		return err
	}
	cli, err := n.findLeader(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = cli.Close() }()
	all, err := membersAt(ctx, cli)
	if err != nil {
		return err
	}
	for _, m := range all {
		if m.Address != address {
			continue
		}
		if err := cli.Remove(ctx, m.ID); err != nil {
			return fmt.Errorf("remove the database's node at %s: %w", address, err)
		}
	}
	return nil
}

// transfer implements engine.
func (n *node) transfer(ctx context.Context) error {
	if leader, _, _ := n.leader(); leader != n.self.Address {
		return nil
	}
	return n.stepDown(ctx, n.self.Address)
}

// stepDown makes the node at an address hand its leadership to another voter, if it has it.
func (n *node) stepDown(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	cli, err := n.findLeader(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = cli.Close() }()
	info, err := cli.Leader(ctx)
	if err != nil || info.Address != address {
		return err
	}
	all, err := membersAt(ctx, cli)
	if err != nil {
		return err
	}
	var failures error
	for _, m := range all {
		if m.Address == address || m.Role != RoleVoter || n.probe(ctx, m.Address) != nil {
			continue
		}
		if err := cli.Transfer(ctx, m.ID); err != nil {
			failures = errors.Join(failures, fmt.Errorf("give the leadership to %s: %w", m.Address, err))
			continue
		}
		return nil
	}
	return failures
}

// close implements engine. Connections end before what uses them: dqlite's client does not heed a context's end.
func (n *node) close() error {
	n.stop()
	var err error
	if n.listener != nil {
		err = n.listener.Close()
	}
	n.links.close()
	err = errors.Join(err, n.read.Close(), n.write.Close())
	n.wg.Wait()
	err = errors.Join(err, n.raft.Close())
	n.links.wait()
	return err
}
