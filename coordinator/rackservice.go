package coordinator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

// expiresSoon is when a certificate's end is worth a warning: coordinators renew their own long before.
const expiresSoon = 14 * 24 * time.Hour

// GetRackStatus implements bloomeryv1connect.RackServiceHandler. It asks every coordinator at once and needs no majority.
func (c *Coordinator) GetRackStatus(ctx context.Context, _ *connect.Request[bloomeryv1.GetRackStatusRequest]) (*connect.Response[bloomeryv1.GetRackStatusResponse], error) {
	answer := &bloomeryv1.GetRackStatusResponse{Rack: c.Authority.Rack(), AnsweredBy: c.config.Node, CaNotAfter: timestamppb.New(c.Authority.Root().NotAfter)}
	members, current, err := c.Store.Members(ctx)
	if err != nil {
		return nil, err
	}
	leader := c.Store.Leader()
	others := c.others()
	answer.Nodes = make([]*bloomeryv1.Node, len(others)+1)
	var wg sync.WaitGroup
	wg.Go(func() { answer.Nodes[0] = c.ownStatus(ctx) })
	for i, n := range others {
		wg.Go(func() {
			node, err := c.nodeStatus(ctx, n)
			if err != nil {
				node = nodeMessage(n)
				node.Error = err.Error()
			}
			answer.Nodes[i+1] = node
		})
	}
	wg.Wait()
	sortNodes(answer.GetNodes())
	c.countImages(ctx, answer)
	summarise(answer, members, leader, current, c.config.Now())
	return connect.NewResponse(answer), nil
}

// imagesTimeout is how long the status waits for the database to say which images miss; without a majority it cannot.
const imagesTimeout = time.Second

// countImages says which coordinators have no copy of an image yet.
func (c *Coordinator) countImages(ctx context.Context, answer *bloomeryv1.GetRackStatusResponse) {
	ctx, cancel := context.WithTimeout(ctx, imagesTimeout)
	defer cancel()
	err := c.Store.View(ctx, func(r *store.Reader) error {
		for _, n := range answer.GetNodes() {
			missing, err := r.ImagesMissing(n.GetName())
			if err != nil {
				return err
			}
			n.ImagesMissing = int32(missing)
		}
		return nil
	})
	if err != nil {
		answer.Warnings = append(answer.Warnings, "which coordinators miss images is not known: the database does not answer")
	}
}

// summarise puts together what the coordinators said with what the replicated log says, and says what is not as it should be.
func summarise(answer *bloomeryv1.GetRackStatusResponse, members []store.Member, leader string, current bool, now time.Time) {
	warn := func(format string, args ...any) {
		answer.Warnings = append(answer.Warnings, fmt.Sprintf(format, args...))
	}
	roles := map[string]store.Role{}
	voters, answering := 0, 0
	for _, m := range members {
		roles[m.Address] = m.Role
		if m.Role == store.RoleVoter {
			voters++
		}
	}
	newest := int64(0)
	for _, n := range answer.GetNodes() {
		role, member := roles[n.GetAddress()]
		n.Role = bloomeryv1.NodeRole_NODE_ROLE_UNSPECIFIED
		if member {
			n.Role = bloomeryv1.NodeRole(role) + bloomeryv1.NodeRole_NODE_ROLE_VOTER
		}
		n.Leader = n.GetAddress() == leader && leader != ""
		if n.GetLeader() {
			answer.Leader = n.GetName()
			newest = n.GetLogIndex()
		}
		if n.GetReachable() && member && role == store.RoleVoter {
			answering++
		}
	}
	answer.Quorum = leader != "" && current && answering > voters/2
	versions := map[string]bool{}
	for _, n := range answer.GetNodes() {
		switch {
		case !n.GetReachable():
			warn("%s does not answer: %s", n.GetName(), n.GetError())
			continue
		case n.GetRole() == bloomeryv1.NodeRole_NODE_ROLE_UNSPECIFIED:
			warn("%s has not joined the database yet", n.GetName())
		}
		versions[n.GetVersion()] = true
		if answer.GetLeader() != "" && newest > n.GetLogIndex() {
			n.LogLag = newest - n.GetLogIndex()
		}
		if end := n.GetCertificateNotAfter(); end != nil && end.AsTime().Sub(now) < expiresSoon {
			warn("the certificate of %s ends on %s", n.GetName(), end.AsTime().Format(time.DateOnly))
		}
		if n.GetImagesMissing() > 0 {
			warn("%s has no copy of %d images yet", n.GetName(), n.GetImagesMissing())
		}
		if n.GetDiskTotalBytes() > 0 && n.GetDiskFreeBytes() < n.GetDiskTotalBytes()/10 {
			warn("less than a tenth of the disk of %s is free", n.GetName())
		}
		if o := n.GetClockOffsetSeconds(); o > 2 || o < -2 {
			warn("the clock of %s differs by %.1f s from that of %s", n.GetName(), o, answer.GetAnsweredBy())
		}
	}
	if len(versions) > 1 {
		warn("the coordinators run different versions")
	}
	switch {
	case !answer.GetQuorum():
		warn("no majority of the coordinators works together: nothing can be changed; see \"bloomery rack recover --help\" if they are lost for good")
	case voters < 3:
		warn("%d of 3 coordinators vote: none may be lost", voters)
	case answering < voters:
		warn("%d of %d voting coordinators answer: no other may be lost", answering, voters)
	}
}

