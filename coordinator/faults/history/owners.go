package history

import (
	"cmp"
	"time"
)

// taking is one time that a coordinator took a job. index says where in the rack's row of jobs the job stands.
type taking struct {
	at    time.Duration
	node  string
	job   string
	index int
	epoch int64
}

// after says that a taking follows another one of the same machine.
func (t taking) after(other taking) bool {
	return cmp.Or(cmp.Compare(t.index, other.index), cmp.Compare(t.epoch, other.epoch)) > 0
}

// owners checks that no epoch of a job belonged to two coordinators, and that no coordinator commanded a device after another one had followed it.
//
// A coordinator says that it took a job after the taking was stored and before it acts by it. So a command that comes after
// a follower has spoken is stale for certain, whatever the two thought of the time.
func (c *checker) owners() {
	c.epochs()
	for _, e := range c.entries {
		if e.Kind != Acted {
			continue
		}
		latest, own := c.holder(e, ""), c.holder(e, e.Node)
		switch {
		case own == nil:
			c.add(Unowned, e.At, "%s commanded %s of machine %s, whose jobs it had never taken", e.Node, e.Action, e.Machine)
		case latest.node != e.Node:
			c.add(Stale, e.At, "%s (job %s, epoch %d) commanded %s of machine %s %s after %s had taken it (job %s, epoch %d)",
				e.Node, own.job, own.epoch, e.Action, e.Machine, e.At-latest.at, latest.node, latest.job, latest.epoch)
		}
	}
}

func (c *checker) epochs() {
	type epoch struct {
		job    string
		number int64
	}
	holders := map[epoch]string{}
	for _, e := range c.entries {
		if e.Kind != JobTaken {
			continue
		}
		key := epoch{e.Job, e.Epoch}
		if other, taken := holders[key]; taken {
			c.add(OwnersOverlap, e.At, "epoch %d of job %s was taken by %s and by %s", e.Epoch, e.Job, other, e.Node)
		}
		holders[key] = e.Node
	}
}

// holder returns who had taken the command's machine last when it came; with a node, that node's own last taking.
func (c *checker) holder(e Entry, node string) *taking {
	if c.takings == nil {
		c.takings = c.gatherTakings()
	}
	var last *taking
	for i := range c.takings[e.Machine] {
		t := &c.takings[e.Machine][i]
		if t.at > e.At {
			break
		}
		if (node == "" || t.node == node) && (last == nil || t.after(*last)) {
			last = t
		}
	}
	return last
}

// gatherTakings returns who took the jobs of each machine, in the order in which they said so.
func (c *checker) gatherTakings() map[string][]taking {
	machines, index := map[string]string{}, map[string]int{}
	for _, e := range c.final.Events {
		if e.Type == "job.created" {
			machines[e.Job], index[e.Job] = e.Machine, len(index)
		}
	}
	all := map[string][]taking{}
	for _, e := range c.entries {
		if e.Kind == JobTaken {
			machine := machines[e.Job]
			all[machine] = append(all[machine], taking{e.At, e.Node, e.Job, index[e.Job], e.Epoch})
		}
	}
	return all
}
