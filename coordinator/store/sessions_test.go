package store

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func TestFencing(t *testing.T) {
	for _, h := range []Holding{{Job: "j"}, {Duty: "archive"}} {
		t.Run(h.String(), func(t *testing.T) {
			s := open(t, t.TempDir())
			defer func() { _ = s.Close() }()
			update(t, s, func(tx *Tx) error {
				return errors.Join(tx.OpenSession("a"), tx.OpenSession("b"),
					tx.CreateJob(&Job{Job: &bloomeryv1.Job{Id: "j", Machine: "m", Status: bloomeryv1.JobStatus_JOB_STATUS_RUNNING, CreatedAt: timestamppb.Now()}}))
			})
			claim := func(session string) (f Fence, ok bool) {
				update(t, s, func(tx *Tx) (err error) { f, ok, err = tx.Claim(h, session); return err })
				return f, ok
			}
			check := func(f Fence) error {
				return s.Update(t.Context(), func(tx *Tx) error { return tx.Check(f) })
			}
			if err := check(Fence{Holding: h, Owner: "a", Epoch: 1}); !errors.Is(err, ErrFenced) {
				t.Errorf("a fence that nobody was given holds: %v", err)
			}
			first, ok := claim("a")
			if !ok || first.Epoch != 1 {
				t.Fatalf("nobody holds it, and the claim gives %v %v", first, ok)
			}
			if _, ok := claim("b"); ok {
				t.Error("two hold it")
			}
			again, ok := claim("a")
			if !ok || again.Epoch != 2 || !errors.Is(check(first), ErrFenced) || check(again) != nil {
				t.Errorf("the holder that claims again gets %v %v, and its first fence %v", again, ok, check(first))
			}
			update(t, s, func(tx *Tx) error { return tx.Beat(Session{"a", 1}) })
			end := func(seen Session) (ok bool) {
				update(t, s, func(tx *Tx) (err error) { ok, err = tx.EndSession(seen); return err })
				return ok
			}
			if end(Session{"a", 0}) {
				t.Error("a session was ended that had beaten since it was seen")
			}
			if !end(Session{"a", 1}) {
				t.Fatal("a silent session cannot be ended")
			}
			if err := s.Update(t.Context(), func(tx *Tx) error { return tx.Beat(Session{"a", 2}) }); !errors.Is(err, ErrFenced) {
				t.Errorf("a session that was ended beats: %v", err)
			}
			if err := s.Update(t.Context(), func(tx *Tx) error { _, _, err := tx.Claim(h, "a"); return err }); !errors.Is(err, ErrFenced) {
				t.Errorf("a session that was ended claims: %v", err)
			}
			second, ok := claim("b")
			if !ok || second.Epoch != 3 || !errors.Is(check(again), ErrFenced) {
				t.Errorf("after the holder's end: %v %v, and the first holder's check says %v", second, ok, check(again))
			}
			update(t, s, func(tx *Tx) error { return tx.Yield(again) })
			if err := check(second); err != nil {
				t.Errorf("an earlier holder gave it away: %v", err)
			}
			update(t, s, func(tx *Tx) error { return tx.Yield(second) })
			if err := check(second); !errors.Is(err, ErrFenced) {
				t.Errorf("it was given up and is held: %v", err)
			}
		})
	}
}

func TestFreeJobs(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	update(t, s, func(tx *Tx) error {
		for i, id := range []string{"free", "mine", "other", "ended"} {
			j := &bloomeryv1.Job{Id: id, Machine: "m", Status: bloomeryv1.JobStatus_JOB_STATUS_RUNNING, CreatedAt: timestamppb.New(time.Unix(int64(i), 0))}
			if id == "ended" {
				j.Status = bloomeryv1.JobStatus_JOB_STATUS_DONE
			}
			if err := tx.CreateJob(&Job{Job: j}); err != nil {
				return err
			}
		}
		return errors.Join(tx.OpenSession("a"), tx.OpenSession("b"))
	})
	update(t, s, func(tx *Tx) error {
		_, _, err := tx.Claim(Holding{Job: "mine"}, "a")
		_, _, err2 := tx.Claim(Holding{Job: "other"}, "b")
		return errors.Join(err, err2)
	})
	free := func() (ids []string) {
		var jobs []RunningJob
		if err := s.View(t.Context(), func(r *Reader) (err error) { jobs, err = r.RunningJobs("a"); return err }); err != nil {
			t.Fatal(err)
		}
		for _, j := range jobs {
			if j.Free {
				ids = append(ids, j.ID)
			}
		}
		return ids
	}
	if ids := free(); len(ids) != 2 || ids[0] != "free" || ids[1] != "mine" {
		t.Errorf("free for a: %v", ids)
	}
	update(t, s, func(tx *Tx) error { return tx.CloseSession("b") })
	if ids := free(); len(ids) != 3 {
		t.Errorf("free after b's end: %v", ids)
	}
	claim := func(session string, ids ...string) (fences []Fence) {
		update(t, s, func(tx *Tx) (err error) { fences, err = tx.ClaimJobs(ids, session); return err })
		slices.SortFunc(fences, func(a, b Fence) int { return strings.Compare(a.Job, b.Job) })
		return fences
	}
	if got := claim("b", "free", "mine", "other"); len(got) != 0 {
		t.Errorf("a session that has ended claimed %v", got)
	}
	update(t, s, func(tx *Tx) error { return tx.OpenSession("c") })
	if got := claim("c", "free", "mine", "other", "ended", "nowhere"); !slices.Equal(got, []Fence{{Holding{Job: "free"}, "c", 1}, {Holding{Job: "other"}, "c", 2}}) {
		t.Errorf("c claimed %v", got)
	}
	if got := claim("a", "free", "mine"); !slices.Equal(got, []Fence{{Holding{Job: "mine"}, "a", 2}}) {
		t.Errorf("a claimed %v", got)
	}
	if err := s.Update(t.Context(), func(tx *Tx) error {
		_, ok, err := tx.Claim(Holding{Job: "ended"}, "a")
		if ok {
			t.Error("a job that has ended was claimed")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}
