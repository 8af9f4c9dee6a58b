package agent

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	pb "bloomery/api/bloomery/v1"
)

// phase is one part of the boot sequence. It starts as soon as all phases in after have ended well or badly.
type phase struct {
	name  string
	after []string
	run   func(context.Context) error
	// fatal phases end the boot when they fail; the others leave it to later ones to do without.
	fatal bool
}

// sequence is the boot sequence. Two things differ from the order in which one would tell it (mounts, clock, drivers, links, enrol,
// inventory, jobs): the clock comes after the links because the time is asked over the network; and what does not need each other runs side by
// side, since most of it is waiting: the NICs get their address while disk drivers still load, and the inventory is taken while the
// coordinator signs the certificate.
func (a *Agent) sequence() []phase {
	return []phase{
		{name: "mounts", run: a.mounts, fatal: true},
		{name: "drivers", after: []string{"mounts"}, run: a.drivers},
		{name: "links", after: []string{"mounts"}, run: a.links, fatal: true},
		{name: "clock", after: []string{"links"}, run: a.clock},
		{name: "enrol", after: []string{"clock"}, run: a.enrol, fatal: true},
		{name: "inventory", after: []string{"drivers", "links"}, run: a.inventory},
		{name: "jobs", after: []string{"enrol"}, run: a.jobs, fatal: true},
	}
}

// runSequence runs phases side by side as their order allows, and returns when all have ended or with the first fatal failure, after the
// others have ended too.
func (a *Agent) runSequence(ctx context.Context, phases []phase) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := map[string]chan struct{}{}
	for _, p := range phases {
		done[p.name] = make(chan struct{})
	}
	var wg sync.WaitGroup
	for _, p := range phases {
		wg.Go(func() {
			defer close(done[p.name])
			for _, name := range p.after {
				select {
				case <-done[name]:
				case <-ctx.Done():
					return
				}
			}
			if ctx.Err() != nil {
				return
			}
			if err := a.runPhase(ctx, p); err != nil && p.fatal {
				cancel(fmt.Errorf("phase %s: %w", p.name, err))
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

func (a *Agent) runPhase(ctx context.Context, p phase) (err error) {
	start := time.Now()
	a.console.say("%-9s START", p.name)
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("panic: %v", panicked)
		}
		took := time.Since(start)
		report := &pb.BootPhase{Name: p.name, Ok: err == nil, Seconds: took.Seconds()}
		switch {
		case err == nil:
			a.console.say("%-9s DONE %.2f s", p.name, took.Seconds())
		case ctx.Err() != nil && errors.Is(err, ctx.Err()):
			a.console.say("%-9s STOPPED %.2f s", p.name, took.Seconds())
		default:
			a.console.say("%-9s FAILED %.2f s: %v", p.name, took.Seconds(), err)
			report.Error = plain(err.Error())
		}
		a.reporter.add("", "", &pb.Report{Body: &pb.Report_BootPhase{BootPhase: report}})
	}()
	return p.run(ctx)
}
