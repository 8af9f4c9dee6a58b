package coordinator

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store"
)

const (
	// maxSegmentBytes bounds a segment's lines: 5,000 events of the largest size are below it.
	maxSegmentBytes = 64 << 20
	maxWindow       = 8 << 20
)

var segmentFile = regexp.MustCompile(`^events-[0-9]{16}-[0-9]{16}\.jsonl\.zst$`)

// segmentName sorts by sequence number.
func segmentName(s *store.Segment) string {
	return fmt.Sprintf("events-%016d-%016d.jsonl.zst", s.First, s.Last)
}

// archiveLine is an event as the archive keeps it. The same event gives the same bytes on every coordinator and in every version of
// this program: fields may be added, with omitempty, but never changed.
type archiveLine struct {
	Sequence int64          `json:"sequence"`
	Time     string         `json:"time"`
	Type     string         `json:"type"`
	Severity int32          `json:"severity"`
	Machine  string         `json:"machine,omitempty"`
	JobID    string         `json:"job_id,omitempty"`
	StepID   string         `json:"step_id,omitempty"`
	Message  string         `json:"message"`
	Data     map[string]any `json:"data,omitempty"`
	Actor    string         `json:"actor,omitempty"`
	Source   string         `json:"source,omitempty"`
}

// encodeSegment writes a segment's events as JSON lines.
func encodeSegment(events []*bloomeryv1.Event) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	for _, e := range events {
		line := archiveLine{
			Sequence: e.GetSequence(), Time: e.GetTime().AsTime().Format(time.RFC3339Nano), Type: e.GetType(), Severity: int32(e.GetSeverity()), Machine: e.GetMachine(),
			JobID: e.GetJobId(), StepID: e.GetStepId(), Message: e.GetMessage(), Data: e.GetData().AsMap(), Actor: e.GetActor(), Source: e.GetSource(),
		}
		if err := encoder.Encode(line); err != nil {
			return nil, fmt.Errorf("archive event %d: %w", e.GetSequence(), err)
		}
	}
	if b.Len() > maxSegmentBytes {
		return nil, fmt.Errorf("archive events: %d bytes are more than %d", b.Len(), maxSegmentBytes)
	}
	return b.Bytes(), nil
}

// decodeSegment reads JSON lines; sequence numbers must rise.
func decodeSegment(lines []byte) ([]*bloomeryv1.Event, error) {
	var events []*bloomeryv1.Event
	last := int64(0)
	for line := range bytes.Lines(lines) {
		var l archiveLine
		if err := json.Unmarshal(line, &l); err != nil {
			return nil, fmt.Errorf("line %d: %w", len(events)+1, err)
		}
		at, err := time.Parse(time.RFC3339Nano, l.Time)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", len(events)+1, err)
		}
		if l.Sequence <= last {
			return nil, fmt.Errorf("line %d: event %d comes after %d", len(events)+1, l.Sequence, last)
		}
		last = l.Sequence
		e := &bloomeryv1.Event{
			Sequence: l.Sequence, Time: timestamppb.New(at), Type: l.Type, Severity: bloomeryv1.Severity(l.Severity), Machine: l.Machine,
			JobId: l.JobID, StepId: l.StepID, Message: l.Message, Actor: l.Actor, Source: l.Source,
		}
		if l.Data != nil {
			if e.Data, err = structpb.NewStruct(l.Data); err != nil {
				return nil, fmt.Errorf("line %d: %w", len(events)+1, err)
			}
		}
		events = append(events, e)
	}
	return events, nil
}

// chainValue links a segment to all that came before it.
func chainValue(before, sum []byte) []byte {
	h := sha256.New()
	h.Write(before)
	h.Write(sum)
	return h.Sum(nil)
}

// unpackSegment decompresses a segment and compares it with its record.
func unpackSegment(packed io.Reader, s *store.Segment) ([]byte, error) {
	z, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxSegmentBytes+1), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	lines, err := io.ReadAll(io.LimitReader(z, maxSegmentBytes+1))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if sum := sha256.Sum256(lines); !bytes.Equal(sum[:], s.SHA256) {
		return nil, errors.New("its SHA-256 is not the recorded one")
	}
	return lines, nil
}

// readSegmentFile reads a segment's lines from a folder.
func readSegmentFile(dir string, s *store.Segment) ([]byte, error) {
	path := filepath.Join(dir, segmentName(s))
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the event archive: %w", err)
	}
	defer func() { _ = f.Close() }()
	lines, err := unpackSegment(f, s)
	if err != nil {
		return nil, fmt.Errorf("event archive file %s is corrupt: %w", path, err)
	}
	return lines, nil
}

// writeSegmentFile puts a segment's lines into a folder so that they are there, whole, after a power cut: or not at all.
func writeSegmentFile(dir string, s *store.Segment, lines []byte) error {
	path := filepath.Join(dir, segmentName(s))
	fail := func(err error) error { return fmt.Errorf("write event archive file %s: %w", path, err) }
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(dir, "tmp-")
	if err != nil {
		return fail(err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // it is gone when all went well
	z, err := zstd.NewWriter(f, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(maxWindow))
	if err != nil {
		return fail(errors.Join(err, f.Close()))
	}
	_, err = z.Write(lines)
	if err = errors.Join(err, z.Close(), f.Sync(), f.Close()); err != nil {
		return fail(err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fail(err)
	}
	if err := syncDir(dir); err != nil {
		return fail(err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
