package history

// Provisioning is the Value of a MovePort to the network in which machines boot the agent, where every port is at first.
const Provisioning = "provisioning"

// drive is what was done to a machine's devices for one job.
type drive struct {
	kind  string
	boots int
	// away says that the machine's port was not in the provisioning network when the job began.
	away bool
	had  map[string]int
}

// effects checks that devices changed no more often than a job's boots call for: an effect that was had is not had again.
func (c *checker) effects() {
	drives, port := c.drives(), map[string]string{}
	for _, e := range c.entries {
		if e.Kind != Acted || !e.Changed {
			continue
		}
		holder := c.holder(e, "")
		if holder == nil {
			continue // owners says so
		}
		d := drives[holder.job]
		if d == nil {
			continue // jobs says so
		}
		if d.had == nil {
			d.had = map[string]int{}
			d.away = port[e.Machine] != "" && port[e.Machine] != Provisioning
		}
		if e.Action == MovePort {
			port[e.Machine] = e.Value
		}
		d.had[e.Action]++
		if allowed, bounded := d.limit(e.Action); bounded && d.had[e.Action] == allowed+1 {
			c.add(ActionDoubled, e.At, "%s of machine %s was had %d times in job %s (%s, away %t), whose %d boots call for %d",
				e.Action, e.Machine, d.had[e.Action], holder.job, d.kind, d.away, d.boots, allowed)
		}
	}
}

func (c *checker) drives() map[string]*drive {
	drives := map[string]*drive{}
	for _, j := range c.final.Jobs {
		drives[j.ID] = &drive{kind: j.Kind}
	}
	for _, e := range c.final.Events {
		if d := drives[e.Job]; d != nil && e.Type == "boot.expected" {
			d.boots++
		}
	}
	return drives
}

// limit is how often an action may change a device in a job.
func (d *drive) limit(action string) (int, bool) {
	back := 0
	if d.away {
		back = 1 // a port that comes back has its machine started for it, and the machine restarted once if it says nothing
	}
	switch action {
	case PowerOn:
		return d.boots + back, true
	case PowerOff:
		return d.boots + back + 1, true // before each boot, and at the job's end
	case Reset:
		return back, true
	case MovePort:
		if d.kind == "install" {
			return 1 + back, true
		}
		return back, true
	}
	return 0, false
}
