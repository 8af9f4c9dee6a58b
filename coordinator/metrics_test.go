package coordinator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// scrape asks for the metrics as Prometheus does.
func scrape(t *testing.T, client *http.Client, url string) (string, map[string]*dto.MetricFamily) {
	t.Helper()
	response, err := client.Get(url)
	must(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(t, err)
	if response.StatusCode != http.StatusOK {
		t.Fatalf("scrape: %s %s", response.Status, text)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(string(text)))
	must(t, err)
	return string(text), families
}

// value is a metric's value with the given labels ("status=done"); a histogram's is its count.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) float64 {
	for _, m := range families[name].GetMetric() {
		var have []string
		for _, l := range m.GetLabel() {
			have = append(have, l.GetName()+"="+l.GetValue())
		}
		if slices.ContainsFunc(labels, func(l string) bool { return !slices.Contains(have, l) }) {
			continue
		}
		switch {
		case m.GetHistogram() != nil:
			return float64(m.GetHistogram().GetSampleCount())
		case m.GetCounter() != nil:
			return m.GetCounter().GetValue()
		}
		return m.GetGauge().GetValue()
	}
	return -1
}

func TestMetrics(t *testing.T) {
	r := newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	if j := r.end(r.install(op)); j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Fatalf("install: %s", j.GetError())
	}
	to := newReceiver(t)
	r.addWebhook(to, "infosys", "job.done")
	eventually(t, "two deliveries", func() bool { return len(to.got()) == 2 })
	_, err := op.machines.GetMachine(r.life, connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: "none"}))
	if connect.CodeOf(err) != connect.CodeNotFound {
		t.Error(err)
	}
	text, families := scrape(t, op.http, "https://"+r.api+"/metrics")
	for _, want := range []struct {
		name   string
		labels []string
		value  float64
	}{
		{"bloomery_store_up", nil, 1},
		{"bloomery_machines", []string{"status=running"}, 1},
		{"bloomery_jobs", []string{"kind=install", "status=done"}, 1},
		{"bloomery_jobs", []string{"kind=inspect", "status=done"}, 1},
		{"bloomery_step_seconds", []string{"step=write-image"}, 1},
		{"bloomery_rpc_seconds", []string{"procedure=MachineService/GetMachine", "code=not_found"}, 1},
		{"bloomery_rpc_seconds", []string{"procedure=MachineService/InstallMachine", "code=ok"}, 1},
		{"bloomery_webhook_deliveries_total", []string{"result=delivered"}, 2},
		{"bloomery_webhook_dead_letters", []string{"webhook=infosys"}, 0},
		{"bloomery_dhcp_packets_total", []string{"result=booted"}, 0},
		{"bloomery_archive_segments", nil, 0},
		{"bloomery_build_info", nil, 1},
	} {
		if got := value(families, want.name, want.labels...); got != want.value {
			t.Errorf("%s%v is %v, want %v", want.name, want.labels, got, want.value)
		}
	}
	for _, name := range []string{"bloomery_events_in_database", "bloomery_event_sequence", "bloomery_store_call_seconds", "bloomery_report_batch_reports", "bloomery_events_total", "bloomery_written_bytes_total"} {
		if value(families, name) <= 0 {
			t.Errorf("%s is %v", name, value(families, name))
		}
	}
	for _, secret := range []string{"m1", "top-secret", "hunter2", testMAC} {
		if strings.Contains(text, `"`+secret+`"`) {
			t.Errorf("%q is in the metrics", secret)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	must(t, err)
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// stranger is a client that trusts the rack and shows nothing.
func stranger(t *testing.T, r *rack) *http.Client {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(r.auth.Root())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}}
	t.Cleanup(client.CloseIdleConnections)
	return client
}

