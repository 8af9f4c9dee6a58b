package run

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestExec(t *testing.T) {
	ctx := context.Background()
	tests := []struct {
		name           string
		exec           Exec
		argv           []string
		opts           []Option
		stdout, stderr string
		code           int
		errHas         string
	}{
		{name: "output", argv: []string{"sh", "-c", "echo out; echo err >&2"}, stdout: "out\n", stderr: "err\n"},
		{name: "exit code is an answer", argv: []string{"sh", "-c", "exit 3"}, code: 3},
		{name: "stdin", argv: []string{"cat"}, opts: []Option{Stdin(strings.NewReader("key"))}, stdout: "key"},
		{name: "environment is fixed", argv: []string{"sh", "-c", "echo $LC_ALL $A $USER"}, opts: []Option{Env("A=b")}, stdout: "C b\n"},
		{name: "no shell in between", argv: []string{"echo", "$(id) ; ls"}, stdout: "$(id) ; ls\n"},
		{name: "missing", argv: []string{"no-such-program"}, code: -1, errHas: "no-such-program"},
		{name: "empty", code: -1, errHas: "empty"},
		{name: "signal", argv: []string{"sh", "-c", "kill -9 $$"}, code: -1, errHas: "killed"},
		{name: "timeout", exec: Exec{Timeout: 100 * time.Millisecond}, argv: []string{"sh", "-c", "sleep 20 & sleep 20"}, code: -1, errHas: "deadline"},
		{name: "too much", exec: Exec{MaxOutput: 10}, argv: []string{"yes"}, stdout: "y\ny\ny\ny\ny\n", code: -1, errHas: "larger than the limit of 10 bytes"},
		{name: "stderr is cut silently", exec: Exec{MaxOutput: 3}, argv: []string{"sh", "-c", "echo 12345 >&2"}, stderr: "123"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			res, err := tt.exec.Run(ctx, tt.argv, tt.opts...)
			if tt.errHas == "" && err != nil {
				t.Fatal(err)
			}
			if tt.errHas != "" && (err == nil || !strings.Contains(err.Error(), tt.errHas)) {
				t.Fatalf("error %v, want one with %q", err, tt.errHas)
			}
			if string(res.Stdout) != tt.stdout || string(res.Stderr) != tt.stderr || res.ExitCode != tt.code {
				t.Errorf("got %q %q %d, want %q %q %d", res.Stdout, res.Stderr, res.ExitCode, tt.stdout, tt.stderr, tt.code)
			}
			if time.Since(start) > 10*time.Second {
				t.Errorf("took %v: the children were not ended", time.Since(start))
			}
		})
	}
}

func TestOutput(t *testing.T) {
	_, err := Output(context.Background(), Exec{}, []string{"sh", "-c", "echo 'no such\ndisk' >&2; exit 4"})
	var exit *ExitError
	if !errors.As(err, &exit) || exit.ExitCode != 4 || exit.Stderr != "no such; disk" {
		t.Fatalf("got %v", err)
	}
}

func TestFake(t *testing.T) {
	f := &Fake{Answer: func(c Call) (Result, error) { return Result{Stdout: []byte(c.Stdin), ExitCode: 1}, nil }}
	res, err := f.Run(context.Background(), []string{"a", "b"}, Stdin(strings.NewReader("x")))
	if err != nil || string(res.Stdout) != "x" || res.ExitCode != 1 {
		t.Fatalf("got %+v, %v", res, err)
	}
	if calls := f.Calls(); len(calls) != 1 || calls[0].String() != "a b" || calls[0].Stdin != "x" {
		t.Fatalf("calls %+v", calls)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := f.Run(ctx, []string{"a"}); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}
