package fence_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"bloomery/internal/fence"
)

func TestConnSendsNothingOnceItsFenceIsDown(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	raw, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = raw.Close() }()
	down := errors.New("down")
	var state error
	ctx := fence.With(context.Background(), func() error { return state })
	conn := fence.Conn(ctx, raw)
	if _, err := conn.Write([]byte("first")); err != nil {
		t.Fatal(err)
	}
	state = down
	if _, err := conn.Write([]byte("second")); !errors.Is(err, down) {
		t.Errorf("write behind a fence that is down: %v", err)
	}
	state = nil
	if _, err := conn.Write([]byte("third")); err == nil {
		t.Error("a connection lives on after its fence was down")
	}
	// The witness comes after whatever else was sent.
	if _, err := server.WriteTo([]byte("witness"), server.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	for _, want := range []string{"first", "witness"} {
		n, _, err := server.ReadFrom(buf)
		if err != nil || string(buf[:n]) != want {
			t.Errorf("the other end got %q (%v), want %q", buf[:n], err, want)
		}
	}
}

func TestNoFenceIsNoObstacle(t *testing.T) {
	if err := fence.Check(t.Context()); err != nil {
		t.Error(err)
	}
	a, b := net.Pipe()
	defer func() { _ = a.Close(); _ = b.Close() }()
	if fence.Conn(t.Context(), a) != a {
		t.Error("a connection without a fence was wrapped")
	}
}
