package coordinator

import (
	"context"
	"errors"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

const (
	// groupReports and groupBytes bound what one transaction stores (dqlite fails above about 1 MB, and a result is stored twice).
	groupReports, groupBytes = 1000, 256 << 10
	// gatherFor is how long a group is gathered when one was stored just before: a commit costs a flush of the disks of a majority
	// and several trips between nodes, whether it holds one report or a hundred.
	gatherFor = 4 * time.Millisecond
	// queuedCalls and queuedCallsOfOne bound the calls that wait, of all machines and of each.
	queuedCalls, queuedCallsOfOne = 4096, 8
	// commitTimeout bounds storing a group: the store tries again for 15 s, as long as a failover may take.
	commitTimeout = 20 * time.Second
)

// reportCall is one agent's batch of reports on its way into the store. One without reports only says that the agent was heard.
type reportCall struct {
	who     caller
	bootID  string
	reports []*bloomeryv1.Report

	// What came of it, once done is closed.
	acknowledged int64
	err          error
	done         chan struct{}
	// lead is closed when the call shall store the next group.
	lead chan struct{}
	size int
}

// committer stores agents' reports in groups: what arrives while a transaction is under way goes into the next one together. There is no
// goroutine of its own: the first call in the queue stores its group and passes the lead on.
type committer struct {
	mu    sync.Mutex
	queue []*reportCall
	// busy says that a call leads.
	busy bool
	// machines counts the calls that wait, by machine.
	machines map[string]int
}

func newCommitter() *committer { return &committer{machines: map[string]int{}} }

// submit stores a call's reports through store, which is given a group and sets what came of each, and returns when they are stored.
func (q *committer) submit(ctx context.Context, c *reportCall, store func(ctx context.Context, group []*reportCall)) error {
	c.done, c.lead = make(chan struct{}), make(chan struct{})
	for _, r := range c.reports {
		c.size += proto.Size(r)
	}
	q.mu.Lock()
	if len(q.queue) >= queuedCalls || q.machines[c.who.Name] >= queuedCallsOfOne {
		q.mu.Unlock()
		return connect.NewError(connect.CodeResourceExhausted, errors.New("too many reports wait to be stored: send them again in a moment"))
	}
	q.queue = append(q.queue, c)
	q.machines[c.who.Name]++
	waits := q.busy
	q.busy = true
	q.mu.Unlock()
	if waits {
		select {
		case <-c.done:
			return c.err
		case <-c.lead:
		case <-ctx.Done():
			q.leave(c)
			return ctx.Err()
		}
	}
	if waits {
		sleep(ctx, gatherFor)
	}
	q.lead(store)
	return c.err
}

// lead stores the next group and passes the lead on, whatever happens.
func (q *committer) lead(store func(ctx context.Context, group []*reportCall)) {
	// Others' reports are in the group as well: it is stored whether or not this caller still waits, and it is nobody's call.
	ctx, cancel := context.WithTimeout(context.Background(), commitTimeout)
	defer cancel()
	group, stored := q.take(), false
	defer func() {
		for _, c := range group {
			if !stored {
				c.err = errors.New("storing reports was broken off")
			}
			close(c.done)
		}
		q.passOn()
	}()
	store(ctx, group)
	stored = true
}

// take removes the next group from the queue.
func (q *committer) take() []*reportCall {
	q.mu.Lock()
	defer q.mu.Unlock()
	n, reports, bytes := 0, 0, 0
	for n < len(q.queue) && (n == 0 || reports+len(q.queue[n].reports) <= groupReports && bytes+q.queue[n].size <= groupBytes) {
		reports, bytes = reports+len(q.queue[n].reports), bytes+q.queue[n].size
		q.forget(q.queue[n])
		n++
	}
	group := q.queue[:n:n]
	q.queue = q.queue[n:]
	return group
}

// passOn makes the first that waits lead.
func (q *committer) passOn() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.busy = len(q.queue) > 0; q.busy {
		close(q.queue[0].lead)
	}
}

// leave takes a call out of the queue whose caller has gone; one that is being stored stays.
func (q *committer) leave(c *reportCall) {
	q.mu.Lock()
	for i, one := range q.queue {
		if one == c {
			q.queue = append(q.queue[:i:i], q.queue[i+1:]...)
			q.forget(c)
			break
		}
	}
	q.mu.Unlock()
	select {
	case <-c.lead: // it was to lead when its caller went
		q.passOn()
	default:
	}
}

func (q *committer) forget(c *reportCall) {
	if q.machines[c.who.Name]--; q.machines[c.who.Name] == 0 {
		delete(q.machines, c.who.Name)
	}
}
