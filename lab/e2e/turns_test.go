package e2e

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sync/semaphore"
)

// What two cores and 4 GiB carry at once without a machine's firmware or a coordinator's lease running out of time.
const (
	racksAtOnce    = 2
	machinesAtOnce = 3
	// turnTimeout is far beyond all tests together.
	turnTimeout = time.Hour
)

var (
	racks    = semaphore.NewWeighted(racksAtOnce)
	machines = semaphore.NewWeighted(machinesAtOnce)
)

// takeTurn waits until there is room for a test's racks and machines, and gives it back when the test ends: after its rack is down, if the
// rack was brought up after this. Both are taken in one order, and whoever has both waits for nothing more, so that nobody waits for ever.
func takeTurn(t *testing.T, ofRacks, ofMachines int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), turnTimeout)
	defer cancel()
	for _, turn := range []struct {
		of   *semaphore.Weighted
		want int
	}{{machines, ofMachines}, {racks, ofRacks}} {
		if err := turn.of.Acquire(ctx, int64(turn.want)); err != nil {
			t.Fatalf("wait for a turn: %v", err)
		}
		t.Cleanup(func() { turn.of.Release(int64(turn.want)) })
	}
}
