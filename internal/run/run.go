// Package run starts programs for the packages that need Debian's tools: an argument vector and never a shell, always
// a deadline, always a limit on what is kept of the output. Tests use Fake.
package run

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Runner runs one program to its end.
//
// The error says that the program could not be run or did not end by itself: it is not there, the deadline passed, a
// signal ended it, or it wrote more than the limit. An exit code other than 0 is no error here, because for several tools
// (smartctl, fsck) it is an answer; use Output where it is a failure.
type Runner interface {
	Run(ctx context.Context, argv []string, opts ...Option) (Result, error)
}

// Result is what a program left behind. ExitCode is -1 if it did not end by itself.
type Result struct {
	Stdout   []byte
	Stderr   []byte
	ExitCode int
}

// Option changes one run.
type Option func(*Options)

// Options is the sum of the options of one run; implementations of Runner read it through Collect.
type Options struct {
	Stdin io.Reader
	Env   []string
	Dir   string
}

// Stdin feeds the program. Secrets (LUKS keys, passwords) go this way, never through argv.
func Stdin(r io.Reader) Option { return func(o *Options) { o.Stdin = r } }

// Env adds "NAME=value" entries to the small fixed environment (PATH, HOME, LC_ALL=C).
func Env(entries ...string) Option {
	return func(o *Options) { o.Env = append(o.Env, entries...) }
}

// Dir sets the working directory.
func Dir(path string) Option { return func(o *Options) { o.Dir = path } }

// Collect applies opts in order.
func Collect(opts []Option) Options {
	var o Options
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// ErrOutputTooLarge is wrapped by the error of a program that wrote more to its standard output than the runner keeps.
var ErrOutputTooLarge = errors.New("output is larger than the limit")

// ExitError is Output's error for a program that ended by itself with an exit code other than 0.
type ExitError struct {
	Program  string
	ExitCode int
	Stderr   string // its last part, on one line
}

func (e *ExitError) Error() string {
	if e.Stderr == "" {
		return fmt.Sprintf("%s exited with code %d", e.Program, e.ExitCode)
	}
	return fmt.Sprintf("%s exited with code %d: %s", e.Program, e.ExitCode, e.Stderr)
}

// Output runs argv and gives its standard output; an exit code other than 0 is an *ExitError.
func Output(ctx context.Context, r Runner, argv []string, opts ...Option) ([]byte, error) {
	res, err := r.Run(ctx, argv, opts...)
	if err != nil {
		return nil, err
	}
	if res.ExitCode != 0 {
		return res.Stdout, &ExitError{Program: argv[0], ExitCode: res.ExitCode, Stderr: lastWords(res.Stderr)}
	}
	return res.Stdout, nil
}

// lastWords makes the end of a program's standard error fit for one line of a log.
func lastWords(stderr []byte) string {
	const keep = 400
	fields := strings.FieldsFunc(strings.ToValidUTF8(string(stderr), "?"), func(r rune) bool { return r < ' ' || r == 0x7f })
	line := []rune(strings.TrimSpace(strings.Join(fields, "; ")))
	if len(line) > keep {
		return "…" + string(line[len(line)-keep:])
	}
	return string(line)
}
