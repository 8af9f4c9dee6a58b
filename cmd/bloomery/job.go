package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func newJobCommand(set *settings) *cobra.Command {
	return group("job", "List, watch and cancel jobs", newJobList(set, nil), newJobShow(set), newJobWatch(set), newJobPlan(set), newJobCancel(set))
}

func newJobList(set *settings, in *fleetFlags) *cobra.Command {
	request := &bloomeryv1.ListJobsRequest{}
	cmd := &cobra.Command{
		Use:         "list",
		Short:       "List jobs, newest first",
		Example:     `  bloomery job list --machine node1`,
		Annotations: rowFormats(),
		Args:        noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if request.GetPageSize() < 1 || request.GetPageSize() > 1000 {
				return usagef("--limit %d: use 1 to 1000", request.GetPageSize())
			}
			return listing[*bloomeryv1.ListJobsResponse, *bloomeryv1.Job]{
				one: "job", many: "jobs", whole: true, items: (*bloomeryv1.ListJobsResponse).GetJobs, columns: jobColumns,
				fetch: func(ctx context.Context, c *client) (*bloomeryv1.ListJobsResponse, error) {
					return ask(ctx, c.jobs.ListJobs, request)
				},
				compare: func(a, b *bloomeryv1.Job) int { return timeOf(b.GetCreatedAt()).Compare(timeOf(a.GetCreatedAt())) },
			}.run(cmd, set, in)
		},
	}
	cmd.Flags().StringVar(&request.Machine, "machine", "", "only jobs of this machine")
	cmd.Flags().Int32Var(&request.PageSize, "limit", 50, "at most so many")
	if in != nil {
		cmd.Example = `  bloomery fleet job list --limit 10`
		cmd.Flags().Lookup("limit").Usage = "at most so many of each rack"
	}
	return cmd
}

func jobColumns() []column[*bloomeryv1.Job] {
	return []column[*bloomeryv1.Job]{
		{"id", "ID", (*bloomeryv1.Job).GetId},
		{"machine", "MACHINE", (*bloomeryv1.Job).GetMachine},
		{"kind", "KIND", func(j *bloomeryv1.Job) string { return enumWord("JOB_KIND_", j.GetKind()) }},
		{"status", "STATUS", func(j *bloomeryv1.Job) string { return enumWord("JOB_STATUS_", j.GetStatus()) }},
		{"step", "STEP", currentStep},
		{"age", "AGE", func(j *bloomeryv1.Job) string { return age(j.GetCreatedAt()) }},
		{"error", "ERROR", (*bloomeryv1.Job).GetError},
	}
}

func newJobShow(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "show ID",
		Short:   "Show a job and its steps",
		Example: `  bloomery job show 01j…`,
	}, func(ctx context.Context, c *client, id string) (*bloomeryv1.Job, error) {
		answer, err := ask(ctx, c.jobs.GetJob, &bloomeryv1.GetJobRequest{Id: id})
		return answer.GetJob(), err
	}, set.printJob)
}

func newJobWatch(set *settings) *cobra.Command {
	return &cobra.Command{
		Use:     "watch ID",
		Short:   "Show a job's progress until it has ended; its failure is the command's",
		Example: `  bloomery job watch 01j…`,
		Args:    exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := set.connect()
			if err != nil {
				return err
			}
			return set.follow(cmd, c, args[0])
		},
	}
}

func newJobCancel(set *settings) *cobra.Command {
	return oneThing(set, &cobra.Command{
		Use:     "cancel ID",
		Short:   "Stop a job before its next step",
		Example: `  bloomery job cancel 01j…`,
	}, func(ctx context.Context, c *client, id string) (*bloomeryv1.Job, error) {
		answer, err := ask(ctx, c.jobs.CancelJob, &bloomeryv1.CancelJobRequest{Id: id})
		return answer.GetJob(), err
	}, set.printJob)
}

func (s *settings) printJob(w io.Writer, job *bloomeryv1.Job) error {
	return s.printMessage(w, job, func(w io.Writer) {
		row(w, "Job", job.GetId())
		row(w, "Machine", job.GetMachine())
		row(w, "Kind", enumWord("JOB_KIND_", job.GetKind()))
		row(w, "Status", enumWord("JOB_STATUS_", job.GetStatus()))
		if job.GetError() != "" {
			row(w, "Error", fmt.Sprintf("%s (%s)", job.GetError(), job.GetErrorReason()))
		}
		for _, step := range job.GetSteps() {
			row(w, fmt.Sprintf("Step %d", step.GetIndex()+1), fmt.Sprintf("%-16s %-8s %6s  %s", stepName(step),
				enumWord("STEP_STATUS_", step.GetStatus()), stepSeconds(step), step.GetError()))
		}
	})
}

func currentStep(job *bloomeryv1.Job) string {
	index := int(job.GetStepIndex())
	if index >= len(job.GetSteps()) {
		return fmt.Sprintf("%d/%d", len(job.GetSteps()), len(job.GetSteps()))
	}
	return fmt.Sprintf("%d/%d %s", index+1, len(job.GetSteps()), stepName(job.GetSteps()[index]))
}

// stepName is the word for a step's type: write-image for write_image.
func stepName(step *bloomeryv1.Step) string {
	message := step.ProtoReflect()
	field := message.WhichOneof(message.Descriptor().Oneofs().ByName("spec"))
	if field == nil {
		return "unknown"
	}
	return strings.ReplaceAll(string(field.Name()), "_", "-")
}

func stepSeconds(step *bloomeryv1.Step) string {
	if step.GetStartedAt() == nil {
		return ""
	}
	end := time.Now()
	if step.GetFinishedAt() != nil {
		end = step.GetFinishedAt().AsTime()
	}
	return fmt.Sprintf("%.1fs", end.Sub(step.GetStartedAt().AsTime()).Seconds())
}
