//go:build faults

package faults

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

const seedVariable = "BLOOMERY_FAULTS_SEED"

// TestManyRounds is "make faults": a random fault a round, as many as asked for.
func TestManyRounds(t *testing.T) {
	rounds, err := strconv.Atoi(os.Getenv(roundsVariable))
	if err != nil || rounds < 1 {
		t.Fatalf("%s=%q: want a number of rounds; \"make faults\" gives one", roundsVariable, os.Getenv(roundsVariable))
	}
	if !inWorld(t) {
		return
	}
	seed, err := strconv.ParseUint(os.Getenv(seedVariable), 10, 64)
	if err != nil {
		seed = rand.Uint64() >> 32
	}
	w := newWorld(t, size{nodes: rackSize, machines: 20, reporters: 50})
	faults := w.faults()
	w.run(faults, rounds, seed, func(_ int, r *rand.Rand) fault { return faults[r.IntN(len(faults))] })
}
