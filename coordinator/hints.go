package coordinator

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

const (
	// maxHints bounds the topics that wait for another coordinator, and those in one message; beyond, the word is everyTopic.
	maxHints = 4096
	// everyTopic wakes everybody.
	everyTopic = "*"
	// hintPause gathers what happens within it into one message.
	hintPause = 2 * time.Millisecond
	// Between tries to reach another coordinator.
	firstHintRetry = 100 * time.Millisecond
	longHintRetry  = 2 * time.Second
)

// WatchHints implements bloomeryv1connect.NodeServiceHandler. It sends what was changed here, not what was heard from others.
func (c *Coordinator) WatchHints(ctx context.Context, _ *connect.Request[bloomeryv1.WatchHintsRequest], stream *connect.ServerStream[bloomeryv1.WatchHintsResponse]) error {
	f := c.hub.follow()
	defer f.stop()
	// The first message says that the watch has begun; whatever was missed before it is made good by waking everybody.
	topics := []string{everyTopic}
	for {
		if err := stream.Send(&bloomeryv1.WatchHintsResponse{Topics: topics}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-f.wake:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(hintPause):
		}
		topics = f.take()
	}
}

// follow hears what every other coordinator changes, until the context ends.
func (c *Coordinator) follow(ctx context.Context) error {
	wake, stop := c.hub.subscribe("roster")
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	following := map[string]context.CancelFunc{}
	for {
		present := map[string]bool{}
		for _, n := range c.others() {
			// A coordinator with another address is followed anew.
			key := n.Name + " " + n.Address + " " + n.Joined.String()
			for _, a := range n.API {
				key += " " + a
			}
			present[key] = true
			if following[key] == nil {
				life, cancel := context.WithCancel(ctx)
				following[key] = cancel
				wg.Go(func() { c.hear(life, n) })
			}
		}
		for key, cancel := range following {
			if !present[key] {
				cancel()
				delete(following, key)
			}
		}
		select {
		case <-ctx.Done():
			for _, cancel := range following {
				cancel()
			}
			return nil
		case <-wake:
		}
	}
}

// hear passes one coordinator's hints on to those who wait here. It is best effort: everybody who waits also looks by the clock.
func (c *Coordinator) hear(ctx context.Context, n store.Node) {
	client, done := c.peer(n)
	defer done()
	pause := firstHintRetry
	for ctx.Err() == nil {
		stream, err := client.WatchHints(ctx, connect.NewRequest(&bloomeryv1.WatchHintsRequest{}))
		if err == nil {
			for stream.Receive() {
				pause = firstHintRetry
				topics := stream.Msg().GetTopics()
				if len(topics) > maxHints {
					topics = []string{everyTopic}
				}
				c.hub.hear(topics)
			}
			err = stream.Err()
			_ = stream.Close()
		}
		c.Logger.Debug("hear what another coordinator changes", "coordinator", n.Name, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, longHintRetry)
	}
}

// follower gathers what is changed here for another coordinator.
type follower struct {
	hub *hub
	// wake holds one hint at most.
	wake chan struct{}
	// topics is guarded by the hub's mutex.
	topics map[string]bool
}

func (h *hub) follow() *follower {
	f := &follower{hub: h, wake: make(chan struct{}, 1), topics: map[string]bool{}}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.followers[f] = true
	return f
}

func (f *follower) stop() {
	f.hub.mu.Lock()
	defer f.hub.mu.Unlock()
	delete(f.hub.followers, f)
}

// take returns what has gathered.
func (f *follower) take() []string {
	f.hub.mu.Lock()
	defer f.hub.mu.Unlock()
	all := slices.Sorted(maps.Keys(f.topics))
	clear(f.topics)
	return all
}

// add gathers; the hub's mutex is held.
func (f *follower) add(topics map[string]bool) {
	for t := range topics {
		if len(f.topics) >= maxHints {
			clear(f.topics)
			f.topics[everyTopic] = true
		}
		if f.topics[everyTopic] {
			break
		}
		f.topics[t] = true
	}
	select {
	case f.wake <- struct{}{}:
	default:
	}
}
