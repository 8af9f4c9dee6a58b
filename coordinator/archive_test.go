package coordinator

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

// archivists are coordinators with one database and an archive each.
type archivists struct {
	t     *testing.T
	db    *store.Store
	nodes map[string]*Coordinator
	// cut are those that the others cannot reach.
	cut map[string]bool
}

func newArchivists(t *testing.T, names ...string) *archivists {
	t.Helper()
	dir := t.TempDir()
	db, err := store.Open(t.Context(), store.Options{Dir: filepath.Join(dir, "dqlite"), SecretFile: filepath.Join(dir, "key"), Logger: testLogger(t)})
	must(t, err)
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	must(t, pki.InitRack(filepath.Join(dir, "pki"), pki.InitOptions{Name: "test", ServerAddresses: []string{"127.0.0.1"}, OperatorName: "anna"}))
	authority, err := pki.LoadAuthority(filepath.Join(dir, "pki"))
	must(t, err)
	a := &archivists{t: t, db: db, nodes: map[string]*Coordinator{}, cut: map[string]bool{}}
	for _, name := range names {
		c, err := New(Config{Node: name, Data: filepath.Join(dir, name), Timing: testTiming(), Events: Events{Keep: 10, Segment: 20}}, Deps{Store: db, Authority: authority, Logger: testLogger(t), FetchSegment: a.fetch})
		must(t, err)
		a.nodes[name] = c
	}
	return a
}

func (a *archivists) fetch(_ context.Context, node, file string) (io.ReadCloser, error) {
	if a.cut[node] {
		return nil, errors.New("no route to host")
	}
	return os.Open(filepath.Join(a.nodes[node].archive.dir, file))
}

func (a *archivists) happen(c *Coordinator, n int) {
	a.t.Helper()
	for i := range n {
		must(a.t, c.update(a.t.Context(), func(ch *change) error {
			return ch.note(&bloomeryv1.Event{Type: "agent.log", Machine: []string{"m1", "m2"}[i%2], Message: fmt.Sprintf("<event> %d", i)}, map[string]any{"i": i, "nested": map[string]any{"z": 0.1, "a": []any{"x", nil}}})
		}))
	}
}

func (a *archivists) pass(c *Coordinator) {
	a.t.Helper()
	if err := c.archivePass(a.t.Context()); err != nil {
		a.t.Errorf("archive pass of %s: %v", c.config.Node, err)
	}
}

// forget deletes what may be deleted, as who has the duty.
func (a *archivists) forget(c *Coordinator) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), 20*time.Second)
	defer cancel()
	driven, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- c.Drive(driven) }()
	done := false
	c.hold(ctx, archiveDuty, func(ctx context.Context, f store.Fence) error {
		done = true
		defer cancel()
		return c.forgetPass(ctx, f)
	})
	stop()
	must(a.t, <-ended)
	if !done {
		a.t.Error("the duty was never held")
	}
}

func (a *archivists) read(c *Coordinator, f store.EventFilter) []*bloomeryv1.Event {
	a.t.Helper()
	if f.Limit == 0 {
		f.Limit = 10_000
	}
	events, err := c.events(a.t.Context(), f)
	must(a.t, err)
	return events
}

func (a *archivists) oldest() (sequence int64) {
	a.t.Helper()
	must(a.t, a.db.View(a.t.Context(), func(r *store.Reader) (err error) {
		sequence, err = r.OldestEvent()
		return err
	}))
	return sequence
}

