package coordinator

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/api/webhook"
)

// receiver is an information system: it verifies each delivery and does what the test says with it.
type receiver struct {
	t      *testing.T
	server *httptest.Server

	mu     sync.Mutex
	secret []byte
	// act answers a delivery that was verified; nil takes it.
	act func(w http.ResponseWriter, r *http.Request, sequence int64, try int)
	// taken are the sequence numbers that were answered with 204, in order; tries counts all deliveries of one.
	taken []int64
	tries map[int64]int
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{t: t, tries: map[int64]int{}}
	r.server = httptest.NewServer(r)
	t.Cleanup(r.server.Close)
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	body, err := io.ReadAll(q.Body)
	if err != nil {
		r.t.Errorf("read a delivery: %v", err)
		return
	}
	r.mu.Lock()
	secret, act := r.secret, r.act
	r.mu.Unlock()
	if err := webhook.Verify(secret, q.Header.Get(webhook.SignatureHeader), body, time.Now(), time.Minute); err != nil {
		r.t.Errorf("delivery: %v", err)
	}
	if q.Header.Get("Content-Type") != "application/cloudevents+json" || q.Method != http.MethodPost {
		r.t.Errorf("delivery: %s %v", q.Method, q.Header)
	}
	var e cloudEvent
	if err := json.Unmarshal(body, &e); err != nil || e.SpecVersion != "1.0" || e.ID != fmt.Sprintf("test/%d", e.Data.Sequence) || e.Source != "/bloomery/racks/test" {
		r.t.Errorf("delivery is no CloudEvent of the rack: %v %s", err, body)
	}
	r.mu.Lock()
	r.tries[e.Data.Sequence]++
	try := r.tries[e.Data.Sequence]
	r.mu.Unlock()
	status := &statusWriter{ResponseWriter: w}
	if act != nil {
		act(status, q, e.Data.Sequence, try)
	}
	if status.status == 0 {
		r.mu.Lock()
		r.taken = append(r.taken, e.Data.Sequence)
		r.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (r *receiver) got() []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.taken)
}

func (r *rack) webhooks() bloomeryv1connect.WebhookServiceClient {
	return bloomeryv1connect.NewWebhookServiceClient(r.operator().http, "https://"+r.api)
}

// addWebhook adds one that wants jobs' events from the beginning, unless told otherwise.
func (r *rack) addWebhook(to *receiver, name string, prefixes ...string) {
	r.t.Helper()
	to.mu.Lock() // the first delivery may come before its secret
	defer to.mu.Unlock()
	after := int64(0)
	answer, err := r.webhooks().AddWebhook(r.life, connect.NewRequest(&bloomeryv1.AddWebhookRequest{
		Webhook: &bloomeryv1.Webhook{Name: name, Url: to.server.URL + "/events", TypePrefixes: prefixes}, After: &after,
	}))
	must(r.t, err)
	to.secret, err = base64.StdEncoding.DecodeString(answer.Msg.GetSecret())
	must(r.t, err)
	if len(to.secret) != secretBytes {
		r.t.Errorf("secret of %d bytes", len(to.secret))
	}
}

// happen stores n events and returns the numbers of all events of their type.
func (r *rack) happen(n int) []int64 {
	r.t.Helper()
	for i := range n {
		must(r.t, r.c.update(r.life, func(ch *change) error {
			return ch.note(&bloomeryv1.Event{Type: "agent.log", Machine: "m1", Message: fmt.Sprintf("event %d", i)}, map[string]any{"i": i})
		}))
	}
	return r.numbers("agent.log")
}

func (r *rack) numbers(prefix string) []int64 {
	r.t.Helper()
	answer, err := r.operator().events.ListEvents(r.life, connect.NewRequest(&bloomeryv1.ListEventsRequest{Filter: &bloomeryv1.EventFilter{TypePrefix: prefix}}))
	must(r.t, err)
	var all []int64
	for _, e := range answer.Msg.GetEvents() {
		all = append(all, e.GetSequence())
	}
	return all
}

