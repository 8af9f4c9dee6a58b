//go:build !guest

package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
)

// result is what became of one test of the machine.
type result struct {
	name    string // "partition/apply/TestStop/deep"
	verdict string // test2json's pass, fail or skip, or "unfinished"
	output  []string
}

// readResults reads what the runner writes and hands on the results of each package as it ends. It fails when a package of the plan was not
// run to its end, ran no test, or ended otherwise than its tests say.
func readResults(ctx context.Context, r io.Reader, p Plan, each func([]result)) error {
	var (
		current string
		output  bytes.Buffer
		errs    []error
		done    bool
	)
	ended := map[string]bool{}
	end := func(status string) {
		results, err := parseTests(ctx, current, output.Bytes())
		errs = append(errs, err)
		failed := false
		for _, r := range results {
			failed = failed || r.verdict != "pass" && r.verdict != "skip"
		}
		switch {
		case len(results) == 0:
			errs = append(errs, fmt.Errorf("%s: no test ran (%s): %s", current, status, lastOf(output.Bytes())))
		case status != "0" && !failed:
			errs = append(errs, fmt.Errorf("%s: its tests passed, but it ended with %s: %s", current, status, lastOf(output.Bytes())))
		}
		each(results)
		ended[current] = true
		current = ""
		output.Reset()
	}
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadString('\n')
		words := strings.SplitN(strings.TrimSpace(line), " ", 4)
		switch {
		case len(words) < 2 || words[0] != "GUEST":
			output.WriteString(line)
		case words[1] == "begin" && len(words) == 3:
			current = words[2]
			output.Reset()
		case words[1] == "end" && len(words) == 4 && words[2] == current:
			end(words[3])
		case words[1] == "done":
			done = true
		case words[1] == "error":
			errs = append(errs, fmt.Errorf("the runner: %s", strings.Join(words[2:], " ")))
		default:
			output.WriteString(line)
		}
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			errs = append(errs, err)
		}
		break
	}
	if current != "" {
		errs = append(errs, fmt.Errorf("the machine ended in the middle of %s", current))
		end("an end of the machine")
	}
	if !done {
		errs = append(errs, errors.New("the machine ended before its runner had done"))
	}
	for _, pkg := range p.Packages {
		if !ended[pkg.Name] {
			errs = append(errs, fmt.Errorf("%s was not run", pkg.Name))
		}
	}
	return errors.Join(errs...)
}

// parseTests reads a test binary's output by the go command's own converter.
func parseTests(ctx context.Context, pkg string, output []byte) ([]result, error) {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json")
	cmd.Stdin = bytes.NewReader(output)
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: test2json: %w", pkg, commandError(err))
	}
	byName := map[string]*result{}
	var order []*result
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var event struct{ Action, Test, Output string }
		if err := decoder.Decode(&event); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s: test2json: %w", pkg, err)
		}
		if event.Test == "" {
			continue
		}
		r, ok := byName[event.Test]
		if !ok {
			r = &result{name: pkg + "/" + event.Test, verdict: "unfinished"}
			byName[event.Test], order = r, append(order, r)
		}
		switch event.Action {
		case "output":
			r.output = append(r.output, event.Output)
		case "pass", "fail", "skip":
			r.verdict = event.Action
		}
	}
	var results []result
	for _, r := range order {
		results = append(results, *r)
	}
	return results, nil
}

// lastOf is the end of what was said.
func lastOf(text []byte) string {
	const most = 4000
	return strings.TrimSpace(string(text[max(0, len(text)-most):]))
}