func TestEventsAreReadThroughArchiveAndDatabase(t *testing.T) {
	a := newArchivists(t, "c1")
	c := a.nodes["c1"]
	a.happen(c, 95)
	before := a.read(c, store.EventFilter{})
	a.pass(c)
	a.forget(c)
	if got := a.oldest(); got != 81 {
		t.Errorf("the oldest event in the database is %d, want 81: four segments of 20 are archived", got)
	}
	if d := cmp.Diff(before, a.read(c, store.EventFilter{}), protocmp.Transform()); d != "" {
		t.Errorf("events changed on their way through the archive (-before +after):\n%s", d)
	}
	for _, f := range []store.EventFilter{
		{After: 19}, {After: 20}, {After: 79}, {After: 80}, {After: 94}, {After: 95}, {Machine: "m2"}, {Machine: "m2", After: 33, Limit: 5}, {TypePrefix: "agent", Limit: 81}, {TypePrefix: "job"}, {Limit: 80}, {Since: before[50].GetTime().AsTime()}, {Since: time.Now().Add(time.Hour)},
	} {
		var want []*bloomeryv1.Event
		for _, e := range before {
			if chosen(f, e) && (f.Limit == 0 || len(want) < f.Limit) {
				want = append(want, e)
			}
		}
		if d := cmp.Diff(want, a.read(c, f), protocmp.Transform()); d != "" {
			t.Errorf("%+v:\n%s", f, d)
		}
	}
	// Page by page over the API, as the command line does.
	var pages []*bloomeryv1.Event
	for after := int64(0); ; {
		answer, err := c.ListEvents(t.Context(), connect.NewRequest(&bloomeryv1.ListEventsRequest{After: after, PageSize: 7}))
		must(t, err)
		pages = append(pages, answer.Msg.GetEvents()...)
		if after = answer.Msg.GetNextAfter(); after == 0 {
			break
		}
	}
	if d := cmp.Diff(before, pages, protocmp.Transform()); d != "" {
		t.Errorf("pages:\n%s", d)
	}
	state, err := c.verifyArchive(t.Context())
	must(t, err)
	if state.segments != 4 || state.events != 80 || state.first != 1 || state.last != 80 || len(state.problems) != 0 {
		t.Errorf("verified: %+v", state)
	}
}

// TestEventsLeaveTheDatabaseOnlyWithAMajority has three coordinators on record, of which one or two have archived.
func TestEventsLeaveTheDatabaseOnlyWithAMajority(t *testing.T) {
	a := newArchivists(t, "c1", "c2", "c3")
	c1, c2, c3 := a.nodes["c1"], a.nodes["c2"], a.nodes["c3"]
	for _, c := range a.nodes {
		c.archive.members = func(*store.Reader) ([]string, error) { return []string{"c1", "c2", "c3"}, nil }
	}
	a.happen(c1, 50)
	a.pass(c1)
	a.forget(c1)
	if got := a.oldest(); got != 1 {
		t.Errorf("events before %d are gone, one copy is no majority of three", got)
	}
	a.pass(c2)
	a.forget(c2)
	if got := a.oldest(); got != 41 {
		t.Errorf("the oldest event is %d, want 41", got)
	}
	// The third was away. What the database does not hold any more comes from another.
	a.cut["c1"] = true
	a.pass(c3)
	for name, c := range a.nodes {
		if state, err := c.verifyArchive(t.Context()); err != nil || state.events != 40 || len(state.problems) != 0 {
			t.Errorf("%s: %+v %v", name, state, err)
		}
	}
	files := func(c *Coordinator) [][]byte {
		var all [][]byte
		segments, err := c.segments(t.Context(), 0)
		must(t, err)
		for _, s := range segments {
			lines, err := readSegmentFile(c.archive.dir, s)
			must(t, err)
			all = append(all, lines)
		}
		return all
	}
	if !slices.EqualFunc(files(c1), files(c2), bytes.Equal) || !slices.EqualFunc(files(c1), files(c3), bytes.Equal) {
		t.Error("the coordinators' archives differ")
	}
}

