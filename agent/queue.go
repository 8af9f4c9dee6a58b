package agent

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "bloomery/api/bloomery/v1"
)

// Bounds of the queue and of one batch (agent.proto allows 200 reports).
const (
	maxBatchReports = 200
	maxBatchBytes   = 256 << 10
	maxQueueReports = 2000
	maxQueueBytes   = 4 << 20
)

// queue holds reports until they are acknowledged. It never drops what a step or a phase came to; of progress it keeps each step's latest,
// and when it is full it drops the oldest logs and says how many. It is not safe for concurrent use.
type queue struct {
	reports []*pb.Report // sequence numbers rising
	bytes   int
	last    int64
	dropped int
}

// add gives a report its sequence number and takes it.
func (q *queue) add(r *pb.Report) int64 {
	if r.GetProgress() != nil {
		q.remove(func(old *pb.Report) bool { return old.GetProgress() != nil && old.StepId == r.StepId }, 1)
	}
	q.last++
	r.Sequence = q.last
	q.reports = append(q.reports, r)
	q.bytes += proto.Size(r)
	for len(q.reports) > maxQueueReports || q.bytes > maxQueueBytes {
		if q.remove(func(old *pb.Report) bool { return old.GetLog() != nil }, 1) == 0 {
			break
		}
		q.dropped++
	}
	return r.Sequence
}

// remove takes out the first limit reports that match.
func (q *queue) remove(match func(*pb.Report) bool, limit int) int {
	removed := 0
	q.reports = slices.DeleteFunc(q.reports, func(r *pb.Report) bool {
		if removed == limit || !match(r) {
			return false
		}
		removed++
		q.bytes -= proto.Size(r)
		return true
	})
	return removed
}

// batch is the next reports to send: at most maxBatchReports and, unless a single one is larger, maxBatchBytes.
func (q *queue) batch() []*pb.Report {
	size := 0
	for i, r := range q.reports {
		size += proto.Size(r)
		if i == maxBatchReports || (i > 0 && size > maxBatchBytes) {
			return slices.Clone(q.reports[:i])
		}
	}
	return slices.Clone(q.reports)
}

// acknowledge forgets everything up to and including sequence.
func (q *queue) acknowledge(sequence int64) {
	q.remove(func(r *pb.Report) bool { return r.Sequence <= sequence }, len(q.reports))
	if n := q.dropped; n > 0 && len(q.reports) < maxQueueReports/2 {
		q.dropped = 0
		q.add(&pb.Report{Time: timestamppb.Now(), Body: &pb.Report_Log{Log: &pb.Log{
			Severity: pb.Severity_SEVERITY_WARNING, Message: fmt.Sprintf("%d log lines were dropped while no coordinator could be reached", n),
		}}})
	}
}

// shift moves the reports of a clock that was wrong.
func (q *queue) shift(by time.Duration) {
	for i, r := range q.reports {
		moved := proto.CloneOf(r)
		moved.Time = timestamppb.New(r.Time.AsTime().Add(by))
		q.reports[i] = moved
	}
}

// plain makes text from tools and disks fit for protobuf, which takes UTF-8 only, and bounds it.
func plain(text string) string {
	const most = 8 << 10
	if len(text) > most {
		text = text[:most] + "…"
	}
	return strings.ToValidUTF8(text, "?")
}