// eventually waits until ok holds; a test that waits in vain fails after a time that no healthy run needs.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain: %s", what)
		}
	}
}

func TestWebhookDeliversInOrder(t *testing.T) {
	r := newRack(t)
	to := newReceiver(t)
	r.happen(3)
	r.addWebhook(to, "infosys", "agent.")
	want := r.happen(5)
	eventually(t, "all events", func() bool { return len(to.got()) >= len(want) })
	if got := to.got(); !slices.Equal(got, want) {
		t.Errorf("delivered %v, want %v", got, want)
	}
	eventually(t, "no lag", func() bool {
		all, err := r.webhooks().ListWebhooks(r.life, connect.NewRequest(&bloomeryv1.ListWebhooksRequest{}))
		must(t, err)
		return all.Msg.GetWebhooks()[0].GetLag() == 0
	})
	answer, err := r.webhooks().TestWebhook(r.life, connect.NewRequest(&bloomeryv1.TestWebhookRequest{Name: "infosys"}))
	must(t, err)
	if answer.Msg.GetHttpStatus() != http.StatusNoContent || answer.Msg.GetError() != "" {
		t.Errorf("test: %v", answer.Msg)
	}
	if tested := r.numbers("webhook.test"); len(tested) != 1 || !slices.Contains(to.got(), tested[0]) {
		t.Errorf("the receiver got %v, the test was %v", to.got(), tested)
	}
	_, err = r.webhooks().RemoveWebhook(r.life, connect.NewRequest(&bloomeryv1.RemoveWebhookRequest{Name: "infosys"}))
	must(t, err)
	_, err = r.webhooks().TestWebhook(r.life, connect.NewRequest(&bloomeryv1.TestWebhookRequest{Name: "infosys"}))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("a removed webhook: %v", err)
	}
}

