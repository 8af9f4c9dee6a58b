package clustertest

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/api/webhook"
	"bloomery/coordinator"
)

// numbers are the sequence numbers of events in the order in which somebody was told of them.
type numbers struct {
	mu  sync.Mutex
	all []int64
}

func (n *numbers) add(sequence int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.all = append(n.all, sequence)
}

func (n *numbers) list() []int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.all)
}

func (n *numbers) last() int64 {
	if all := n.list(); len(all) > 0 {
		return all[len(all)-1]
	}
	return 0
}

// watch follows all events as the command line does: at the next coordinator when one fails, after the last number that it has seen.
func (r *Rack) watch(ctx context.Context, seen *numbers) {
	var clients []Client
	for _, n := range r.Nodes() {
		clients = append(clients, n.Client())
	}
	for try := 0; ctx.Err() == nil; try++ {
		stream, err := clients[try%len(clients)].Events.WatchEvents(ctx, connect.NewRequest(&bloomeryv1.WatchEventsRequest{After: seen.last()}))
		if err == nil {
			for stream.Receive() {
				seen.add(stream.Msg().GetEvent().GetSequence())
			}
			_ = stream.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stored lists the numbers of all events, page by page.
func (n *Node) stored() []int64 {
	n.rack.t.Helper()
	var all []int64
	n.rack.until("list events at "+n.Name, func(ctx context.Context) error {
		all = nil
		for after := int64(0); ; {
			page, err := n.Client().Events.ListEvents(ctx, connect.NewRequest(&bloomeryv1.ListEventsRequest{After: after}))
			if err != nil {
				return err
			}
			for _, e := range page.Msg.GetEvents() {
				all = append(all, e.GetSequence())
			}
			if after = page.Msg.GetNextAfter(); after == 0 {
				return nil
			}
		}
	})
	return all
}

// receive is an information system that verifies what it gets and remembers the order.
func (r *Rack) receive(secret *atomic.Value, got *numbers) *httptest.Server {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		key, e := base64.StdEncoding.DecodeString(fmt.Sprint(secret.Load()))
		if err != nil || e != nil || webhook.Verify(key, q.Header.Get(webhook.SignatureHeader), body, time.Now(), time.Minute) != nil {
			r.t.Errorf("a delivery is not signed by the rack: %v %v", err, e)
		}
		var event struct{ Data struct{ Sequence int64 } }
		if err := json.Unmarshal(body, &event); err != nil {
			r.t.Error(err)
		}
		got.add(event.Data.Sequence)
		w.WriteHeader(http.StatusNoContent)
	}))
	r.t.Cleanup(server.Close)
	return server
}

// TestEventsAcrossFailover kills the leading coordinator twice while events come: a watcher sees each event once and in order, a webhook's
// receiver at least once and in order.
func TestEventsAcrossFailover(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three processes and kills some")
	}
	r := Start(t, Options{Nodes: 3, Processes: true})
	var seen, got numbers
	var secret atomic.Value
	receiver := r.receive(&secret, &got)
	after := int64(0)
	c := r.Client()
	// Nothing is delivered before the secret is known: there is no machine yet.
	answer, err := bloomeryv1connect.NewWebhookServiceClient(c.HTTP, c.Base).AddWebhook(t.Context(), connect.NewRequest(&bloomeryv1.AddWebhookRequest{
		Webhook: &bloomeryv1.Webhook{Name: "infosys", Url: receiver.URL, TypePrefixes: []string{"machine."}}, After: &after}))
	ok(t, err)
	secret.Store(answer.Msg.GetSecret())
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { r.watch(ctx, &seen) })
	w := r.write("w")
	for range 2 {
		before := w.count()
		r.until("write", func(context.Context) error { return atLeast(w.count(), before+20) })
		leader := r.Leader()
		leader.Kill()
		r.until("write without the leader", func(context.Context) error { return atLeast(w.count(), before+60) })
		leader.Start()
		r.WaitVoters(3)
	}
	r.check(w)
	all := r.Node("c1").stored()
	r.until("see the last event", func(context.Context) error { return atLeast(int(seen.last()), int(all[len(all)-1])) })
	for i, n := range all {
		if n != int64(i)+1 {
			t.Fatalf("the stored events have a gap: %d is number %d", i+1, n)
		}
	}
	if watched := seen.list(); !slices.Equal(watched[:min(len(watched), len(all))], all) {
		t.Errorf("the watcher saw %d events, %d are stored; they differ at %d", len(watched), len(all), differ(watched, all))
	}
	var machines []int64
	for after := int64(0); ; {
		page, err := r.Client().Events.ListEvents(t.Context(), connect.NewRequest(&bloomeryv1.ListEventsRequest{After: after, Filter: &bloomeryv1.EventFilter{TypePrefix: "machine."}}))
		ok(t, err)
		for _, e := range page.Msg.GetEvents() {
			machines = append(machines, e.GetSequence())
		}
		if after = page.Msg.GetNextAfter(); after == 0 {
			break
		}
	}
	r.until("deliver the last event", func(context.Context) error { return atLeast(int(got.last()), int(machines[len(machines)-1])) })
	var first []int64
	for _, n := range got.list() {
		if len(first) == 0 || n > first[len(first)-1] {
			first = append(first, n)
		}
	}
	if !slices.Equal(first, machines) {
		t.Errorf("the receiver got %d events for the first time, %d are stored; they differ at %d", len(first), len(machines), differ(first, machines))
	}
	t.Logf("%d events watched; %d of %d deliveries were repeats", len(all), len(got.list())-len(first), len(got.list()))
}

