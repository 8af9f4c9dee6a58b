package store

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestJobPlan(t *testing.T) {
	s := open(t, t.TempDir())
	want := JobPlan{Plan: []byte(`{"format":"bloomery.plan/v1"}`), Secrets: map[string][]byte{"disk": []byte("correct horse"), "luks/root": {0, 1, 0xff}}}
	update(t, s, func(tx *Tx) error {
		return errors.Join(tx.CreateJobPlan("j1", want), tx.CreateJobPlan("j2", JobPlan{Plan: want.Plan}))
	})
	view := func(f func(*Reader) error) {
		t.Helper()
		if err := s.View(t.Context(), f); err != nil {
			t.Fatal(err)
		}
	}
	view(func(r *Reader) error {
		got, err := r.JobTarget("j1")
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		if none, err := r.JobTarget("j2"); err != nil || none.Secrets != nil {
			t.Errorf("a plan without secrets: %v, %v", none, err)
		}
		_, sealed, sealErr := r.jobPlan("j1")
		if bytes.Contains(sealed, []byte("horse")) || len(sealed) == 0 {
			t.Errorf("the stored secrets: %q", sealed)
		}
		if _, err := r.sealer.open(sealed, sealedPlan("j2")); err == nil {
			t.Error("secrets of one job open as another's")
		}
		if _, err := r.JobPlan("j3"); !errors.Is(err, ErrNotFound) {
			t.Errorf("a job without a plan: %v", err)
		}
		return errors.Join(err, sealErr)
	})
	update(t, s, func(tx *Tx) error { return errors.Join(tx.DropJobSecrets("j1"), tx.DropJobSecrets("none")) })
	view(func(r *Reader) error {
		got, err := r.JobTarget("j1")
		if !bytes.Equal(got.Plan, want.Plan) || got.Secrets != nil {
			t.Errorf("after the secrets were dropped: %v", got)
		}
		return err
	})
}
