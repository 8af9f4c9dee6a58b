package lab

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"testing"
)

// TestMain lets the test binary stand for the bloomery executable, whose `lab supervise` Up starts, and
// for a program that just waits.
func TestMain(m *testing.M) {
	switch {
	case len(os.Args) == 4 && os.Args[1] == "lab" && os.Args[2] == "supervise":
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, termination)
		defer stop()
		if err := Supervise(ctx, os.Args[3], slog.New(slog.NewTextHandler(os.Stderr, nil))); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	case os.Getenv("LAB_TEST_WAIT") != "":
		select {}
	default:
		os.Exit(m.Run())
	}
}
