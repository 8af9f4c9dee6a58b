package history

// jobs checks that every job that was accepted is there, was made once, and ended for good.
func (c *checker) jobs() {
	final := map[string]Job{}
	for _, j := range c.final.Jobs {
		final[j.ID] = j
		if !ended(j.Status) {
			c.add(Unended, 0, "job %s (%s of machine %s) has not ended: it is %s", j.ID, j.Kind, j.Machine, j.Status)
		}
	}
	made, seen := map[string]string{}, map[string]string{}
	for _, e := range c.entries {
		switch e.Kind {
		case JobAccepted:
			if first, again := made[e.Request]; again && first != e.Job {
				c.add(JobDoubled, e.At, "request %s made jobs %s and %s", e.Request, first, e.Job)
			}
			made[e.Request] = e.Job
			if _, there := final[e.Job]; !there {
				c.add(Lost, e.At, "job %s of machine %s was accepted by %s and is not there", e.Job, e.Machine, e.Node)
			}
		case JobEnded:
			if first, again := seen[e.Job]; again && first != e.Value {
				c.add(Restarted, e.At, "job %s was seen %s and later %s", e.Job, first, e.Value)
			}
			seen[e.Job] = e.Value
		}
	}
	for _, j := range c.final.Jobs {
		if status, ok := seen[j.ID]; ok && j.Status != status {
			c.add(Restarted, 0, "job %s was seen %s and is %s in the end", j.ID, status, j.Status)
		}
	}
	c.oneJobAtATime()
	c.phoneCalls()
}

func ended(status string) bool {
	return status == "done" || status == "failed" || status == "cancelled"
}

// oneJobAtATime checks by the record's order that no machine had two jobs at once and that each job ended once.
func (c *checker) oneJobAtATime() {
	driven, over := map[string]string{}, map[string]bool{}
	for _, e := range c.final.Events {
		switch e.Type {
		case "job.created":
			if other := driven[e.Machine]; other != "" {
				c.add(JobsOverlap, 0, "job %s of machine %s was made while job %s drove it", e.Job, e.Machine, other)
			}
			driven[e.Machine] = e.Job
		case "job.done", "job.failed", "job.cancelled":
			if over[e.Job] {
				c.add(Doubled, 0, "job %s ended twice", e.Job)
			}
			over[e.Job] = true
			if driven[e.Machine] == e.Job {
				driven[e.Machine] = ""
			}
		}
	}
}

// phoneCalls checks that the record has a phone-home call for each that was answered.
func (c *checker) phoneCalls() {
	stored, heard := map[string]int{}, map[string]int{}
	for _, e := range c.final.Events {
		if e.Type == "system.phoned_home" {
			stored[e.Machine]++
		}
	}
	for _, e := range c.entries {
		if e.Kind != Heard {
			continue
		}
		heard[e.Machine]++
		if heard[e.Machine] == stored[e.Machine]+1 {
			c.add(Lost, e.At, "%s heard machine %s phone home %d times or more, of which the record has %d", e.Node, e.Machine, heard[e.Machine], stored[e.Machine])
		}
	}
}
