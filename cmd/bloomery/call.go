package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
)

// Deadlines of one call; reading a large image again takes its disk's time.
const (
	callTimeout   = time.Minute
	verifyTimeout = 30 * time.Minute
)

// ask makes one call under a deadline.
func ask[Q, A any](ctx context.Context, method func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), request *Q) (*A, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := method(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, err
	}
	return answer.Msg, nil
}

// oneThing makes a command of the form NOUN VERB NAME that makes one call and prints what it returns.
func oneThing[T any](set *settings, cmd *cobra.Command, get func(context.Context, *client, string) (T, error), print func(io.Writer, T) error) *cobra.Command {
	cmd.Args = exactArgs(1)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := set.connect()
		if err != nil {
			return err
		}
		thing, err := get(cmd.Context(), c, args[0])
		if err != nil {
			return err
		}
		return print(cmd.OutOrStdout(), thing)
	}
	return cmd
}

// How long a watch is opened again while no coordinator answers: a restart must cost nothing but time.
const watchPatience = 2 * time.Minute

// A try that lasted longer than this was connected: dialling and the TLS handshake give up before.
const connectedAfter = 30 * time.Second

// keepWatching opens a stream again whenever it is lost, until watch says that all was seen. heard is
// called by watch for each message. It returns ctx's error when the context ended first.
func keepWatching(ctx context.Context, watch func(ctx context.Context, heard func()) (complete bool, err error)) error {
	lastAnswer := time.Now()
	for {
		begin := time.Now()
		complete, err := watch(ctx, func() { lastAnswer = time.Now() })
		if complete {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !passing(err) {
			return err
		}
		if time.Since(begin) > connectedAfter {
			lastAnswer = time.Now()
		}
		if time.Since(lastAnswer) > watchPatience {
			if err == nil {
				err = fmt.Errorf("the coordinator ended the watch again and again for %s", watchPatience)
			}
			return err
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// passing tells an error that a restarted coordinator or network explains from one that stays.
func passing(err error) bool {
	switch connect.CodeOf(err) {
	case connect.CodeUnavailable, connect.CodeUnknown, connect.CodeDeadlineExceeded, connect.CodeInternal, connect.CodeCanceled, connect.CodeAborted:
		return true
	}
	return false
}
