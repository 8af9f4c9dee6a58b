package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// maxQMPLine bounds one message of QEMU's; answers to the commands used here have a few KiB.
const maxQMPLine = 1 << 20

// errQMPClosed says that QEMU went away.
var errQMPClosed = errors.New("QMP connection is closed")

// qmp is a QMP connection (QEMU's docs/interop/qmp-spec): commands one at a time, events to a function.
type qmp struct {
	conn    net.Conn
	onEvent func(name string, data json.RawMessage)
	answers chan message

	mu   sync.Mutex // one command at a time
	next int        // id of the last command
	done chan struct{}
}

type message struct {
	ID     int             `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	Greeting json.RawMessage `json:"QMP"`
}

// newQMP starts to read; the reader ends when the connection does.
func newQMP(conn net.Conn, onEvent func(string, json.RawMessage)) *qmp {
	q := &qmp{conn: conn, onEvent: onEvent, answers: make(chan message, 4), done: make(chan struct{})}
	go q.read()
	return q
}

func (q *qmp) read() {
	defer close(q.done)
	defer q.conn.Close()
	sc := bufio.NewScanner(q.conn)
	sc.Buffer(make([]byte, 0, 4096), maxQMPLine)
	for sc.Scan() {
		var m message
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			return
		}
		switch {
		case m.Event != "":
			q.onEvent(m.Event, m.Data)
		case m.Greeting != nil:
		default:
			select {
			case q.answers <- m:
			default: // answers that nobody waits for any more
			}
		}
	}
}

// command runs one command and returns its answer.
func (q *qmp) command(ctx context.Context, name string, args any) (json.RawMessage, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.next++
	request := map[string]any{"execute": name, "id": q.next}
	if args != nil {
		request["arguments"] = args
	}
	line, err := json.Marshal(request)
	if err != nil {
		return nil, fmt.Errorf("QMP %s: %w", name, err)
	}
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		return nil, fmt.Errorf("QMP %s: %w", name, err)
	}
	for {
		select {
		case m := <-q.answers:
			if m.ID != q.next {
				continue // the answer to a command that was given up
			}
			if m.Error != nil {
				return nil, fmt.Errorf("QMP %s: %s: %s", name, m.Error.Class, m.Error.Desc)
			}
			return m.Return, nil
		case <-q.done:
			return nil, fmt.Errorf("QMP %s: %w", name, errQMPClosed)
		case <-ctx.Done():
			return nil, fmt.Errorf("QMP %s: %w", name, ctx.Err())
		}
	}
}
