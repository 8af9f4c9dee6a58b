package store

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	bloomeryv1 "bloomery/api/bloomery/v1"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), testOptions(dir))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func testOptions(dir string) Options {
	return Options{Dir: filepath.Join(dir, "db"), SecretFile: filepath.Join(dir, "key"), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

func update(t *testing.T, s *Store, f func(*Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func machine(name, mac string) *bloomeryv1.Machine {
	return &bloomeryv1.Machine{Name: name, Macs: []string{mac}, Bmc: &bloomeryv1.BMC{Address: "b"}}
}

func TestSurvivesAReopen(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	update(t, s, func(tx *Tx) error {
		if err := tx.CreateMachine(machine("m1", "a"), "pass"); err != nil {
			return err
		}
		return tx.AppendEvent(&bloomeryv1.Event{Type: "x", Message: "first"}, "key")
	})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	update(t, s, func(tx *Tx) error { return tx.AppendEvent(&bloomeryv1.Event{Type: "x", Message: "again"}, "key") })
	err := s.View(t.Context(), func(r *Reader) error {
		password, err := r.BMCPassword("m1")
		if err != nil || password != "pass" {
			t.Errorf("password %q %v", password, err)
		}
		events, err := r.Events(EventFilter{Limit: 10})
		if err != nil || len(events) != 1 || events[0].GetMessage() != "first" {
			t.Errorf("events %v %v", events, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Update(t.Context(), func(tx *Tx) error { return tx.CreateMachine(machine("m2", "a"), "") }); !errors.Is(err, ErrExists) {
		t.Errorf("a MAC that is taken: %v", err)
	}
	// Nothing on disk holds the password in clear.
	err = filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(data), "pass\x00") {
			t.Errorf("%s holds the password", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAddresses(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	first, last := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2")
	lease := func(mac string) (a netip.Addr, err error) {
		err = s.Update(t.Context(), func(tx *Tx) (err error) { a, err = tx.AllocateLease(mac, "m", first, last); return err })
		return a, err
	}
	for _, want := range []struct{ mac, address string }{{"a", "10.0.0.1"}, {"b", "10.0.0.2"}, {"a", "10.0.0.1"}} {
		if got, err := lease(want.mac); err != nil || got.String() != want.address {
			t.Errorf("%s gets %v %v, want %s", want.mac, got, err, want.address)
		}
	}
	if _, err := lease("c"); !errors.Is(err, ErrExhausted) {
		t.Errorf("a full range: %v", err)
	}
}

func TestUpdateRollsBack(t *testing.T) {
	s := open(t, t.TempDir())
	defer func() { _ = s.Close() }()
	boom := errors.New("boom")
	err := s.Update(t.Context(), func(tx *Tx) error {
		if err := tx.CreateMachine(machine("m1", "a"), ""); err != nil {
			return err
		}
		return boom
	})
	if !errors.Is(err, boom) {
		t.Fatal(err)
	}
	if err := s.View(context.Background(), func(r *Reader) error { _, err := r.Machine("m1"); return err }); !errors.Is(err, ErrNotFound) {
		t.Errorf("a failed update left something: %v", err)
	}
}
