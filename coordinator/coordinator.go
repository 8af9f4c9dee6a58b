package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/firmware/bmc"
	"bloomery/images"
	"bloomery/internal/pki"
	"bloomery/netboot"
	"bloomery/network/switchport"
)

// DialBMC opens a machine's BMC; the driver is closed after each action.
type DialBMC func(ctx context.Context, address, username, password string) (bmc.Driver, error)

// DialSwitch opens a switch of the configuration; the driver is closed after each action.
type DialSwitch func(ctx context.Context, s Switch) (switchport.Driver, error)

// Deps is what a coordinator acts through.
type Deps struct {
	Store      *store.Store
	Images     *images.Store
	Authority  *pki.Authority
	DialBMC    DialBMC
	DialSwitch DialSwitch
	// roster is one that is not kept when it is nil.
	roster *roster
	// FetchSegment reads other coordinators' archives; nil asks their APIs.
	FetchSegment FetchSegment
	Logger       *slog.Logger
}

// Coordinator is one coordinator of a rack.
type Coordinator struct {
	Deps
	config  Config
	hub     *hub
	limits  *limits
	types   eventTypes
	archive *archive
	metrics *metrics
	// boot is this coordinator's boot servers, for their counters; nil while there are none.
	boot atomic.Pointer[netboot.Server]
	// sessions holds this coordinator's right to drive jobs and do duties.
	sessions  *sessions
	committer *committer
	leader    *leader
	// permissions is the table of who may call what, by procedure.
	permissions map[string]permission
	started     time.Time
	// backingUp is held while a backup is made.
	backingUp sync.Mutex
	// imageChanges is held where the image store and the rack's catalogue of images are changed together.
	imageChanges sync.Mutex
	// imageKeys is held while the image store is made to go by the database's keys.
	imageKeys sync.Mutex
}

