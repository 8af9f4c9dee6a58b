package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// follow shows a job until it has ended; its failure is an error. A watch that is lost is opened again.
func (s *settings) follow(cmd *cobra.Command, c *client, id string) error {
	display := newDisplay(cmd.ErrOrStderr())
	var job *bloomeryv1.Job
	err := keepWatching(cmd.Context(), func(ctx context.Context, heard func()) (bool, error) {
		stream, err := c.jobs.WatchJob(ctx, connect.NewRequest(&bloomeryv1.WatchJobRequest{Id: id}))
		if err != nil {
			return false, err
		}
		defer stream.Close()
		for stream.Receive() {
			job = stream.Msg().GetJob()
			heard()
			display.show(job)
		}
		return job != nil && job.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_RUNNING, stream.Err()
	})
	if cmd.Context().Err() != nil {
		return fmt.Errorf("stopped watching; the job goes on: bloomery job watch %s", id)
	}
	if err != nil {
		return err
	}
	if s.output != "table" {
		if err := s.printJob(cmd.OutOrStdout(), job); err != nil {
			return err
		}
	}
	if job.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		return jobError(job)
	}
	return nil
}

// jobError says why a job did not end done; a cancelled one has no reason.
func jobError(job *bloomeryv1.Job) error {
	text := fmt.Sprintf("job %s %s", job.GetId(), enumWord("JOB_STATUS_", job.GetStatus()))
	if job.GetError() != "" {
		text += ": " + job.GetError()
	}
	if job.GetErrorReason() != "" {
		text += " (" + job.GetErrorReason() + ")"
	}
	return errors.New(text)
}

// display draws a job: one line a step that is redrawn on a terminal, plain lines elsewhere.
type display struct {
	w        io.Writer
	terminal bool
	// last plain line of each step, so that nothing is printed twice
	printed map[string]string
	drawn   int
}

func newDisplay(w io.Writer) *display {
	file, ok := w.(*os.File)
	return &display{w: w, terminal: ok && term.IsTerminal(int(file.Fd())), printed: map[string]string{}}
}

func (d *display) show(job *bloomeryv1.Job) {
	if d.terminal {
		d.redraw(job)
		return
	}
	for _, step := range job.GetSteps() {
		line := ""
		switch step.GetStatus() {
		case bloomeryv1.StepStatus_STEP_STATUS_RUNNING:
			// Every tenth percent, so that a log stays short.
			line = fmt.Sprintf("%s running", stepName(step))
			if tenth := int(step.GetProgress().GetPercent()) / 10 * 10; tenth > 0 {
				line = fmt.Sprintf("%s running %d%%%s", stepName(step), tenth, rateText(step))
			}
			if sameTenth(d.printed[step.GetId()], line) {
				continue
			}
		case bloomeryv1.StepStatus_STEP_STATUS_DONE:
			line = fmt.Sprintf("%s done in %s", stepName(step), stepSeconds(step))
		case bloomeryv1.StepStatus_STEP_STATUS_FAILED:
			line = fmt.Sprintf("%s FAILED after %s: %s", stepName(step), stepSeconds(step), step.GetError())
		}
		if line != "" && d.printed[step.GetId()] != line {
			d.printed[step.GetId()] = line
			fmt.Fprintf(d.w, "%s  %d/%d %s\n", job.GetMachine(), step.GetIndex()+1, len(job.GetSteps()), line)
		}
	}
}

// sameTenth reports whether two progress lines differ in their rate only.
func sameTenth(a, b string) bool {
	head := func(s string) string { before, _, _ := strings.Cut(s, "%"); return before }
	return a != "" && head(a) == head(b)
}

func (d *display) redraw(job *bloomeryv1.Job) {
	if d.drawn > 0 {
		fmt.Fprintf(d.w, "\x1b[%dA", d.drawn)
	}
	for _, step := range job.GetSteps() {
		mark, tail := " ", ""
		switch step.GetStatus() {
		case bloomeryv1.StepStatus_STEP_STATUS_DONE:
			mark, tail = "✓", stepSeconds(step)
		case bloomeryv1.StepStatus_STEP_STATUS_FAILED:
			mark, tail = "✗", step.GetError()
		case bloomeryv1.StepStatus_STEP_STATUS_RUNNING:
			mark = "•"
			tail = stepSeconds(step) + " " + bar(step.GetProgress().GetPercent()) + rateText(step) + " " + step.GetProgress().GetMessage()
		}
		fmt.Fprintf(d.w, "\x1b[2K%s %-16s %s\n", mark, stepName(step), firstRunes(tail, 80))
	}
	d.drawn = len(job.GetSteps())
}

func bar(percent float64) string {
	const width = 20
	if percent <= 0 {
		return ""
	}
	full := min(int(percent/100*width), width)
	return fmt.Sprintf("[%s%s] %3.0f%%", strings.Repeat("#", full), strings.Repeat(".", width-full), percent)
}

// rateText says how quickly a step's bytes flow and when it will be done. The time left follows the percentage: a disk's
// runs of zeros cost no time.
func rateText(step *bloomeryv1.Step) string {
	p := step.GetProgress()
	if p.GetBytesPerSecond() <= 0 || p.GetPercent() <= 0 {
		return ""
	}
	spent := time.Since(step.GetStartedAt().AsTime())
	left := time.Duration(float64(spent) * (100 - p.GetPercent()) / p.GetPercent())
	return fmt.Sprintf(" %.0f MB/s, %s left", p.GetBytesPerSecond()/1e6, max(left, 0).Round(time.Second))
}

func firstRunes(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	return string(runes[:n-1]) + "…"
}