func TestCorruptArchiveIsNamedAndFetchedAgain(t *testing.T) {
	a := newArchivists(t, "c1", "c2")
	c1, c2 := a.nodes["c1"], a.nodes["c2"]
	a.happen(c1, 70)
	a.pass(c1)
	a.pass(c2)
	a.forget(c1)
	segments, err := c1.segments(t.Context(), 0)
	must(t, err)
	want := a.read(c1, store.EventFilter{})
	path := filepath.Join(c1.archive.dir, segmentName(segments[1]))
	sound, err := os.ReadFile(path)
	must(t, err)
	for name, data := range map[string][]byte{
		"a flipped bit": append(append(slices.Clone(sound[:40]), sound[40]^1), sound[41:]...),
		"truncated":     sound[:len(sound)/2],
		"empty":         {},
		"another's":     []byte("no zstd at all"),
	} {
		must(t, os.WriteFile(path, data, 0o600))
		c1.archive.decoded = nil
		if d := cmp.Diff(want, a.read(c1, store.EventFilter{Limit: 70}), protocmp.Transform()); d != "" {
			t.Errorf("%s: events read through a corrupt file:\n%s", name, d)
		}
		if again, err := readSegmentFile(c1.archive.dir, segments[1]); err != nil {
			t.Errorf("%s: the file was not replaced: %v %d", name, err, len(again))
		}
	}
	found := a.read(c1, store.EventFilter{TypePrefix: "archive.corrupt"})
	if len(found) != 4 || !strings.Contains(found[0].GetMessage(), path) {
		t.Errorf("events about the corrupt file: %v", found)
	}
	// The same file is corrupt, and nobody else can be reached.
	a.cut["c2"] = true
	must(t, os.WriteFile(path, sound[:40], 0o600))
	c1.archive.decoded = nil
	if _, err := c1.events(t.Context(), store.EventFilter{Limit: 70}); err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "coordinator c2") {
		t.Errorf("unreadable events were left out, or not named: %v", err)
	}
	state, err := c1.verifyArchive(t.Context())
	must(t, err)
	if len(state.problems) == 0 || !strings.Contains(state.problems[0], path) {
		t.Errorf("verified: %+v", state)
	}
}

func TestChainShowsAChangedRecord(t *testing.T) {
	a := newArchivists(t, "c1")
	c := a.nodes["c1"]
	a.happen(c, 70)
	a.pass(c)
	// Somebody rewrites history: the file of the next segment and its checksum fit each other, but it was linked to another past.
	events := a.read(c, store.EventFilter{After: 60, UpTo: 70})
	lines, err := encodeSegment(events)
	must(t, err)
	sum := sha256.Sum256(lines)
	forged := &store.Segment{First: 61, Last: 70, Events: len(events), SHA256: sum[:], Chain: chainValue(make([]byte, sha256.Size), sum[:])}
	must(t, writeSegmentFile(c.archive.dir, forged, lines))
	must(t, a.db.Update(t.Context(), func(tx *store.Tx) error { return tx.AddSegment(forged, "c1") }))
	state, err := c.verifyArchive(t.Context())
	must(t, err)
	if len(state.problems) != 1 || !strings.Contains(state.problems[0], "chain is broken at the segment of events 61 to 70") {
		t.Errorf("verified: %+v", state)
	}
}

func TestOldSegmentsAreDropped(t *testing.T) {
	a := newArchivists(t, "c1")
	c := a.nodes["c1"]
	a.happen(c, 75)
	a.pass(c)
	segments, err := c.segments(t.Context(), 0)
	must(t, err)
	c.config.Now = func() time.Time { return segments[1].Newest.Add(c.config.Events.ArchiveKeep + time.Millisecond) }
	a.forget(c)
	a.pass(c)
	events := a.read(c, store.EventFilter{})
	if events[0].GetSequence() != 41 {
		t.Errorf("the oldest event is %d, want 41", events[0].GetSequence())
	}
	entries, err := os.ReadDir(c.archive.dir)
	must(t, err)
	if len(entries) != 1 {
		t.Errorf("files in the archive: %v", entries)
	}
	state, err := c.verifyArchive(t.Context())
	must(t, err)
	if state.first != 41 || state.last != 60 || len(state.problems) != 0 {
		t.Errorf("verified: %+v", state)
	}
}