// TestMetricsAreForOperators asks without a certificate.
func TestMetricsAreForOperators(t *testing.T) {
	r := newRack(t)
	response, err := stranger(t, r).Get("https://" + r.api + "/metrics")
	must(t, err)
	defer response.Body.Close()
	if response.StatusCode != http.StatusUnauthorized {
		t.Errorf("a stranger got %s", response.Status)
	}
	plain := httptest.NewServer(r.c.plainMetrics())
	defer plain.Close()
	if _, families := scrape(t, plain.Client(), plain.URL+"/metrics"); value(families, "bloomery_store_up") != 1 {
		t.Error("the listener of its own does not serve the metrics")
	}
	if response, err := plain.Client().Get(plain.URL + "/images/"); err != nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("the listener for metrics serves something else: %v %v", response, err)
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ready\n"} {
		response, err := stranger(t, r).Get("https://" + r.api + path)
		must(t, err)
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		must(t, err)
		if response.StatusCode != http.StatusOK || string(body) != want {
			t.Errorf("%s: %s %q", path, response.Status, body)
		}
	}
}

var metricName = regexp.MustCompile(`\b(bloomery|process|go)_[a-z0-9_]+`)

// TestDashboardNamesMetrics holds docs/grafana-dashboard.json, and the page, against what a coordinator exports.
func TestDashboardNamesMetrics(t *testing.T) {
	r := newRack(t)
	known := map[string]bool{}
	families, err := r.c.metrics.registry.Gather()
	must(t, err)
	for _, f := range families {
		known[f.GetName()] = true
	}
	// A vector is exported only once it has counted something.
	for _, name := range metricNames(r) {
		known[name] = true
	}
	data, err := os.ReadFile("../docs/grafana-dashboard.json")
	must(t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	must(t, json.Unmarshal(data, &dashboard))
	shown := map[string]bool{}
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			names := metricName.FindAllString(target.Expr, -1)
			if len(names) == 0 {
				t.Errorf("panel %q shows no metric: %s", p.Title, target.Expr)
			}
			for _, name := range names {
				base := name
				for _, suffix := range []string{"_bucket", "_sum", "_count"} {
					if cut, ok := strings.CutSuffix(name, suffix); ok && known[cut] {
						base = cut
					}
				}
				if !known[base] {
					t.Errorf("panel %q names %s, which is not exported", p.Title, name)
				}
				shown[base] = true
			}
		}
	}
	page, err := os.ReadFile("../docs/metrics.md")
	must(t, err)
	for _, name := range metricNames(r) {
		if !shown[name] {
			t.Errorf("%s is exported and in no panel", name)
		}
		if !strings.Contains(string(page), "`"+name+"`") {
			t.Errorf("docs/metrics.md does not explain %s", name)
		}
	}
}

var describedName = regexp.MustCompile(`fqName: "(bloomery_[a-z0-9_]+)"`)

// metricNames are all that a coordinator exports of its own, whether it has counted any or not.
func metricNames(r *rack) []string {
	described := make(chan *prometheus.Desc)
	go func() {
		defer close(described)
		r.c.metrics.registry.Describe(described)
	}()
	var names []string
	for d := range described {
		if m := describedName.FindStringSubmatch(d.String()); m != nil {
			names = append(names, m[1])
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// TestNotReadyWithoutAStore closes the store below a coordinator that runs.
func TestNotReadyWithoutAStore(t *testing.T) {
	a := newArchivists(t, "c1")
	c := a.nodes["c1"]
	ask := func(path string) *httptest.ResponseRecorder {
		recorder := httptest.NewRecorder()
		c.Handler().ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, path, nil))
		return recorder
	}
	if got := ask("/readyz"); got.Code != http.StatusOK {
		t.Errorf("ready: %d %s", got.Code, got.Body)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	gone := httptest.NewRecorder()
	c.serveReadyz(gone, httptest.NewRequest(http.MethodGet, "/readyz", nil).WithContext(ctx))
	if gone.Code != http.StatusServiceUnavailable || strings.TrimSpace(gone.Body.String()) != "not ready: the store does not answer" {
		t.Errorf("not ready: %d %q", gone.Code, gone.Body)
	}
	if got := ask("/healthz"); got.Code != http.StatusOK {
		t.Errorf("alive: %d", got.Code)
	}
	// A flood of questions is refused; it must not become load on the store.
	limited := 0
	for range 300 {
		if ask("/readyz").Code == http.StatusTooManyRequests {
			limited++
		}
	}
	if limited == 0 {
		t.Error("300 questions at once were all answered")
	}
}
