package clustertest

import (
	"context"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator"
)

// TestHintsReachTheOthers watches at one coordinator what is changed at another, with clocks that would take an hour.
func TestHintsReachTheOthers(t *testing.T) {
	r := Start(t, Options{Nodes: 3, Configure: func(c *coordinator.Config) { c.Timing.Tick = time.Hour }})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	names := make(chan string)
	// Three: each hears from both others.
	for _, n := range r.Nodes() {
		stream, err := n.Client().Machines.WatchMachines(ctx, connect.NewRequest(&bloomeryv1.WatchMachinesRequest{}))
		ok(t, err)
		go func() {
			for stream.Receive() {
				m := stream.Msg().GetMachine()
				if m == nil {
					continue
				}
				select {
				case names <- m.GetName():
				case <-ctx.Done():
					return
				}
			}
		}()
	}
	// The first change may come before a coordinator follows another; it is made good when it begins to.
	for i, n := range r.Nodes() {
		name := "hint-0" + string(rune('1'+i))
		begin := time.Now()
		r.must(n, name)
		for seen := 0; seen < 3; {
			select {
			case got := <-names:
				if got == name {
					seen++
				}
			case <-ctx.Done():
				t.Fatalf("%s was seen at %d of 3 coordinators", name, seen)
			}
		}
		t.Logf("%s: seen everywhere after %v", name, time.Since(begin))
	}
}
