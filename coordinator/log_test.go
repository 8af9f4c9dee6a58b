package coordinator

import (
	"bytes"
	"encoding/json"
	"strings"
	"sync"
	"testing"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// lockedBuffer is a buffer that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestLogsNameJobsAndNoSecrets runs an install with all that is secret marked, and reads every line at the level that says most.
func TestLogsNameJobsAndNoSecrets(t *testing.T) {
	r := newRack(t)
	r.halt()
	var logs lockedBuffer
	r.logTo = &logs
	r.start()
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	j := r.end(r.install(op))
	if j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Fatalf("install: %s", j.GetError())
	}
	to := newReceiver(t)
	r.addWebhook(to, "infosys", "job.")
	eventually(t, "a delivery", func() bool { return len(to.got()) > 0 })
	r.mu.Lock()
	vendor := string(r.installed)
	r.mu.Unlock()
	_, token, _ := strings.Cut(vendor, "/phone-home/")
	if len(token) < 43 {
		t.Fatalf("no token in the vendor-data %q", vendor)
	}
	text := logs.String()
	for name, secret := range map[string]string{"BMC password": "top-secret", "user-data": "hunter2", "phone-home token": token[:43], "webhook secret": string(to.secret), "private key": "PRIVATE KEY"} {
		if strings.Contains(text, secret) {
			t.Errorf("the log holds the %s", name)
		}
	}
	ofJob := 0
	for line := range strings.Lines(text) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("line is no JSON: %v\n%s", err, line)
		}
		kind, _ := fields["event"].(string)
		if strings.HasPrefix(kind, "step.") || strings.HasPrefix(kind, "job.") {
			if fields["job"] == "" || fields["machine"] != "m1" {
				t.Errorf("a line about a job does not name it: %s", line)
			}
			ofJob++
		}
	}
	if ofJob == 0 {
		t.Error("no line is about a job")
	}
}