// TestWebhookReceiverMisbehaves lets each of the first events fail in another way once.
func TestWebhookReceiverMisbehaves(t *testing.T) {
	r := newRack(t)
	to := newReceiver(t)
	want := r.happen(6)
	to.act = func(w http.ResponseWriter, q *http.Request, sequence int64, try int) {
		if try > 1 {
			return
		}
		switch slices.Index(want, sequence) {
		case 0:
			w.WriteHeader(http.StatusInternalServerError)
		case 1: // closes without an answer
			w.(*statusWriter).status = -1
			panic(http.ErrAbortHandler)
		case 2: // dies in the middle of its answer
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(http.StatusOK)
			_, _ = w.Write([]byte("half"))
			panic(http.ErrAbortHandler)
		case 3: // sends somebody else
			w.Header().Set("Location", "http://127.0.0.1:1/")
			w.WriteHeader(http.StatusTemporaryRedirect)
		case 4: // talks without end
			w.WriteHeader(http.StatusOK)
			for range 100 {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}
	}
	r.addWebhook(to, "infosys", "agent.")
	// The long answer was a yes whose end nobody needs.
	taken := slices.DeleteFunc(slices.Clone(want), func(n int64) bool { return n == want[4] })
	eventually(t, "all events", func() bool { return len(to.got()) >= len(taken) })
	if got := to.got(); !slices.Equal(got, taken) {
		t.Errorf("delivered %v, want %v", got, taken)
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	if to.tries[want[5]] != 1 || to.tries[want[0]] != 2 || to.tries[want[3]] != 2 || to.tries[want[4]] != 1 {
		t.Errorf("tries %v", to.tries)
	}
}

func TestWebhookDeadLetters(t *testing.T) {
	r := newRack(t)
	to := newReceiver(t)
	want := r.happen(4)
	var well sync.Map
	to.act = func(w http.ResponseWriter, _ *http.Request, sequence int64, _ int) {
		if _, ok := well.Load("now"); !ok && (sequence == want[1] || sequence == want[2]) {
			w.WriteHeader(http.StatusUnprocessableEntity)
		}
	}
	r.addWebhook(to, "infosys", "agent.")
	eventually(t, "the others", func() bool { return slices.Equal(to.got(), []int64{want[0], want[3]}) })
	list := func() []*bloomeryv1.DeadLetter {
		answer, err := r.webhooks().ListDeadLetters(r.life, connect.NewRequest(&bloomeryv1.ListDeadLettersRequest{Webhook: "infosys", PageSize: 1}))
		must(t, err)
		all := answer.Msg.GetDeadLetters()
		if token := answer.Msg.GetNextPageToken(); token != "" {
			answer, err = r.webhooks().ListDeadLetters(r.life, connect.NewRequest(&bloomeryv1.ListDeadLettersRequest{Webhook: "infosys", PageToken: token}))
			must(t, err)
			all = append(all, answer.Msg.GetDeadLetters()...)
		}
		return all
	}
	letters := list()
	if len(letters) != 2 || letters[0].GetEvent().GetSequence() != want[1] || letters[1].GetEvent().GetMessage() != "event 2" || !strings.Contains(letters[0].GetError(), "422") {
		t.Fatalf("dead letters: %v", letters)
	}
	if n := len(r.numbers("webhook.gave_up")); n != 1 {
		t.Errorf("%d events about two letters, want one", n)
	}
	retry := func() {
		answer, err := r.webhooks().RetryDeadLetters(r.life, connect.NewRequest(&bloomeryv1.RetryDeadLettersRequest{Webhook: "infosys"}))
		must(t, err)
		if answer.Msg.GetRetried() != 2 {
			t.Errorf("%d letters are tried again", answer.Msg.GetRetried())
		}
	}
	retry()
	eventually(t, "letters that fail again", func() bool {
		return len(list()) == 2 && list()[0].GetTries() == 2 && list()[1].GetTries() == 2
	})
	well.Store("now", true)
	retry()
	eventually(t, "letters that are delivered", func() bool { return len(list()) == 0 })
	if got := to.got(); !slices.Equal(got, []int64{want[0], want[3], want[1], want[2]}) {
		t.Errorf("delivered %v", got)
	}
}

// TestWebhookSurvivesItsCoordinator ends the coordinator's life again and again while it delivers: events may come twice, none is left out.
func TestWebhookSurvivesItsCoordinator(t *testing.T) {
	r := newRack(t)
	to := newReceiver(t)
	to.act = func(http.ResponseWriter, *http.Request, int64, int) { time.Sleep(2 * time.Millisecond) }
	r.addWebhook(to, "infosys", "agent.")
	var want []int64
	for range 3 {
		want = r.happen(30)
		r.halt()
		r.start()
	}
	eventually(t, "the last event", func() bool {
		got := to.got()
		return len(got) > 0 && got[len(got)-1] == want[len(want)-1]
	})
	var first []int64
	for _, n := range to.got() {
		if len(first) == 0 || n > first[len(first)-1] {
			first = append(first, n)
		}
	}
	if !slices.Equal(first, want) {
		t.Errorf("delivered for the first time %v, want %v", first, want)
	}
}

func TestWebhookDecisions(t *testing.T) {
	for _, c := range []struct {
		status, failures int
		givenUp          bool
	}{{400, 1, true}, {401, 1, true}, {410, 1, true}, {408, 1, false}, {425, 1, false}, {429, 1, false}, {429, 20, true}, {500, 19, false}, {500, 20, true}, {0, 19, false}, {0, 20, true}, {302, 1, false}} {
		if got := (outcome{status: c.status}).givenUp(c.failures); got != c.givenUp {
			t.Errorf("status %d after %d failures: given up %v", c.status, c.failures, got)
		}
	}
	for _, c := range []struct {
		failures  int
		asked     time.Duration
		low, high time.Duration
	}{{1, 0, 500 * time.Millisecond, time.Second}, {4, 0, 4 * time.Second, 8 * time.Second}, {20, 0, 150 * time.Second, 5 * time.Minute}, {1, time.Minute, time.Minute, time.Minute}, {1, time.Hour, 5 * time.Minute, 5 * time.Minute}, {1 << 30, 0, 150 * time.Second, 5 * time.Minute}} {
		if low, high := retryPause(time.Second, c.failures, c.asked, 0), retryPause(time.Second, c.failures, c.asked, 1); low != c.low || high != c.high {
			t.Errorf("after %d failures: %s to %s, want %s to %s", c.failures, low, high, c.low, c.high)
		}
	}
	for url, ok := range map[string]bool{
		"https://example.org/hook": true, "http://127.0.0.1:80/x": true, "http://10.1.2.3/": true, "http://[fd00::1]/": true, "http://localhost:8080": true, "http://[::1]:1/": true,
		"http://example.org/": false, "http://8.8.8.8/": false, "http://169.254.169.254/latest": false, "ftp://10.0.0.1/": false, "https://": false, "": false, "10.0.0.1": false,
		"https://user:secret@example.org/": false, "https://example.org/#x": false, "https:example.org": false, "https://example.org/" + strings.Repeat("x", 3000): false, "https://exa mple.org": false,
	} {
		if err := checkWebhookURL(url); (err == nil) != ok {
			t.Errorf("%.60q: %v", url, err)
		}
	}
}

// TestWebhookHTTPStaysNear has a name that leads elsewhere: what is dialled counts, not what the URL said.
func TestWebhookHTTPStaysNear(t *testing.T) {
	s := newSender()
	defer s.close()
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	out := s.send(t.Context(), "http://192.0.2.1/", []byte("s"), nil, time.Now())
	if out.err == nil || !strings.Contains(out.err.Error(), "not a loopback or private address") {
		t.Errorf("a public address over http: %+v", out)
	}
}

func TestWebhookHangs(t *testing.T) {
	hang := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-hang }))
	defer server.Close()
	defer close(hang)
	s := newSender()
	defer s.close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if out := s.send(ctx, server.URL, []byte("s"), nil, time.Now()); out.err == nil || out.status != 0 || strings.Contains(out.err.Error(), server.URL) {
		t.Errorf("a receiver that hangs: %+v", out)
	}
}

