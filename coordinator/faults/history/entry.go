// Package history judges what a rack of coordinators did from the outside: a log of what clients asked and were answered and of what devices
// were asked, against what the rack says in the end. It knows nothing of the coordinator's code, so that the two cannot share a mistake.
package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Kind says what an entry of the log is.
type Kind string

// What is logged, and which fields each kind has beside At.
const (
	// ReportSent is the first time that a report leaves an agent: Machine, Boot, Sequence; Step too when it says that a step was finished.
	ReportSent Kind = "report-sent"
	// ReportAcked is an answer that says that reports are stored: Machine, Boot, Sequence (all up to it), Node.
	ReportAcked Kind = "report-acked"
	// JobAsked is a request for a job: Machine, Request, Value (inspect, install or release). JobAccepted is its answer: also Job and Node.
	JobAsked    Kind = "job-asked"
	JobAccepted Kind = "job-accepted"
	// JobEnded is an answer in which a job has ended: Job, Value (done, failed or cancelled), Node.
	JobEnded Kind = "job-ended"
	// JobTaken is a coordinator's own word that it drives a job from now on: Job, Node, Epoch.
	JobTaken Kind = "job-taken"
	// Heard is an answer to an installed system that phoned home, which says that this is stored: Machine, Node.
	Heard Kind = "heard"
	// Acted is a command as a device got it: Machine, Node (whose address it came from), Action, Changed (whether anything changed by it).
	Acted Kind = "acted"
	// Watched is an event as a watcher who goes on where it was got it: Sequence, Node.
	Watched Kind = "watched"
	// Fault and Healed frame what was done to the rack: Value, Node.
	Fault  Kind = "fault"
	Healed Kind = "healed"
)

// Actions of devices.
const (
	PowerOn    = "power-on"
	PowerOff   = "power-off"
	Reset      = "reset"
	BootDevice = "boot-device"
	MovePort   = "move-port"
)

// Entry is one line of the log.
type Entry struct {
	// At is the host's monotonic clock, the same for all who write.
	At       time.Duration `json:"at"`
	Kind     Kind          `json:"kind"`
	Node     string        `json:"node,omitempty"`
	Machine  string        `json:"machine,omitempty"`
	Boot     string        `json:"boot,omitempty"`
	Sequence int64         `json:"sequence,omitempty"`
	Job      string        `json:"job,omitempty"`
	Step     string        `json:"step,omitempty"`
	Request  string        `json:"request,omitempty"`
	Epoch    int64         `json:"epoch,omitempty"`
	Action   string        `json:"action,omitempty"`
	Changed  bool          `json:"changed,omitempty"`
	Value    string        `json:"value,omitempty"`
}

// Event is one event of the rack's record, in as much as the check needs it.
type Event struct {
	Sequence int64  `json:"sequence"`
	Type     string `json:"type"`
	Machine  string `json:"machine,omitempty"`
	Job      string `json:"job,omitempty"`
	Step     string `json:"step,omitempty"`
	// Boot and Report say which report an event of type agent.log is.
	Boot   string `json:"boot,omitempty"`
	Report int64  `json:"report,omitempty"`
}

// Job is a job as the rack says in the end.
type Job struct {
	ID      string `json:"id"`
	Machine string `json:"machine"`
	Kind    string `json:"kind"`
	// Status is running, done, failed or cancelled.
	Status string `json:"status"`
}

// State is what the rack says in the end: its whole record in its own order, and its jobs.
type State struct {
	Events []Event `json:"events"`
	Jobs   []Job   `json:"jobs"`
}

// maxLine bounds a line of a log, in bytes.
const maxLine = 64 << 10

// Write writes entries as JSON lines.
func Write(w io.Writer, entries []Entry) error {
	encoder := json.NewEncoder(w)
	for _, e := range entries {
		if err := encoder.Encode(e); err != nil {
			return fmt.Errorf("write the history: %w", err)
		}
	}
	return nil
}

// Read reads JSON lines strictly: a field that it does not know is an error.
func Read(r io.Reader) ([]Entry, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	var entries []Entry
	for n := 1; lines.Scan(); n++ {
		var e Entry
		if err := decodeLine(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("read the history: line %d: %w", n, err)
		}
		entries = append(entries, e)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	return entries, nil
}

func decodeLine(line []byte, e *Entry) error {
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(e); err != nil {
		return err
	}
	if decoder.More() {
		return errors.New("more than one value")
	}
	if e.Kind == "" {
		return errors.New("kind: missing")
	}
	return nil
}
