package coordinator

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"

	"bloomery/coordinator/store"
)

// healthzPath is where anyone may ask whether the process is alive.
const healthzPath = "/healthz"

// readyTimeout is how long the store may take to answer a coordinator that is called ready.
const readyTimeout = 2 * time.Second

// serveHealthz says that the process is alive, whatever the rest of the rack does: who restarts it because of this would not help.
func (c *Coordinator) serveHealthz(w http.ResponseWriter, r *http.Request) {
	if !c.limits.within(callerOf(r.Context())) {
		refuseRequest(w, r, connect.NewError(connect.CodeResourceExhausted, errTooMany))
		return
	}
	_, _ = w.Write([]byte("ok\n"))
}

// serveReadyz says whether this coordinator can do its work now. Anyone may ask, so the reason is one of a few words; the log has the rest.
func (c *Coordinator) serveReadyz(w http.ResponseWriter, r *http.Request) {
	if !c.limits.within(callerOf(r.Context())) {
		refuseRequest(w, r, connect.NewError(connect.CodeResourceExhausted, errTooMany))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	if err := c.Healthy(ctx); err != nil {
		c.Logger.Warn("not ready", "error", err)
		http.Error(w, "not ready: the store does not answer", http.StatusServiceUnavailable)
		return
	}
	_, _ = w.Write([]byte("ready\n"))
}

// Healthy says whether the store answers.
func (c *Coordinator) Healthy(ctx context.Context) error {
	return c.Store.View(ctx, func(r *store.Reader) error {
		_, err := r.NewestEvent()
		return err
	})
}