func TestWebhookRefusals(t *testing.T) {
	r := newRack(t)
	for name, c := range map[string]struct {
		w     *bloomeryv1.Webhook
		after int64
		code  connect.Code
	}{
		"name":   {&bloomeryv1.Webhook{Name: "A b", Url: "https://example.org"}, 0, connect.CodeInvalidArgument},
		"url":    {&bloomeryv1.Webhook{Name: "a", Url: "http://example.org"}, 0, connect.CodeInvalidArgument},
		"prefix": {&bloomeryv1.Webhook{Name: "a", Url: "https://example.org", TypePrefixes: []string{"dreams."}}, 0, connect.CodeInvalidArgument},
		"after":  {&bloomeryv1.Webhook{Name: "a", Url: "https://example.org"}, 1 << 40, connect.CodeInvalidArgument},
	} {
		_, err := r.webhooks().AddWebhook(r.life, connect.NewRequest(&bloomeryv1.AddWebhookRequest{Webhook: c.w, After: &c.after}))
		if connect.CodeOf(err) != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	to := newReceiver(t)
	r.addWebhook(to, "a", "webhook.")
	_, err := r.webhooks().AddWebhook(r.life, connect.NewRequest(&bloomeryv1.AddWebhookRequest{Webhook: &bloomeryv1.Webhook{Name: "a", Url: to.server.URL}}))
	if connect.CodeOf(err) != connect.CodeAlreadyExists {
		t.Errorf("the same name again: %v", err)
	}
}