// New makes a coordinator; Handler, Drive and the others make it do something.
func New(config Config, deps Deps) (*Coordinator, error) {
	if config.Events.Keep == 0 {
		config.Events.Keep = DefaultKeepEvents
	}
	if config.Events.ArchiveKeep == 0 {
		config.Events.ArchiveKeep = DefaultArchiveKeep
	}
	if config.Events.Segment == 0 {
		config.Events.Segment = segmentEvents
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Node == "" {
		config.Node = DefaultNode
	}
	if deps.roster == nil {
		deps.roster = &roster{}
	}
	deps.Authority.UseClock(config.Now)
	table := map[string]permission{}
	for _, p := range permissions() {
		table[p.procedure] = p
	}
	c := &Coordinator{
		Deps: deps, config: config, hub: newHub(), limits: newLimits(), types: newEventTypes(), metrics: newMetrics(Version()), sessions: newSessions(), committer: newCommitter(), leader: &leader{},
		permissions: table, started: config.Now(), archive: &archive{dir: filepath.Join(config.Data, archiveFolder), members: presentNodes},
	}
	if c.FetchSegment == nil {
		c.FetchSegment = c.fetchFromPeer
	}
	if err := c.metrics.registry.Register(newCollector(c)); err != nil {
		return nil, fmt.Errorf("register the metrics: %w", err)
	}
	if c.Store != nil {
		c.Store.Observe(c.metrics.storeCall)
	}
	return c, nil
}

// undeclaredEvent is logged when an event was stored that the table does not know: it is kept, and somebody has to add it there.
const undeclaredEvent = "an event is not as EventTypes declares it"

// change is a transaction that remembers whom to wake.
type change struct {
	*store.Tx
	topics map[string]bool
	events []store.KeyedEvent
	// who causes the change; call and records are what its audit event says, when it is a call that is audited.
	who     caller
	call    *call
	records []record
}

func newChange(tx *store.Tx) *change { return &change{Tx: tx, topics: map[string]bool{}} }

// update runs a transaction, and after its commit logs its events and wakes those who wait for what it touched.
func (c *Coordinator) update(ctx context.Context, f func(*change) error) error {
	who := callerOf(ctx)
	if !who.outside {
		who.Name = c.config.Node
	}
	var done *change
	err := c.Store.Update(ctx, func(tx *store.Tx) error {
		done = newChange(tx)
		done.who, done.call = who, callOf(ctx)
		if err := f(done); err != nil {
			return err
		}
		if err := done.audit(); err != nil {
			return err
		}
		return done.flush()
	})
	if err != nil {
		return err
	}
	if done.call != nil {
		done.call.audited.Store(true)
	}
	for _, e := range done.events {
		level := slog.LevelInfo
		switch e.GetSeverity() {
		case bloomeryv1.Severity_SEVERITY_WARNING, bloomeryv1.Severity_SEVERITY_SECURITY:
			level = slog.LevelWarn
		case bloomeryv1.Severity_SEVERITY_ERROR:
			level = slog.LevelError
		}
		if err := c.types.undeclared(e.Event); err != nil {
			c.Logger.Error(undeclaredEvent, "error", err)
		}
		c.metrics.stored(e.Event)
		c.Logger.Log(ctx, level, e.GetMessage(), "event", e.GetType(), "machine", e.GetMachine(), "job", e.GetJobId(), "step", e.GetStepId())
	}
	c.hub.notify(done.topics)
	return nil
}

// flush stores the events of a change.
func (ch *change) flush() error {
	if err := ch.AppendEvents(ch.events); err != nil {
		return fmt.Errorf("store %d events: %w", len(ch.events), err)
	}
	return nil
}

// note appends an event that has no key of its own.
func (ch *change) note(e *bloomeryv1.Event, data map[string]any) error {
	return ch.noteKeyed(e, data, "")
}

func (ch *change) noteKeyed(e *bloomeryv1.Event, data map[string]any, key string) error {
	if e.GetSeverity() == bloomeryv1.Severity_SEVERITY_UNSPECIFIED {
		e.Severity = bloomeryv1.Severity_SEVERITY_INFO
	}
	if e.GetActor() == "" {
		e.Actor, e.Source = ch.who.actor(), ch.who.source()
	}
	if len(data) > 0 {
		s, err := structpb.NewStruct(data)
		if err != nil {
			return fmt.Errorf("event %s: %w", e.GetType(), err)
		}
		e.Data = s
	}
	ch.events = append(ch.events, store.KeyedEvent{Event: e, Key: key})
	ch.topics["events"] = true
	return nil
}

func (ch *change) saveJob(j *store.Job) error { return ch.saveJobs([]*store.Job{j}) }

// saveJobs stores what of jobs has changed. Progress alone concerns those who watch, not those who drive.
func (ch *change) saveJobs(jobs []*store.Job) error {
	for _, j := range jobs {
		ch.topics["progress/"+j.GetId()] = true
		if j.Moved() {
			ch.topics["job/"+j.GetId()] = true
			ch.topics["machine/"+j.GetMachine()] = true
		}
	}
	return ch.SaveJobs(jobs)
}

func (ch *change) saveMachine(m *bloomeryv1.Machine) error {
	ch.touch(m)
	return ch.SaveMachine(m)
}

func (ch *change) createMachine(m *bloomeryv1.Machine, bmcPassword string) error {
	ch.touch(m)
	return ch.CreateMachine(m, bmcPassword)
}

func (ch *change) deleteMachine(m *bloomeryv1.Machine) error {
	ch.touch(m)
	return ch.DeleteMachine(m)
}

func (ch *change) touch(m *bloomeryv1.Machine) {
	ch.topics["machine/"+m.GetName()], ch.topics["machines"] = true, true
}

// move applies a lifecycle event to a machine and notes the new status.
func (ch *change) move(m *bloomeryv1.Machine, event LifecycleEvent, jobID string) error {
	from := m.GetStatus()
	to, err := NextStatus(from, event)
	if err != nil {
		return err
	}
	m.Status = to
	return ch.note(&bloomeryv1.Event{Type: "machine.status", Machine: m.GetName(), JobId: jobID,
		Message: fmt.Sprintf("machine %s is %s", m.GetName(), statusName(to))},
		map[string]any{"from": statusName(from), "to": statusName(to), "event": string(event)})
}

func randomHex(n int) (string, error) {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("make a random id: %w", err)
	}
	return hex.EncodeToString(b), nil
}