func atLeast(have, want int) error {
	if have < want {
		return fmt.Errorf("%d of %d", have, want)
	}
	return nil
}

func differ(a, b []int64) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

var inDatabase = regexp.MustCompile(`(?m)^bloomery_events_in_database (\d+)$`)

// events counts the events in the database, as a scrape shows it.
func (n *Node) events(ctx context.Context) (int, error) {
	c := n.Client()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.Base+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	response, err := c.HTTP.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err
	}
	m := inDatabase.FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("no count of events: %s", response.Status)
	}
	return strconv.Atoi(string(m[1]))
}

func (n *Node) verify(ctx context.Context) (*bloomeryv1.VerifyArchiveResponse, error) {
	answer, err := n.Client().Events.VerifyArchive(ctx, connect.NewRequest(&bloomeryv1.VerifyArchiveRequest{}))
	if err != nil {
		return nil, err
	}
	return answer.Msg, nil
}

// TestArchiveIsFetchedFromOthers has one coordinator away while events leave the database: it gets them from another one.
func TestArchiveIsFetchedFromOthers(t *testing.T) {
	r := Start(t, Options{Nodes: 3, Configure: func(c *coordinator.Config) {
		c.Events = coordinator.Events{Keep: 10, Segment: 20}
		c.Timing.Archive = 50 * time.Millisecond
	}})
	c1, c3 := r.Node("c1"), r.Node("c3")
	c3.Stop()
	w := r.write("a")
	r.until("write", func(context.Context) error { return atLeast(w.count(), 40) })
	w.stop()
	<-w.done
	r.until("move events out of the database", func(ctx context.Context) error {
		n, err := c1.events(ctx)
		if err == nil && n >= 40 {
			err = fmt.Errorf("%d events are in the database", n)
		}
		return err
	})
	c3.Start()
	r.until("fetch the archive", func(ctx context.Context) error {
		here, err := c1.verify(ctx)
		if err != nil {
			return err
		}
		there, err := c3.verify(ctx)
		if err == nil && (there.GetEvents() < 40 || there.GetEvents() < here.GetEvents() || len(there.GetProblems()) > 0) {
			err = fmt.Errorf("c3 has %v, c1 %v", there, here)
		}
		return err
	})
	for _, n := range r.Nodes() {
		if all := n.stored(); differ(all, c1.stored()) < len(all) {
			t.Errorf("%s lists other events than c1", n.Name)
		}
	}
	// A file that rots is fetched from another.
	files, err := filepath.Glob(filepath.Join(c3.Config.Data, "archive", "events-*"))
	ok(t, err)
	ok(t, os.WriteFile(files[0], []byte("rotten"), 0o600))
	r.until("mend the archive", func(ctx context.Context) error {
		state, err := c3.verify(ctx)
		if err == nil && len(state.GetProblems()) > 0 {
			err = fmt.Errorf("%v", state.GetProblems())
		}
		return err
	})
	if data, err := os.ReadFile(files[0]); err != nil || string(data) == "rotten" {
		t.Errorf("the rotten file is still there: %v", err)
	}
}
