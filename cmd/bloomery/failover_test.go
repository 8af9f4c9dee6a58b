package main

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.yaml.in/yaml/v3"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/images"
	"bloomery/internal/pki"
)

// minority answers as a coordinator that has lost the others.
type minority struct {
	bloomeryv1connect.UnimplementedMachineServiceHandler
	bloomeryv1connect.UnimplementedJobServiceHandler
	calls atomic.Int32
}

func (m *minority) answer() error {
	m.calls.Add(1)
	return connect.NewError(connect.CodeUnavailable, errors.New("the rack has no majority"))
}

func (m *minority) GetMachine(context.Context, *connect.Request[bloomeryv1.GetMachineRequest]) (*connect.Response[bloomeryv1.GetMachineResponse], error) {
	return nil, m.answer()
}

func (m *minority) InspectMachine(context.Context, *connect.Request[bloomeryv1.InspectMachineRequest]) (*connect.Response[bloomeryv1.InspectMachineResponse], error) {
	return nil, m.answer()
}

func (m *minority) LockMachine(context.Context, *connect.Request[bloomeryv1.LockMachineRequest]) (*connect.Response[bloomeryv1.LockMachineResponse], error) {
	return nil, m.answer()
}

func (m *minority) WatchJob(context.Context, *connect.Request[bloomeryv1.WatchJobRequest], *connect.ServerStream[bloomeryv1.WatchJobResponse]) error {
	return m.answer()
}

// failoverRack has a rack's keys, and a coordinator that works at a unix socket.
type failoverRack struct {
	dir, socket string
	authority   *pki.Authority
}

func newFailoverRack(t *testing.T) failoverRack {
	t.Helper()
	dir, err := os.MkdirTemp("", "bl") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := failoverRack{dir: dir, socket: filepath.Join(dir, "s")}
	if err := pki.InitRack(dir, pki.InitOptions{Name: "rack1", ServerAddresses: []string{"127.0.0.1"}, OperatorName: "admin"}); err != nil {
		t.Fatal(err)
	}
	if _, err := images.GenerateKeyFiles(filepath.Join(dir, imagePrivateKey), filepath.Join(dir, imagePublicKey)); err != nil {
		t.Fatal(err)
	}
	if r.authority, err = pki.LoadAuthority(dir); err != nil {
		t.Fatal(err)
	}
	if err := serveFake(t, dir, r.socket); err != nil {
		t.Fatal(err)
	}
	return r
}

// client is one whose configuration lists the servers.
func (r failoverRack) client(t *testing.T, servers ...string) *client {
	t.Helper()
	text, err := yaml.Marshal(clientConfig{Servers: servers, CA: pki.CACert, Cert: "operator-admin.crt", Key: "operator-admin.key", ServerName: pki.ServerName})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.dir, "client.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := (&settings{configPath: path}).connect()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// serve answers on loopback with a handler and the keys of a directory.
func serve(t *testing.T, authority *pki.Authority, handler http.Handler) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, TLSConfig: authority.ServerTLS(), ReadHeaderTimeout: 10 * time.Second}
	done := make(chan error, 1)
	go func() { done <- server.ServeTLS(listener, "", "") }()
	t.Cleanup(func() { server.Close(); <-done })
	return "https://" + listener.Addr().String()
}

func getNode1(t *testing.T, c *client) time.Duration {
	t.Helper()
	begin := time.Now()
	if _, err := ask(t.Context(), c.machines.GetMachine, &bloomeryv1.GetMachineRequest{Name: "node1"}); err != nil {
		t.Fatal(err)
	}
	return time.Since(begin).Round(time.Millisecond)
}

func TestClientPassesDeadCoordinators(t *testing.T) {
	r := newFailoverRack(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, nobody answers: a stopped process
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	strange := t.TempDir()
	if err := pki.InitRack(strange, pki.InitOptions{Name: "other", ServerAddresses: []string{"127.0.0.1"}, OperatorName: "admin"}); err != nil {
		t.Fatal(err)
	}
	stranger, err := pki.LoadAuthority(strange)
	if err != nil {
		t.Fatal(err)
	}
	for name, server := range map[string]string{
		"refuses": "https://127.0.0.1:1", "no socket": "unix:" + filepath.Join(r.dir, "none"), "stopped": "https://" + silent.Addr().String(),
		"another rack's": serve(t, stranger, http.NotFoundHandler()),
	} {
		t.Run(name, func(t *testing.T) {
			c := r.client(t, server, "unix:"+r.socket)
			took := getNode1(t, c)
			t.Logf("answered by the second coordinator after %s", took)
			if took >= dialTimeout {
				t.Errorf("it took the whole of %s to pass a coordinator that does not answer", dialTimeout)
			}
		})
	}
	c := r.client(t, "https://127.0.0.1:1", serve(t, stranger, http.NotFoundHandler()))
	_, err = c.machines.GetMachine(t.Context(), connect.NewRequest(&bloomeryv1.GetMachineRequest{Name: "node1"}))
	if connect.CodeOf(err) != connect.CodeUnavailable || !strings.Contains(err.Error(), "TLS") || !strings.Contains(err.Error(), "refused") {
		t.Errorf("none answers: %v, want UNAVAILABLE with what was wrong with each", err)
	}
}

func TestClientRepeats(t *testing.T) {
	r := newFailoverRack(t)
	lonely := &minority{}
	mux := http.NewServeMux()
	mux.Handle(bloomeryv1connect.NewMachineServiceHandler(lonely))
	mux.Handle(bloomeryv1connect.NewJobServiceHandler(lonely))
	servers := []string{serve(t, r.authority, mux), "unix:" + r.socket}
	ctx := t.Context()

	t.Run("read", func(t *testing.T) {
		c := r.client(t, servers...)
		getNode1(t, c)
		before := lonely.calls.Load()
		getNode1(t, c)
		if lonely.calls.Load() != before {
			t.Error("the coordinator that answered is not preferred")
		}
	})
	t.Run("with a request id", func(t *testing.T) {
		c := r.client(t, servers...)
		if _, err := ask(ctx, c.machines.InspectMachine, &bloomeryv1.InspectMachineRequest{Name: "node1", RequestId: "abc"}); err != nil {
			t.Error(err)
		}
	})
	t.Run("without one", func(t *testing.T) {
		c := r.client(t, servers...)
		before := lonely.calls.Load()
		_, err := ask(ctx, c.machines.LockMachine, &bloomeryv1.LockMachineRequest{Name: "node1", Team: "x"})
		if connect.CodeOf(err) != connect.CodeUnavailable || lonely.calls.Load() != before+1 {
			t.Errorf("%v after %d calls: a change whose fate is not known was made again", err, lonely.calls.Load()-before)
		}
	})
	t.Run("watch", func(t *testing.T) {
		c := r.client(t, servers...)
		seen := 0
		err := keepWatching(ctx, func(ctx context.Context, heard func()) (bool, error) {
			stream, err := c.jobs.WatchJob(ctx, connect.NewRequest(&bloomeryv1.WatchJobRequest{Id: "job-node1"}))
			if err != nil {
				return false, err
			}
			defer stream.Close()
			for stream.Receive() {
				heard()
				seen++
				if stream.Msg().GetJob().GetStatus() == bloomeryv1.JobStatus_JOB_STATUS_DONE {
					return true, nil
				}
			}
			return false, stream.Err()
		})
		if err != nil || seen != 3 {
			t.Errorf("%d messages, %v: want the other coordinator's three", seen, err)
		}
	})
}