func TestWatchGoesOnThroughTheArchive(t *testing.T) {
	r := newRack(t)
	r.halt()
	r.config.Events = Events{Keep: 10, Segment: 20}
	r.config.Timing.Archive = 20 * time.Millisecond
	r.start()
	r.happen(100)
	eventually(t, "events that leave the database", func() bool {
		var oldest int64
		must(t, r.db.View(r.life, func(s *store.Reader) (err error) {
			oldest, err = s.OldestEvent()
			return err
		}))
		return oldest > 60
	})
	stream, err := r.operator().events.WatchEvents(r.life, connect.NewRequest(&bloomeryv1.WatchEventsRequest{After: 5}))
	must(t, err)
	defer stream.Close()
	for want := int64(6); want <= 100; want++ {
		if !stream.Receive() {
			t.Fatalf("the watch ended: %v", stream.Err())
		}
		if got := stream.Msg().GetEvent().GetSequence(); got != want {
			t.Fatalf("event %d came, want %d", got, want)
		}
	}
}

func TestArchivedUpTo(t *testing.T) {
	segment := func(last int64, dropped bool, copies ...string) *store.Segment {
		return &store.Segment{Last: last, Dropped: dropped, Copies: copies}
	}
	for _, c := range []struct {
		name     string
		segments []*store.Segment
		nodes    []string
		want     int64
	}{
		{"none", nil, []string{"a"}, 0},
		{"one node", []*store.Segment{segment(10, false, "a"), segment(20, false, "a")}, []string{"a"}, 20},
		{"one of two", []*store.Segment{segment(10, false, "a")}, []string{"a", "b"}, 0},
		{"two of three", []*store.Segment{segment(10, false, "a", "c"), segment(20, false, "b")}, []string{"a", "b", "c"}, 10},
		{"copies of strangers", []*store.Segment{segment(10, false, "a", "x", "y")}, []string{"a", "b", "c"}, 0},
		{"a hole", []*store.Segment{segment(10, false), segment(20, false, "a")}, []string{"a"}, 0},
		{"dropped", []*store.Segment{segment(10, true), segment(20, false, "a")}, []string{"a"}, 20},
	} {
		if got := archivedUpTo(c.segments, c.nodes); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}

func FuzzDecodeSegment(f *testing.F) {
	data, err := structpb.NewStruct(map[string]any{"a": 1, "b": []any{nil, "x"}})
	if err != nil {
		f.Fatal(err)
	}
	lines, err := encodeSegment([]*bloomeryv1.Event{
		{Sequence: 1, Time: timestamppb.New(time.Unix(1, 2)), Type: "job.done", Message: "<done>", Data: data}, {Sequence: 5, Time: timestamppb.New(time.Unix(3, 0)), Type: "x", Actor: "operator anna", Source: "::1"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(lines)
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"sequence":1,"time":"2026-01-31T12:00:00Z","data":{"a":{}}}`))
	f.Fuzz(func(t *testing.T, lines []byte) {
		events, err := decodeSegment(lines)
		if err != nil {
			return
		}
		again, err := encodeSegment(events)
		if err != nil {
			return
		}
		back, err := decodeSegment(again)
		if err != nil {
			t.Fatalf("what was encoded cannot be decoded: %v\n%s", err, again)
		}
		if d := cmp.Diff(events, back, protocmp.Transform()); d != "" {
			t.Error(d)
		}
	})
}

func TestEventsConfig(t *testing.T) {
	c, err := ParseConfig([]byte(goodConfig))
	must(t, err)
	if c.Events.Keep != DefaultKeepEvents || c.Events.ArchiveKeep != DefaultArchiveKeep {
		t.Errorf("defaults: %+v", c.Events)
	}
	c, err = ParseConfig([]byte(goodConfig + "events: {keep: 2000, archive_keep: 48h}\n"))
	must(t, err)
	if c.Events.Keep != 2000 || c.Events.ArchiveKeep != 48*time.Hour {
		t.Errorf("given: %+v", c.Events)
	}
	for _, bad := range []string{"keep: 0", "keep: 999", "keep: 1000001", "archive_keep: 1h", "archive_keep: soon", "archive_keep: -48h", "colour: red"} {
		if _, err := ParseConfig([]byte(goodConfig + "events: {" + bad + "}\n")); err == nil || !strings.Contains(err.Error(), strings.SplitN(bad, ":", 2)[0]) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
