package run

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
)

// Call is one run that a Fake saw.
type Call struct {
	Argv  []string
	Stdin string
	Env   []string
}

// String is the command as one would type it (without quoting).
func (c Call) String() string { return strings.Join(c.Argv, " ") }

// Fake is a Runner for tests. It answers with Answer and remembers every call; it is safe for concurrent use.
type Fake struct {
	// Answer decides about one call. Nil answers everything with an empty result and exit code 0.
	Answer func(Call) (Result, error)

	mu    sync.Mutex
	calls []Call
}

// Run implements Runner; like Exec it refuses a context that has ended.
func (f *Fake) Run(ctx context.Context, argv []string, opts ...Option) (Result, error) {
	if err := ctx.Err(); err != nil {
		return Result{ExitCode: -1}, fmt.Errorf("run %s: %w", strings.Join(argv, " "), err)
	}
	o := Collect(opts)
	call := Call{Argv: slices.Clone(argv), Env: o.Env}
	if o.Stdin != nil {
		in, err := io.ReadAll(o.Stdin)
		if err != nil {
			return Result{ExitCode: -1}, fmt.Errorf("run %s: read its input: %w", call, err)
		}
		call.Stdin = string(in)
	}
	f.mu.Lock()
	f.calls = append(f.calls, call)
	f.mu.Unlock()
	if f.Answer == nil {
		return Result{}, nil
	}
	return f.Answer(call)
}

// Calls gives what was run so far, in order.
func (f *Fake) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}
