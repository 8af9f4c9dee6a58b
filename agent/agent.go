package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	pb "bloomery/api/bloomery/v1"
	"bloomery/images"
	"bloomery/inventory"
	"bloomery/network"
)

const (
	rebootDelay   = 60 * time.Second
	petEvery      = 10 * time.Second
	watchdogGrace = 60 * time.Second
	// Switches that speak LLDP on a fresh link do so within a second; waiting for the others (30 s) would hold up every install.
	listenWait = 3 * time.Second
)

// Options are what an agent is made of; Main gives the real things, tests give fakes.
type Options struct {
	Config    Config
	Version   string
	System    System
	Hardware  Hardware
	Installer Installer
	// Watchdog may be nil.
	Watchdog Watchdog
	// Console gets lines for people; secrets never go there.
	Console io.Writer
	// Log gets JSON lines.
	Log io.Writer
	// RefusedRetry is the pause after a coordinator refused this machine; 0 means 30 s.
	RefusedRetry time.Duration
}

// Agent boots a machine and runs its steps.
type Agent struct {
	options    Options
	bootID     string
	console    *console
	log        *slog.Logger
	connection *connection
	enroller   *enroller
	reporter   *reporter
	runner     *runner

	// driversDone is closed when every driver was loaded; disks may be missing before.
	driversDone chan struct{}
	// neighbours is what the switches said of themselves right after the links came up.
	neighbours *future[map[string]network.Neighbour]
	// damage is what is known to be wrong with the agent image.
	damage atomic.Pointer[error]

	// lifetime is Run's context: what outlives a phase ends with it.
	lifetime   context.Context
	background sync.WaitGroup
}

// New makes an agent with a boot id of its own. Nothing happens before Run.
func New(o Options) (*Agent, error) {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return nil, fmt.Errorf("make a boot id: %w", err)
	}
	if o.RefusedRetry == 0 {
		o.RefusedRetry = refusedBackoff
	}
	a := &Agent{options: o, bootID: hex.EncodeToString(id), console: newConsole(o.Console), driversDone: make(chan struct{}), neighbours: newFuture[map[string]network.Neighbour]()}
	a.connection = newConnection(o.Config.Coordinators, o.Config.CA)
	quiet := slog.New(slog.NewJSONHandler(o.Log, &slog.HandlerOptions{Level: slog.LevelDebug})).With("boot_id", a.bootID)
	a.reporter = newReporter(func(ctx context.Context, batch []*pb.Report) (int64, error) {
		return a.connection.report(ctx, a.bootID, batch)
	}, quiet, a.console.say)
	a.log = slog.New(&reportingHandler{Handler: quiet.Handler(), reporter: a.reporter})
	a.enroller = &enroller{connection: a.connection, identity: a.identity, bootID: a.bootID, version: o.Version, say: a.console.say, refused: o.RefusedRetry}
	a.runner = &runner{agent: a, finished: map[string]*pb.StepFinished{}, configured: map[string]installedKernel{}}
	return a, nil
}

// Run boots the machine and runs steps until ctx ends. When the boot fails for good it says why, waits a minute for people to read it, and
// restarts the machine. Everything it started has ended when it returns.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer a.background.Wait()
	defer cancel()
	a.lifetime = ctx
	a.console.say("bloomery agent %s, boot %s", a.options.Version, a.bootID)
	a.background.Go(func() { a.petWatchdog(ctx) })
	err := a.runSequence(ctx, a.sequence())
	if ctx.Err() != nil {
		return ctx.Err()
	}
	a.console.say("FATAL %v", err)
	a.console.say("restarting in %.0f s", rebootDelay.Seconds())
	if !sleep(ctx, rebootDelay) {
		return ctx.Err()
	}
	return errors.Join(err, a.reboot())
}

func (a *Agent) identity(ctx context.Context) (identity, error) {
	inv, err := a.options.Hardware.Collect(ctx)
	if err != nil {
		return identity{}, err
	}
	return identify(inv)
}

func (a *Agent) mounts(ctx context.Context) error {
	if err := a.options.System.Mount(ctx); err != nil {
		return err
	}
	a.checkImage(ctx, false)
	return nil
}

func (a *Agent) drivers(ctx context.Context) error {
	defer close(a.driversDone)
	return a.options.System.LoadDrivers(ctx)
}

func (a *Agent) links(ctx context.Context) error {
	err := a.options.System.Network(ctx, a.lifetime, func(line string) { a.console.say("%s", line) })
	if err != nil {
		return err
	}
	a.background.Go(func() { a.listen(a.lifetime) })
	return nil
}

