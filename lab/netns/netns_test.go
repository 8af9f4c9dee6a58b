package netns

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
)

func namespace(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	name := fmt.Sprintf("bl-netns-%d-%s", os.Getpid(), strings.ToLower(t.Name()))
	if err := Create(name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Delete(name); err != nil {
			t.Error(err)
		}
	})
	return name
}

func TestLifecycle(t *testing.T) {
	name := namespace(t)
	if !Exists(name) {
		t.Error("a new namespace does not exist")
	}
	if err := Create(name); !errors.Is(err, ErrExists) {
		t.Errorf("second create: %v", err)
	}
	for range 2 {
		if err := Delete(name); err != nil {
			t.Error(err)
		}
	}
	if Exists(name) {
		t.Error("a deleted namespace exists")
	}
	if err := Do(name, func() error { return nil }); !errors.Is(err, ErrNotExist) {
		t.Errorf("entering a deleted namespace: %v", err)
	}
	path, err := Path(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil { // what a crash between making and mounting leaves
		t.Fatal(err)
	}
	if Exists(name) {
		t.Error("a plain file passes for a namespace")
	}
}

func TestBadNames(t *testing.T) {
	for _, name := range []string{"", "..", "a/b", "-x", strings.Repeat("a", 64)} {
		if _, err := Path(name); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
}

func TestSocketsStayInside(t *testing.T) {
	name := namespace(t)
	if err := AddAddress(name, "lo", netip.MustParsePrefix("10.65.0.1/32")); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(t.Context(), name, "tcp", "10.65.0.1:9339")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	u, err := ListenPacket(t.Context(), name, "udp", "10.65.0.1:623")
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	c, err := Dial(t.Context(), name, "tcp", "10.65.0.1:9339")
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// The same port of 127.0.0.1 can be had on both sides only when they are two namespaces, and each side reaches its own.
	outside, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	inside, err := Listen(t.Context(), name, "tcp", outside.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	c, err = Dial(t.Context(), name, "tcp", outside.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := inside.(*net.TCPListener).SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		t.Fatal(err)
	}
	got, err := inside.Accept()
	if err != nil {
		t.Fatalf("dialled inside, but the inner listener got nothing: %v", err)
	}
	got.Close()
	if _, err := Listen(t.Context(), name, "tcp", "localhost:1"); err == nil {
		t.Error("a host name was taken")
	}
}

func TestThreadsComeHome(t *testing.T) {
	name := namespace(t)
	home, err := os.Readlink(threadNS())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			err := Do(name, func() error {
				if in, err := os.Readlink(threadNS()); err != nil || in == home {
					return fmt.Errorf("inside: %s, %w", in, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
			if out, err := os.Readlink(threadNS()); err != nil || out != home {
				t.Errorf("afterwards: %s, want %s (%v)", out, home, err)
			}
		})
	}
	wg.Wait()
	defer func() {
		if recover() != "inside" {
			t.Error("a panic inside was lost")
		}
	}()
	_ = Do(name, func() error { panic("inside") })
}
