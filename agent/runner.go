package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	pb "bloomery/api/bloomery/v1"
)

// maxResult is what a coordinator takes of one step's result, in bytes.
const maxResult = 256 << 10

// runner asks for the next step, runs it, reports what came of it, and asks again once that is acknowledged. It is one goroutine's.
type runner struct {
	agent *Agent
	// finished are the steps that touched a disk in this boot, by id: none of them runs a second time.
	finished map[string]*pb.StepFinished
	// configured are what systems that were configured in this boot start with, by job.
	configured map[string]installedKernel
}

// run goes on until ctx ends.
func (r *runner) run(ctx context.Context) error {
	backoff, lost := minSendBackoff, false
	for {
		response, err := r.agent.connection.nextStep(ctx, r.agent.bootID)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if !lost {
				r.agent.console.say("no steps can be had, trying again: %v", err)
				lost = true
			}
			if code := connect.CodeOf(err); code == connect.CodeUnauthenticated {
				if _, err := r.agent.enroller.enrol(ctx); err != nil {
					return err
				}
			}
			if !sleep(ctx, backoff/2+rand.N(backoff)) {
				return ctx.Err()
			}
			backoff = min(2*backoff, maxSendBackoff)
			continue
		}
		backoff, lost = minSendBackoff, false
		if response.GetStep() == nil {
			continue
		}
		if err := r.step(ctx, response); err != nil {
			return err
		}
	}
}

// step runs one step and returns when its end is acknowledged; the error is only that ctx ended.
func (r *runner) step(ctx context.Context, given *pb.NextStepResponse) error {
	jobID, step := given.JobId, given.Step
	a, kind := r.agent, stepKind(step)
	run := &stepRun{agent: a, jobID: jobID, step: step, target: given.Target}
	finished, again := r.finished[step.Id]
	if again {
		a.console.say("step %s (%s) was done before in this boot and is not run again", kind, plain(step.Id))
		a.log.Warn("finished step was handed out again", "job", jobID, "step", step.Id, "kind", kind)
		finished = proto.CloneOf(finished)
	} else {
		start := time.Now()
		a.console.say("step %s START", kind)
		a.reporter.add(jobID, step.Id, &pb.Report{Body: &pb.Report_Started{Started: &pb.StepStarted{}}})
		finished = r.execute(ctx, run)
		if ctx.Err() != nil {
			return ctx.Err() // interrupted, not finished: whoever boots next goes on
		}
		if touchesDisk(step) {
			r.finished[step.Id] = proto.CloneOf(finished)
		}
		if finished.Ok {
			a.console.say("step %s DONE %.2f s", kind, time.Since(start).Seconds())
		} else {
			a.console.say("step %s FAILED %.2f s: %s: %s", kind, time.Since(start).Seconds(), finished.ErrorReason, finished.Error)
		}
	}
	sequence := a.reporter.add(jobID, step.Id, &pb.Report{Body: &pb.Report_Finished{Finished: finished}})
	if err := a.reporter.wait(ctx, sequence); err != nil {
		return err
	}
	if finished.Ok && step.GetHandover() != nil {
		return r.agent.leave(ctx, run.kexec)
	}
	return nil
}

func (r *runner) execute(ctx context.Context, run *stepRun) (finished *pb.StepFinished) {
	defer func() {
		if panicked := recover(); panicked != nil {
			run.agent.log.Error("step panicked", "step", run.step.Id, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
			finished = &pb.StepFinished{ErrorReason: reasonInternal, Error: plain(fmt.Sprintf("panic: %v", panicked))}
		}
	}()
	value, err := run.do(ctx)
	result, convertErr := toStruct(value)
	if err == nil {
		err = convertErr
	}
	finished = &pb.StepFinished{Ok: err == nil, Result: result}
	if err != nil {
		var known *StepError
		finished.Error, finished.ErrorReason = plain(err.Error()), reasonInternal
		if errors.As(err, &known) {
			finished.ErrorReason, finished.MachineFaulty = known.Reason, known.Faulty
		}
	}
	return finished
}

// toStruct makes a step's result what the API carries.
func toStruct(value any) (*structpb.Struct, error) {
	if value == nil {
		return nil, nil
	}
	data, err := json.Marshal(value)
	if err != nil {
		return nil, fmt.Errorf("marshal the step's result: %w", err)
	}
	fields := map[string]any{}
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("marshal the step's result: %w", err)
	}
	result, err := structpb.NewStruct(fields)
	if err != nil {
		return nil, fmt.Errorf("marshal the step's result: %w", err)
	}
	if n := proto.Size(result); n > maxResult {
		return nil, fmt.Errorf("the step's result has %d bytes, a coordinator takes %d", n, maxResult)
	}
	return result, nil
}