// listen hears what the switches say of themselves while the boot goes on, so that no inspection waits for it.
func (a *Agent) listen(ctx context.Context) {
	inv, err := a.options.Hardware.Collect(ctx)
	if err != nil {
		a.neighbours.set(nil, err)
		return
	}
	var interfaces []string
	for _, nic := range inv.NICs {
		if nic.Link {
			interfaces = append(interfaces, nic.Name)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, listenWait)
	defer cancel()
	a.neighbours.set(a.options.Hardware.Neighbours(ctx, interfaces))
}

func (a *Agent) clock(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10}}
	moved, err := setClock(ctx, client, a.options.Config.TimeURLs, a.options.Config.BuildDate, a.options.System.SetTime)
	a.reporter.shift(moved)
	return err
}

func (a *Agent) enrol(ctx context.Context) error {
	response, err := a.enroller.enrol(ctx)
	if err != nil {
		return err
	}
	a.console.say("this machine is %s", plain(response.Machine))
	ctx = a.lifetime
	a.background.Go(func() { a.enroller.renew(ctx, response.NotAfter.AsTime()) })
	a.background.Go(func() { a.reporter.run(ctx) })
	if a.damage.Load() == nil {
		a.background.Go(func() { a.checkImage(ctx, true) })
	}
	return nil
}

// inventory shows early on the console what there is; steps read it anew.
func (a *Agent) inventory(ctx context.Context) error {
	inv, err := a.options.Hardware.Collect(ctx)
	if err != nil {
		return err
	}
	for _, d := range inv.Disks {
		a.console.say("disk %s: serial %q, %.1f GB, %s", d.Name, d.Serial, float64(d.SizeBytes)/1e9, d.Transport)
	}
	for _, p := range inv.Problems {
		a.console.say("inventory: %s: %s", p.Component, p.Message)
	}
	return nil
}

func (a *Agent) jobs(ctx context.Context) error { return a.runner.run(ctx) }

// checkImage looks for files of the image that did not arrive. An agent that lacks a part of itself still enrols, to tell the coordinator, and
// refuses steps that change disks.
func (a *Agent) checkImage(ctx context.Context, deep bool) {
	err := a.options.System.CheckFiles(ctx, deep)
	if err == nil || ctx.Err() != nil {
		return
	}
	a.damage.Store(&err)
	a.console.say("FAILED self-check: %v", err)
	a.log.Error("self-check of the agent image failed", "error", err)
}

// collect reads the machine anew once every driver was loaded.
func (a *Agent) collect(ctx context.Context) (*inventory.Inventory, error) {
	select {
	case <-a.driversDone:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return a.options.Hardware.Collect(ctx)
}

// leave ends the agent's time on this machine. It returns only when the restart failed or ctx ended.
func (a *Agent) leave(ctx context.Context, kexec bool) error {
	if kexec {
		a.console.say("handing over: starting the installed kernel")
		a.prepareRestart()
		err := a.options.System.Kexec()
		if err == nil {
			<-ctx.Done()
			return ctx.Err()
		}
		a.console.say("the installed kernel did not start: %v", err)
		a.log.Warn("kexec failed, the firmware is used instead", "error", err)
	}
	a.console.say("handing over: restarting into the installed system")
	if err := a.reboot(); err != nil {
		return fmt.Errorf("restart: %w", err)
	}
	<-ctx.Done()
	return ctx.Err()
}

// source is where images come from, with the present certificate.
func (a *Agent) source() images.Source {
	return &images.HTTPSource{BaseURLs: a.options.Config.Coordinators, Client: a.connection.current().data}
}

func (a *Agent) reboot() error {
	a.prepareRestart()
	return a.options.System.Reboot()
}

func (a *Agent) prepareRestart() {
	a.console.flush(2 * time.Second)
	if a.options.Watchdog != nil {
		if err := a.options.Watchdog.Disarm(); err != nil {
			a.log.Warn("watchdog not disarmed", "error", err)
		}
	}
}

// petWatchdog keeps the hardware from restarting the machine while reports go round. The reporter starts with the enrolment, which may take
// for ever on a machine that nobody expects; until then the agent counts as alive.
func (a *Agent) petWatchdog(ctx context.Context) {
	if a.options.Watchdog == nil {
		return
	}
	for {
		if a.reporter.alive(watchdogGrace) || a.connection.current().anonymous {
			if err := a.options.Watchdog.Pet(); err != nil {
				a.log.Warn("watchdog not petted", "error", err)
				return
			}
		}
		if !sleep(ctx, petEvery) {
			return
		}
	}
}

// future is a value that is set once.
type future[T any] struct {
	done  chan struct{}
	value T
	err   error
}

func newFuture[T any]() *future[T] { return &future[T]{done: make(chan struct{})} }

func (f *future[T]) set(value T, err error) {
	f.value, f.err = value, err
	close(f.done)
}

func (f *future[T]) get(ctx context.Context) (T, error) {
	select {
	case <-f.done:
		return f.value, f.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}
