package faults

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"syscall"
	"time"
)

// fault is one thing that is done to a rack. inject says what it chose, and returns what undoes it.
type fault struct {
	area, name string
	// It lasts for a time between least and most.
	least, most time.Duration
	// nodes is how many coordinators there must be.
	nodes  int
	inject func(w *world, r *rand.Rand) (what string, heal func() error, err error)
}

// briefly is the same fault for as short as it may be.
func (f fault) briefly() fault {
	f.most = f.least
	return f
}

func (w *world) anyNode(r *rand.Rand) *node { return w.nodes[r.IntN(len(w.nodes))] }

// twoNodes are two different coordinators.
func (w *world) twoNodes(r *rand.Rand) (a, b *node) {
	p := r.Perm(len(w.nodes))
	return w.nodes[p[0]], w.nodes[p[1]]
}

// allFaults are the faults of a round; each seed chooses by their order.
func allFaults() []fault {
	return []fault{
		{"process", "kill", 1500 * time.Millisecond, 3 * time.Second, 1, func(w *world, r *rand.Rand) (string, func() error, error) {
			n := w.anyNode(r)
			return "kill -9 " + n.name, n.start, n.end(syscall.SIGKILL)
		}},
		{"process", "stop", 5000 * time.Millisecond, 10 * time.Second, 1, func(w *world, r *rand.Rand) (string, func() error, error) {
			n := w.anyNode(r)
			return "SIGSTOP " + n.name, func() error { return n.signal(syscall.SIGCONT) }, n.signal(syscall.SIGSTOP)
		}},
		{"network", "cut-one-way", 3000 * time.Millisecond, 6 * time.Second, 2, func(w *world, r *rand.Rand) (string, func() error, error) {
			a, b := w.twoNodes(r)
			heal, err := cut(a.name, "eth0", b.address)
			return fmt.Sprintf("cut %s to %s", a.name, b.name), heal, err
		}},
		{"network", "cut-both-ways", 3000 * time.Millisecond, 6 * time.Second, 2, func(w *world, r *rand.Rand) (string, func() error, error) {
			a, b := w.twoNodes(r)
			there, err := cut(a.name, "eth0", b.address)
			if err != nil {
				return "", nil, err
			}
			back, err := cut(b.name, "eth0", a.address)
			if err != nil {
				return "", nil, errors.Join(err, there())
			}
			return fmt.Sprintf("cut %s and %s", a.name, b.name), func() error { return errors.Join(there(), back()) }, nil
		}},
		{"network", "isolate", 3000 * time.Millisecond, 6 * time.Second, 1, func(w *world, r *rand.Rand) (string, func() error, error) {
			n := w.anyNode(r)
			heal, err := w.cutNode(n, true, true)
			return "cut " + n.name + " and all", heal, err
		}},
		{"network", "mute", 3000 * time.Millisecond, 6 * time.Second, 1, func(w *world, r *rand.Rand) (string, func() error, error) {
			n := w.anyNode(r)
			heal, err := w.cutNode(n, true, false)
			return "cut " + n.name + " to all", heal, err
		}},
		{"network", "deaf", 3000 * time.Millisecond, 6 * time.Second, 1, func(w *world, r *rand.Rand) (string, func() error, error) {
			n := w.anyNode(r)
			heal, err := w.cutNode(n, false, true)
			return "cut all to " + n.name, heal, err
		}},
		{"disk", "full", 3000 * time.Millisecond, 6 * time.Second, 1, func(w *world, r *rand.Rand) (string, func() error, error) {
			n := w.anyNode(r)
			return "fill the disk of " + n.name, func() error { return os.Remove(n.ballast()) }, n.fillDisk()
		}},
		{"clock", "jump", 3000 * time.Millisecond, 6 * time.Second, 1, func(w *world, r *rand.Rand) (string, func() error, error) {
			n := w.anyNode(r)
			offset := time.Duration(1+r.IntN(30)) * time.Hour
			if r.IntN(2) == 0 {
				offset = -offset
			}
			return fmt.Sprintf("let the clock of %s jump by %s", n.name, offset), func() error { return n.setClock(0) }, n.setClock(offset)
		}},
	}
}
