package store

import (
	"errors"
	"testing"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

// TestAWriterThatStandsStill stops a coordinator in the middle of a transaction; the others write on soon after.
func TestAWriterThatStandsStill(t *testing.T) {
	c := newTestCluster(t)
	a, b := freeAddress(t), freeAddress(t)
	first := c.start("c1", a)
	second := c.start("c2", b, a)
	if !first.Leading() {
		t.Fatal("the first node does not lead")
	}
	inside, release, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	standsStill := errors.New("this coordinator stood still")
	go func() {
		ended <- second.Update(t.Context(), func(tx *Tx) error {
			if err := tx.AppendEvent(&bloomeryv1.Event{Type: "x", Message: "half"}, "half"); err != nil {
				return err
			}
			close(inside)
			<-release
			return standsStill
		})
	}()
	<-inside
	begin := time.Now()
	if err := first.Update(t.Context(), func(tx *Tx) error { return tx.AppendEvent(&bloomeryv1.Event{Type: "x", Message: "whole"}, "whole") }); err != nil {
		t.Errorf("a write while another coordinator stands still: %v", err)
	}
	t.Logf("written after %s", time.Since(begin))
	close(release)
	if err := <-ended; !errors.Is(err, standsStill) {
		t.Errorf("the one that stood still: %v", err)
	}
	err := first.View(t.Context(), func(r *Reader) error {
		events, err := r.Events(EventFilter{Limit: 10})
		if err == nil && (len(events) != 1 || events[0].GetMessage() != "whole") {
			t.Errorf("events %v", events)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
