package clustertest

import (
	"context"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func TestMain(m *testing.M) { os.Exit(Main(m, nil)) }

// client makes machines one after the other at whichever coordinator answers, and knows which were acknowledged.
type client struct {
	mu    sync.Mutex
	acked []string
	gap   time.Duration
	stop  context.CancelFunc
	done  chan struct{}
}

func (r *Rack) write(prefix string) *client { return r.writeAt(prefix, r.Nodes()) }

func (r *Rack) writeAt(prefix string, nodes []*Node) *client {
	ctx, cancel := context.WithCancel(r.t.Context())
	c := &client{stop: cancel, done: make(chan struct{})}
	var clients []Client
	for _, n := range nodes {
		clients = append(clients, n.Client())
	}
	go func() {
		defer close(c.done)
		last := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("%s-%d", prefix, i)
			machine := &bloomeryv1.Machine{Name: name, Macs: []string{fmt.Sprintf("52:54:%02x:00:%02x:%02x", prefix[0], i/256, i%256)}, Bmc: &bloomeryv1.BMC{Address: "10.0.0.1", Username: "a"}}
			for try := 0; ctx.Err() == nil; try++ {
				call, cancel := context.WithTimeout(ctx, 3*time.Second)
				_, err := clients[try%len(clients)].Machines.CreateMachine(call, connect.NewRequest(&bloomeryv1.CreateMachineRequest{Machine: machine}))
				cancel()
				// What an unanswered try has done is done.
				if err == nil || try > 0 && connect.CodeOf(err) == connect.CodeAlreadyExists {
					c.mu.Lock()
					c.acked = append(c.acked, name)
					c.gap = max(c.gap, time.Since(last))
					c.mu.Unlock()
					last = time.Now()
					break
				}
			}
		}
	}()
	return c
}

func (c *client) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.acked)
}

// check ends the writing, and finds all that was acknowledged.
func (r *Rack) check(c *client) {
	r.t.Helper()
	c.stop()
	<-c.done
	there := map[string]bool{}
	r.until("list machines", func(ctx context.Context) error {
		clear(there)
		token := ""
		for {
			answer, err := r.Client().Machines.ListMachines(ctx, connect.NewRequest(&bloomeryv1.ListMachinesRequest{PageToken: token}))
			if err != nil {
				return err
			}
			for _, m := range answer.Msg.GetMachines() {
				there[m.GetName()] = true
			}
			if token = answer.Msg.GetNextPageToken(); token == "" {
				return nil
			}
		}
	})
	for _, name := range c.acked {
		if !there[name] {
			r.t.Errorf("%s was acknowledged and is lost", name)
		}
	}
	if len(c.acked) == 0 {
		r.t.Error("nothing was written")
	}
}

// TestLeaderIsKilled grows a rack from one coordinator to three, and kills the leader's process, while a client writes.
func TestLeaderIsKilled(t *testing.T) {
	r := Start(t, Options{Nodes: 1, Processes: true})
	w := r.write("g")
	r.Join("c2")
	r.Join("c3")
	r.WaitVoters(3)
	r.check(w)
	t.Logf("growing from one to three: %d writes, longest gap %v", w.count(), w.gap)
	for round := range 2 {
		leader := r.Leader()
		w := r.write(fmt.Sprint("hk"[round : round+1]))
		for w.count() < 20 {
			time.Sleep(10 * time.Millisecond)
		}
		leader.Kill()
		for begin, n := time.Now(), w.count(); w.count() < n+20 && time.Since(begin) < patience; {
			time.Sleep(10 * time.Millisecond)
		}
		r.check(w)
		t.Logf("leader %s killed: %d writes, longest gap %v", leader.Name, w.count(), w.gap)
		if w.gap > 10*time.Second {
			t.Errorf("a failover took %v", w.gap)
		}
		leader.Start()
		r.WaitVoters(3)
	}
}

// TestLeaderIsPaused stops the leader's process for a while: connections to it stay open and are silent.
func TestLeaderIsPaused(t *testing.T) {
	r := Start(t, Options{Nodes: 3, Processes: true})
	leader := r.Leader()
	var others []*Node
	for _, n := range r.Nodes() {
		if n != leader {
			others = append(others, n)
		}
	}
	w := r.writeAt("p", others)
	for w.count() < 20 {
		time.Sleep(10 * time.Millisecond)
	}
	leader.Pause()
	for begin, n := time.Now(), w.count(); w.count() < n+20 && time.Since(begin) < patience; {
		time.Sleep(10 * time.Millisecond)
	}
	leader.Resume()
	for begin, n := time.Now(), w.count(); w.count() < n+20 && time.Since(begin) < patience; {
		time.Sleep(10 * time.Millisecond)
	}
	r.check(w)
	t.Logf("leader %s paused and resumed: %d writes, longest gap %v", leader.Name, w.count(), w.gap)
	r.WaitVoters(3)
}
