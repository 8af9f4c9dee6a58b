package agent

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "bloomery/api/bloomery/v1"
)

const (
	reportEvery    = 250 * time.Millisecond
	minSendBackoff = 100 * time.Millisecond
	maxSendBackoff = 5 * time.Second
)

// reporter sends reports in order, in batches, until each is acknowledged. Its methods may be called from any goroutine.
type reporter struct {
	// send stores a batch and returns the highest sequence number that is stored.
	send func(ctx context.Context, batch []*pb.Report) (int64, error)
	log  *slog.Logger
	// say tells people when the coordinator is lost and found.
	say func(format string, a ...any)

	mu       sync.Mutex
	queue    queue
	acked    int64
	progress chan struct{} // closed and replaced at each acknowledgement

	urgent chan struct{}
	// beat is when run last went round; the watchdog's owner reads it.
	beat time.Time
}

func newReporter(send func(context.Context, []*pb.Report) (int64, error), log *slog.Logger, say func(string, ...any)) *reporter {
	return &reporter{send: send, log: log, say: say, progress: make(chan struct{}), urgent: make(chan struct{}, 1), beat: time.Now()}
}

// add queues a report about a step ("" for none) and returns its sequence number. What people wait for is sent at once.
func (r *reporter) add(jobID, stepID string, report *pb.Report) int64 {
	report.Time, report.JobId, report.StepId = timestamppb.Now(), jobID, stepID
	r.mu.Lock()
	sequence := r.queue.add(report)
	r.mu.Unlock()
	if report.GetStarted() != nil || report.GetFinished() != nil || report.GetBootPhase() != nil {
		select {
		case r.urgent <- struct{}{}:
		default:
		}
	}
	return sequence
}

// shift corrects the times of what was reported before the clock was set.
func (r *reporter) shift(by time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue.shift(by)
}

// wait returns when everything up to sequence is acknowledged.
func (r *reporter) wait(ctx context.Context, sequence int64) error {
	for {
		r.mu.Lock()
		done, changed := r.acked >= sequence, r.progress
		r.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// alive tells whether run went round within the last d.
func (r *reporter) alive(d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return time.Since(r.beat) < d
}

// run sends until ctx ends. A coordinator that is lost costs nothing but time.
func (r *reporter) run(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	backoff, lost, limit := minSendBackoff, time.Time{}, maxBatchReports
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.urgent:
		case <-tick.C:
		}
		for {
			r.mu.Lock()
			batch := r.queue.batch()
			r.beat = time.Now()
			r.mu.Unlock()
			if len(batch) == 0 {
				break
			}
			batch = batch[:min(limit, len(batch))]
			acknowledged, err := r.send(ctx, batch)
			if err == nil {
				r.take(acknowledged)
				if !lost.IsZero() {
					r.say("coordinator is back after %.1f s", time.Since(lost).Seconds())
				}
				backoff, lost, limit = minSendBackoff, time.Time{}, maxBatchReports
				if acknowledged < batch[len(batch)-1].Sequence {
					break // nothing new is stored: the next tick tries again
				}
				continue
			}
			if ctx.Err() != nil {
				return
			}
			if isRefused(err) {
				// One report that will never be taken must not keep the others from being so.
				if limit = 1; len(batch) == 1 {
					r.say("the coordinator refuses report %d, which is dropped: %v", batch[0].Sequence, err)
					r.log.Debug("report dropped", "sequence", batch[0].Sequence, "error", err)
					r.take(batch[0].Sequence)
				}
				continue
			}
			if lost.IsZero() {
				lost = time.Now()
				r.say("coordinator is lost, reports are kept: %v", err)
			}
			r.log.Warn("reports not sent", "reports", len(batch), "error", err)
			if !sleep(ctx, backoff/2+rand.N(backoff)) {
				return
			}
			backoff = min(2*backoff, maxSendBackoff)
		}
	}
}

// isRefused tells that a coordinator read the reports and will not have them, now or later.
func isRefused(err error) bool {
	code := connect.CodeOf(err)
	return code == connect.CodeInvalidArgument || code == connect.CodePermissionDenied
}

func (r *reporter) take(acknowledged int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.queue.acknowledge(acknowledged)
	r.acked = max(r.acked, acknowledged)
	close(r.progress)
	r.progress = make(chan struct{})
}

// sleep waits for d; false means that ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
