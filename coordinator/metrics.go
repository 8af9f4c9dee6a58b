package coordinator

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/netboot"
)

// metrics counts what this coordinator does. Machines are no labels: a rack has hundreds, and their events tell of each.
type metrics struct {
	registry *prometheus.Registry

	events      *prometheus.CounterVec
	stepSeconds *prometheus.HistogramVec
	stepFails   *prometheus.CounterVec
	written     prometheus.Counter

	rpcSeconds *prometheus.HistogramVec
	rpcStreams *prometheus.GaugeVec
	batch      prometheus.Histogram

	bootFiles      *prometheus.CounterVec
	bootBytes      *prometheus.CounterVec
	bootSuppressed prometheus.Counter

	deliveries *prometheus.CounterVec

	storeSeconds *prometheus.HistogramVec
	storeRetries *prometheus.CounterVec
}

func newMetrics(version string) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bloomery_" + name, Help: help}, labels)
		m.registry.MustRegister(v)
		return v
	}
	counter := func(name, help string) prometheus.Counter {
		v := prometheus.NewCounter(prometheus.CounterOpts{Name: "bloomery_" + name, Help: help})
		m.registry.MustRegister(v)
		return v
	}
	histograms := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		v := prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "bloomery_" + name, Help: help, Buckets: buckets}, labels)
		m.registry.MustRegister(v)
		return v
	}
	quick := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}

	m.events = counters("events_total", "Events that this coordinator stored, by severity.", "severity")
	m.stepSeconds = histograms("step_seconds", "How long steps took from their first start to their success.", []float64{1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600}, "step")
	m.stepFails = counters("steps_failed_total", "Steps that failed.", "step")
	m.written = counter("written_bytes_total", "Bytes of images that agents wrote to disks, counted when the step is done.")

	m.rpcSeconds = histograms("rpc_seconds", "How long calls took, by procedure and answer. Long polls wait on purpose.", quick, "procedure", "code")
	m.rpcStreams = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "bloomery_rpc_streams", Help: "Streams that are open."}, []string{"procedure"})
	m.batch = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "bloomery_report_batch_reports", Help: "Reports in a call of an agent.", Buckets: []float64{1, 2, 5, 10, 20, 50, 100, 200}})

	m.bootFiles = counters("boot_files_total", "Boot files that were asked for over TFTP and HTTP, by what became of it.", "server", "result")
	m.bootBytes = counters("boot_bytes_total", "Bytes of boot files that were fetched whole.", "server")
	m.bootSuppressed = counter("boot_events_suppressed_total", "Events of the boot servers that were too many to be counted here one by one.")

	m.deliveries = counters("webhook_deliveries_total", "Tries to deliver an event to a webhook's receiver.", "result")

	m.storeSeconds = histograms("store_call_seconds", "How long calls of the store took, with their retries.", quick, "call")
	m.storeRetries = counters("store_retries_total", "Tries of the store after the first.", "call")

	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "bloomery_build_info", Help: "Always 1; what the program was built from."}, []string{"version", "go_version"})
	build.WithLabelValues(version, runtime.Version()).Set(1)
	m.registry.MustRegister(build, m.rpcStreams, m.batch, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// stored counts an event, and what it tells of.
func (m *metrics) stored(e *bloomeryv1.Event) {
	m.events.WithLabelValues(severityName(e.GetSeverity())).Inc()
	fields := e.GetData().GetFields()
	step := fields["step"].GetStringValue()
	switch e.GetType() {
	case "step.done":
		m.stepSeconds.WithLabelValues(step).Observe(fields["seconds"].GetNumberValue())
		m.written.Add(max(0, fields["written_bytes"].GetNumberValue()))
	case "step.failed":
		m.stepFails.WithLabelValues(step).Inc()
	}
}

// booted counts what the boot servers did with a file.
func (m *metrics) booted(e netboot.Event) {
	m.bootSuppressed.Add(float64(e.Suppressed))
	result := map[netboot.Kind]string{netboot.KindServed: "served", netboot.KindAborted: "aborted", netboot.KindDenied: "denied"}[e.Kind]
	if result == "" {
		return
	}
	m.bootFiles.WithLabelValues(e.Server, result).Inc()
	if e.Kind == netboot.KindServed {
		m.bootBytes.WithLabelValues(e.Server).Add(float64(e.Bytes))
	}
}

// delivered counts a try of a webhook.
func (m *metrics) delivered(out outcome) {
	result := "delivered"
	switch {
	case out.err != nil && out.refused():
		result = "refused"
	case out.err != nil:
		result = "failed"
	}
	m.deliveries.WithLabelValues(result).Inc()
}

// storeCall is the store's Observe.
func (m *metrics) storeCall(call string, took time.Duration, tries int) {
	m.storeSeconds.WithLabelValues(call).Observe(took.Seconds())
	if tries > 1 {
		m.storeRetries.WithLabelValues(call).Add(float64(tries - 1))
	}
}

// measure is the interceptor that times every call, whoever makes it and whatever becomes of it.
type measure struct{ m *metrics }

func codeName(err error) string {
	if err == nil {
		return "ok"
	}
	return connect.CodeOf(err).String()
}

// WrapUnary implements connect.Interceptor.
func (x measure) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
		begin := time.Now()
		response, err := next(ctx, r)
		x.m.rpcSeconds.WithLabelValues(shortProcedure(r.Spec().Procedure), codeName(err)).Observe(time.Since(begin).Seconds())
		return response, err
	}
}

// WrapStreamingClient implements connect.Interceptor; a coordinator calls nobody through it.
func (x measure) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (x measure) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		open := x.m.rpcStreams.WithLabelValues(shortProcedure(conn.Spec().Procedure))
		open.Inc()
		defer open.Dec()
		return next(ctx, conn)
	}
}

// scrapeTimeout bounds what a scrape asks the store.
const scrapeTimeout = 3 * time.Second

// metricsHandler answers scrapes.
func (c *Coordinator) metricsHandler() http.Handler {
	return promhttp.HandlerFor(c.metrics.registry, promhttp.HandlerOpts{Timeout: 2 * scrapeTimeout, MaxRequestsInFlight: 4, ErrorHandling: promhttp.ContinueOnError})
}

// serveMetrics answers scrapes of operators and of tokens, whatever their role.
func (c *Coordinator) serveMetrics(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.mayScrape(callerOf(r.Context())); err != nil {
			refuseRequest(w, r, err)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (c *Coordinator) mayScrape(who caller) error {
	if !c.limits.within(who) {
		return connect.NewError(connect.CodeResourceExhausted, errTooMany)
	}
	if setOf(who.role) == 0 {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("/metrics needs an operator's certificate or a token, of any role"))
	}
	return nil
}

// metricsServer is for a listener of its own, which has no callers' names: it serves nothing but metrics.
func (c *Coordinator) plainMetrics() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", c.metricsHandler())
	return mux
}

func jobKindName(k bloomeryv1.JobKind) string {
	return strings.ToLower(strings.TrimPrefix(k.String(), "JOB_KIND_"))
}

func jobStatusName(s bloomeryv1.JobStatus) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "JOB_STATUS_"))
}
