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
	return group("job", "List, watch and cancel jobs", newJobList(set), newJobShow(set), newJobWatch(set), newJobCancel(set))
}

func newJobList(set *settings) *cobra.Command {
	request := &bloomeryv1.ListJobsRequest{}
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List jobs, newest first",
		Example: `  bloomery job list --machine node1`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if request.GetPageSize() < 1 || request.GetPageSize() > 1000 {
				return usagef("--limit %d: use 1 to 1000", request.GetPageSize())
			}
			c, err := set.connect()
			if err != nil {
				return err
			}
			answer, err := ask(cmd.Context(), c.jobs.ListJobs, request)
			if err != nil {
				return err
			}
			return set.printMessage(cmd.OutOrStdout(), answer, func(w io.Writer) {
				row(w, "ID", "MACHINE", "KIND", "STATUS", "STEP", "AGE", "ERROR")
				for _, job := range answer.GetJobs() {
					row(w, job.GetId(), job.GetMachine(), enumWord("JOB_KIND_", job.GetKind()), enumWord("JOB_STATUS_", job.GetStatus()),
						currentStep(job), age(job.GetCreatedAt()), job.GetError())
				}
			})
		},
	}
	cmd.Flags().StringVar(&request.Machine, "machine", "", "only jobs of this machine")
	cmd.Flags().Int32Var(&request.PageSize, "limit", 50, "at most so many")
	return cmd
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
			row(w, fmt.Sprintf("Step %d", step.GetIndex()+1), fmt.Sprintf("%-14s %-8s %6s  %s", stepName(step),
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
