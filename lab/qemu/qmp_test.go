package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// fakeQEMU answers each command with the lines that answer makes of its name and id, then closes when there are none.
func fakeQEMU(t *testing.T, answer func(name string, id int) string) (*qmp, chan string) {
	t.Helper()
	ours, theirs := net.Pipe()
	events := make(chan string, 8)
	q := newQMP(ours, func(name string, _ json.RawMessage) { events <- name })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer theirs.Close()
		if _, err := fmt.Fprintln(theirs, `{"QMP":{"version":{}}}`); err != nil {
			return
		}
		lines := bufio.NewScanner(theirs)
		for lines.Scan() {
			var request struct {
				Execute string `json:"execute"`
				ID      int    `json:"id"`
			}
			if json.Unmarshal(lines.Bytes(), &request) != nil {
				return
			}
			text := answer(request.Execute, request.ID)
			if text == "" {
				return
			}
			if _, err := fmt.Fprintln(theirs, text); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { ours.Close(); <-q.done; <-ended })
	return q, events
}

func TestQMP(t *testing.T) {
	q, events := fakeQEMU(t, func(name string, id int) string {
		switch name {
		case "query-status":
			// An answer nobody waits for any more and an event come first.
			return fmt.Sprintf("{\"id\":%d,\"return\":\"old\"}\n{\"event\":\"RESET\"}\n{\"id\":%d,\"return\":{\"running\":true}}", id-1, id)
		case "refused":
			return fmt.Sprintf(`{"id":%d,"error":{"class":"GenericError","desc":"no such device"}}`, id)
		case "garbage":
			return `{"id":`
		}
		return ""
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got, err := q.command(ctx, "query-status", nil)
	if err != nil || string(got) != `{"running":true}` {
		t.Errorf("%s, %v", got, err)
	}
	if name := <-events; name != "RESET" {
		t.Errorf("event %s", name)
	}
	if _, err := q.command(ctx, "refused", map[string]any{"a": 1}); err == nil || !strings.Contains(err.Error(), "QMP refused: GenericError: no such device") {
		t.Errorf("a refused command: %v", err)
	}
	if _, err := q.command(ctx, "garbage", nil); !errors.Is(err, errQMPClosed) {
		t.Errorf("after garbage: %v", err)
	}
}

func TestQMPEnds(t *testing.T) {
	t.Run("connection lost", func(t *testing.T) {
		q, _ := fakeQEMU(t, func(string, int) string { return "" })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := q.command(ctx, "quit", nil); !errors.Is(err, errQMPClosed) {
			t.Errorf("%v", err)
		}
	})
	t.Run("no answer", func(t *testing.T) {
		q, _ := fakeQEMU(t, func(string, int) string { return `{"event":"STOP"}` })
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if _, err := q.command(ctx, "stop", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
	t.Run("line without end", func(t *testing.T) {
		q, _ := fakeQEMU(t, func(string, int) string { return strings.Repeat("x", maxQMPLine+1) })
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if _, err := q.command(ctx, "stop", nil); !errors.Is(err, errQMPClosed) {
			t.Errorf("%v", err)
		}
	})
}
