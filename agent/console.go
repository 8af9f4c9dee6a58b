package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	pb "bloomery/api/bloomery/v1"
)

// console writes lines for people. A serial line is slow and may be held by flow control, so writing happens in a goroutine of its own and
// lines are dropped, counted, when it does not keep up: the machine never waits for its console.
type console struct {
	start time.Time
	lines chan string
	idle  sync.WaitGroup // counts lines that are queued

	mu      sync.Mutex
	dropped int
}

// newConsole starts the writer; it lives as long as the process.
func newConsole(w io.Writer) *console {
	c := &console{start: time.Now(), lines: make(chan string, 256)}
	go func() {
		for line := range c.lines {
			// A console that cannot be written to has nobody who could be told.
			_, _ = io.WriteString(w, line)
			c.idle.Done()
		}
	}()
	return c
}

func (c *console) say(format string, a ...any) {
	line := fmt.Sprintf("bloomery %7.2f  ", time.Since(c.start).Seconds()) + oneLine(fmt.Sprintf(format, a...)) + "\r\n"
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.dropped > 0 {
		line = fmt.Sprintf("bloomery: %d lines dropped\r\n", c.dropped) + line
	}
	c.idle.Add(1)
	select {
	case c.lines <- line:
		c.dropped = 0
	default:
		c.idle.Done()
		c.dropped++
	}
}

// flush waits until everything is written, at most for d.
func (c *console) flush(d time.Duration) {
	done := make(chan struct{})
	go func() {
		c.idle.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(d):
	}
}

// oneLine keeps what disks and tools say from steering the terminal.
func oneLine(text string) string {
	out := []rune(plain(text))
	for i, r := range out {
		if r < ' ' || r == 0x7f || (r >= 0x80 && r < 0xa0) {
			out[i] = ' '
		}
	}
	return string(out)
}

// ring keeps the end of the log in memory for whoever looks at the machine later.
type ring struct {
	mu    sync.Mutex
	lines [][]byte
	bytes int
	limit int
}

func (r *ring) Write(line []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lines = append(r.lines, append([]byte(nil), line...))
	r.bytes += len(line)
	for r.bytes > r.limit && len(r.lines) > 1 {
		r.bytes -= len(r.lines[0])
		r.lines = r.lines[1:]
	}
	return len(line), nil
}

// reportingHandler sends warnings and errors to the coordinator too.
type reportingHandler struct {
	slog.Handler
	reporter *reporter
}

func (h *reportingHandler) Handle(ctx context.Context, record slog.Record) error {
	if record.Level >= slog.LevelWarn {
		severity := pb.Severity_SEVERITY_WARNING
		if record.Level >= slog.LevelError {
			severity = pb.Severity_SEVERITY_ERROR
		}
		text := record.Message
		record.Attrs(func(a slog.Attr) bool {
			text += fmt.Sprintf(" %s=%v", a.Key, a.Value)
			return true
		})
		h.reporter.add("", "", &pb.Report{Body: &pb.Report_Log{Log: &pb.Log{Severity: severity, Message: plain(text)}}})
	}
	return h.Handler.Handle(ctx, record)
}

func (h *reportingHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &reportingHandler{Handler: h.Handler.WithAttrs(attrs), reporter: h.reporter}
}

func (h *reportingHandler) WithGroup(name string) slog.Handler {
	return &reportingHandler{Handler: h.Handler.WithGroup(name), reporter: h.reporter}
}
