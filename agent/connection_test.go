package agent

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	pb "bloomery/api/bloomery/v1"
)

// wire is a cable to a coordinator that can be cut: then packets vanish, as when a link breaks or a process is stopped.
type wire struct {
	listener net.Listener
	target   string
	mu       sync.Mutex
	cut      bool
	conns    []net.Conn
	wg       sync.WaitGroup
}

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: listener, target: target}
	w.wg.Go(w.serve)
	t.Cleanup(func() {
		listener.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		w.wg.Wait()
	})
	return w
}

func (w *wire) url() string { return "https://" + w.listener.Addr().String() }

func (w *wire) serve() {
	for {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", w.target)
		if err != nil {
			client.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, client, server)
		w.mu.Unlock()
		w.wg.Go(func() { w.copy(client, server) })
		w.wg.Go(func() { w.copy(server, client) })
	}
}

func (w *wire) copy(to, from net.Conn) {
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		if w.isCut() {
			continueUntilClosed(from, err)
			return
		}
		if _, writeErr := to.Write(buf[:n]); err != nil || writeErr != nil {
			to.Close()
			return
		}
	}
}

// continueUntilClosed swallows what comes without a sign to either side.
func continueUntilClosed(from net.Conn, err error) {
	if err == nil {
		_, _ = io.Copy(io.Discard, from)
	}
}

func (w *wire) isCut() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cut
}

func (w *wire) sever() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
}

// TestConnectionFailsOver loses the coordinator that is in use in each way that a coordinator is lost.
func TestConnectionFailsOver(t *testing.T) {
	report := func(c *connection, sequence int64) (time.Duration, error) {
		begin := time.Now()
		_, err := c.report(t.Context(), "boot", []*pb.Report{{Sequence: sequence, Body: &pb.Report_Log{Log: &pb.Log{Message: "hello"}}}})
		return time.Since(begin).Round(time.Millisecond), err
	}
	coordinator := newFakeCoordinator(t)
	good := "https://" + coordinator.address
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers: a stopped process
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })

	t.Run("refused", func(t *testing.T) {
		c := newConnection([]string{"https://127.0.0.1:1", good}, coordinator.roots)
		took, err := report(c, 1)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("report by the second coordinator after %s", took)
	})
	t.Run("stopped before", func(t *testing.T) {
		c := newConnection([]string{"https://" + silent.Addr().String(), good}, coordinator.roots)
		took, err := report(c, 2)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("report by the second coordinator after %s", took)
		if took >= callTimeout {
			t.Errorf("it took the whole of the call's %s to leave a coordinator that does not answer", callTimeout)
		}
		if again, err := report(c, 3); err != nil || again >= took {
			t.Errorf("the next report took %s, %v: the coordinator that answered is not preferred", again, err)
		}
	})
	t.Run("cut while in use", func(t *testing.T) {
		w := newWire(t, coordinator.address)
		c := newConnection([]string{w.url(), good}, coordinator.roots)
		if _, err := report(c, 4); err != nil {
			t.Fatal(err)
		}
		w.sever()
		took, err := report(c, 5)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("report by the second coordinator after %s", took)
		if took >= callTimeout {
			t.Errorf("it took the whole of the call's %s to leave a connection that is dead", callTimeout)
		}
	})
}
