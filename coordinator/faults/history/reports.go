package history

import "time"

// boot is one boot of an agent, whose reports are numbered.
type boot struct{ machine, id string }

// bootLog is what an agent said during one boot: the numbers of its log reports, and how far they were acknowledged.
type bootLog struct {
	sent    []int64
	acked   int64
	ackedAt time.Duration
	ackedBy string
}

// reports checks that the record holds what agents were told that it holds: each report once, in order, without a gap.
func (c *checker) reports() {
	logs := map[boot]*bootLog{}
	var order []boot
	of := func(e Entry) *bootLog {
		key := boot{e.Machine, e.Boot}
		if logs[key] == nil {
			logs[key] = &bootLog{}
			order = append(order, key)
		}
		return logs[key]
	}
	for _, e := range c.entries {
		switch e.Kind {
		case ReportSent:
			if e.Step == "" {
				l := of(e)
				l.sent = append(l.sent, e.Sequence)
			}
		case ReportAcked:
			if l := of(e); e.Sequence > l.acked {
				l.acked, l.ackedAt, l.ackedBy = e.Sequence, e.At, e.Node
			}
		}
	}
	stored := map[boot][]int64{}
	for _, e := range c.final.Events {
		if e.Boot != "" {
			key := boot{e.Machine, e.Boot}
			stored[key] = append(stored[key], e.Report)
			if logs[key] == nil {
				c.add(Invented, 0, "event %d is report %d of boot %s of machine %s, which nobody saw booting", e.Sequence, e.Report, e.Boot, e.Machine)
			}
		}
	}
	for _, key := range order {
		c.bootReports(key, logs[key], stored[key])
	}
}

func (c *checker) bootReports(key boot, l *bootLog, stored []int64) {
	sent, have := map[int64]bool{}, map[int64]bool{}
	for _, n := range l.sent {
		sent[n] = true
	}
	highest := int64(0)
	for _, n := range stored {
		switch {
		case have[n]:
			c.add(Doubled, 0, "report %d of boot %s of machine %s is stored twice", n, key.id, key.machine)
		case n < highest:
			c.add(Reordered, 0, "report %d of boot %s of machine %s is stored after report %d", n, key.id, key.machine, highest)
		}
		if !sent[n] {
			c.add(Invented, 0, "report %d of boot %s of machine %s was never sent", n, key.id, key.machine)
		}
		have[n] = true
		highest = max(highest, n)
	}
	for _, n := range l.sent {
		switch {
		case have[n]:
		case n <= l.acked:
			c.add(Lost, l.ackedAt, "report %d of boot %s of machine %s was acknowledged by %s and is not stored", n, key.id, key.machine, l.ackedBy)
		case n < highest:
			c.add(Gap, 0, "report %d of boot %s of machine %s is not stored, but report %d is", n, key.id, key.machine, highest)
		}
	}
}

// finishedSteps checks that a step whose end was acknowledged has a trace in the record, and that no step ended twice.
func (c *checker) finishedSteps() {
	traces, done := map[string]bool{}, map[string]int{}
	for _, e := range c.final.Events {
		switch e.Type {
		case "step.done":
			done[e.Step]++
			if done[e.Step] == 2 {
				c.add(Doubled, 0, "step %s was done twice", e.Step)
			}
			traces[e.Step] = true
		case "step.failed", "step.stale_report":
			traces[e.Step] = true
		}
	}
	acked := map[boot]int64{}
	for _, e := range c.entries {
		if e.Kind == ReportAcked {
			key := boot{e.Machine, e.Boot}
			acked[key] = max(acked[key], e.Sequence)
		}
	}
	for _, e := range c.entries {
		if e.Kind == ReportSent && e.Step != "" && e.Sequence <= acked[boot{e.Machine, e.Boot}] && !traces[e.Step] {
			c.add(Lost, e.At, "the end of step %s was acknowledged and is not in the record", e.Step)
		}
	}
}