// RemoveNode implements bloomeryv1connect.RackServiceHandler. Done halfway, the leading coordinator does the rest.
func (c *Coordinator) RemoveNode(ctx context.Context, r *connect.Request[bloomeryv1.RemoveNodeRequest]) (*connect.Response[bloomeryv1.RemoveNodeResponse], error) {
	name := r.Msg.GetName()
	members, current, err := c.Store.Members(ctx)
	if err != nil {
		return nil, err
	}
	if !current {
		return nil, store.ErrNoMajority
	}
	node, ok := c.roster.node(name)
	if !ok || !node.Present() {
		return nil, fmt.Errorf("coordinator %s: %w", clip(name), store.ErrNotFound)
	}
	if err := c.mayRemove(ctx, node, members, r.Msg.GetForce()); err != nil {
		return nil, err
	}
	err = c.update(ctx, func(ch *change) error {
		all, err := ch.Nodes()
		if err != nil {
			return err
		}
		for _, n := range all {
			if n.Name != name || !n.Present() {
				continue
			}
			ch.topics["nodes"] = true
			ch.changed("coordinator "+n.Name, nodeMessage(n), (*bloomeryv1.Node)(nil))
			if err := ch.RemoveNode(n); err != nil {
				return err
			}
			return ch.note(&bloomeryv1.Event{Type: "node.removed", Severity: bloomeryv1.Severity_SEVERITY_WARNING, Message: fmt.Sprintf("coordinator %s was removed from the rack", name)},
				map[string]any{"node": name, "forced": r.Msg.GetForce()})
		}
		return fmt.Errorf("coordinator %s: %w", clip(name), store.ErrNotFound)
	})
	if err != nil {
		return nil, err
	}
	if err := c.readRoster(ctx); err != nil && !errors.Is(err, store.ErrRemoved) {
		c.Logger.Warn("read the list of coordinators", "error", err)
	}
	if err := c.Store.RemoveMember(ctx, node.Address); err != nil {
		c.Logger.Warn("take a coordinator out of the database; the leading one tries again", "coordinator", name, "error", err)
	}
	return connect.NewResponse(&bloomeryv1.RemoveNodeResponse{}), nil
}

// mayRemove refuses what would leave the rack without a majority, or without its data.
func (c *Coordinator) mayRemove(ctx context.Context, node store.Node, members []store.Member, force bool) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	voters, alive := 0, 0
	removes := false
	for _, m := range members {
		if m.Address == node.Address {
			removes = true
			continue
		}
		if m.Role != store.RoleVoter {
			continue
		}
		voters++
		wg.Go(func() {
			if c.Store.Probe(ctx, m.Address) == nil {
				mu.Lock()
				defer mu.Unlock()
				alive++
			}
		})
	}
	wg.Wait()
	switch {
	case removes && voters == 0:
		return notNow("name", "LAST_VOTER", "%s is the only coordinator that votes: the others have no say without it; join more first", node.Name)
	case removes && alive <= voters/2 && !force:
		return notNow("name", "NO_MAJORITY_LEFT", "without %s, %d of %d voting coordinators answer, which is no majority: the rack could not be changed any more; bring the others back, or use force", node.Name, alive, voters)
	}
	return nil
}
