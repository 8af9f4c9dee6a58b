// Package fence keeps effects from those who have lost the right to them: a context carries the question, and a connection
// asks it right before each packet that it sends.
package fence

import (
	"context"
	"errors"
	"net"
)

type key struct{}

// With returns a context whose effects are allowed only while allowed returns nil. It is asked often and from several goroutines.
func With(ctx context.Context, allowed func() error) context.Context {
	return context.WithValue(ctx, key{}, allowed)
}

// Check says whether a context's effects are allowed now; those of a context without a fence always are.
func Check(ctx context.Context) error {
	if allowed, ok := ctx.Value(key{}).(func() error); ok {
		return allowed()
	}
	return nil
}

// Conn returns a connection that is closed, and sends nothing, by the first write after the context's fence came down. Between the question and the
// system call that sends there are some instructions and no wait; a process that is stopped right there is not caught.
func Conn(ctx context.Context, c net.Conn) net.Conn {
	if _, ok := ctx.Value(key{}).(func() error); !ok {
		return c
	}
	return &guarded{Conn: c, ctx: ctx}
}

type guarded struct {
	net.Conn
	ctx context.Context
}

// Write implements net.Conn.
func (g *guarded) Write(b []byte) (int, error) {
	if err := Check(g.ctx); err != nil {
		return 0, errors.Join(err, g.Close()) // closed, so that nobody waits for an answer
	}
	return g.Conn.Write(b)
}
