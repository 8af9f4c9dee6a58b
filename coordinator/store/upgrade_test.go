package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/store/storetest"
)

// schema1 is what the first release left; testdata/schema-1/make.sh makes it and says what is in it.
const schema1 = "testdata/schema-1/data.tar.zst"

func openSchema1(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), schema1Options(dir))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func schema1Options(dir string) Options {
	return Options{Dir: filepath.Join(dir, "dqlite"), SecretFile: filepath.Join(dir, "secret.key"), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

func closed(t *testing.T, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestEarlierDatabaseMigrates(t *testing.T) {
	dir := t.TempDir()
	storetest.Unpack(t, schema1, dir)
	s := openSchema1(t, dir)
	checkSchema1(t, s)
	var last int64
	update(t, s, func(tx *Tx) error {
		events, err := tx.Events(EventFilter{Limit: 1000})
		if err != nil {
			return err
		}
		last = events[len(events)-1].GetSequence()
		return tx.AppendEvent(&bloomeryv1.Event{Type: "test.after", Message: "after the migration"}, "")
	})
	err := s.View(t.Context(), func(r *Reader) error {
		events, err := r.Events(EventFilter{After: last, Limit: 10})
		if err == nil && (len(events) != 1 || events[0].GetSequence() != last+1) {
			t.Errorf("the first event after the migration: %v, want sequence %d", events, last+1)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	applied := versions(t, s)
	closed(t, s)

	s = openSchema1(t, dir)
	defer closed(t, s)
	checkSchema1(t, s)
	if again := versions(t, s); again != applied {
		t.Errorf("a second start migrated again:\n%s\nbefore:\n%s", again, applied)
	}
}

// checkSchema1 looks for what the fixture was filled with.
func checkSchema1(t *testing.T, s *Store) {
	t.Helper()
	err := s.View(t.Context(), func(r *Reader) error {
		for name, want := range map[string]string{"m1": "top-secret", "m2": "m2-secret"} {
			if got, err := r.BMCPassword(name); err != nil || got != want {
				t.Errorf("BMC password of %s: %q %v, want %q", name, got, err, want)
			}
		}
		m1, err := r.Machine("m1")
		if err != nil {
			return err
		}
		if m1.GetStatus() != bloomeryv1.MachineStatus_MACHINE_STATUS_INSTALLING || m1.GetJobId() == "" {
			t.Errorf("m1 is %v with job %q", m1.GetStatus(), m1.GetJobId())
		}
		// Its install was writing: the disk that was one serial number is a list of one.
		if disks := m1.GetCustomerDisks(); len(disks) != 1 || disks[0].GetSerial() == "" || disks[0].GetSerial() != m1.GetDiskSerial() {
			t.Errorf("m1's disks with a customer's data are %v, its serial number was %q", disks, m1.GetDiskSerial())
		}
		if _, err := r.JobTarget(m1.GetJobId()); !errors.Is(err, ErrNotFound) {
			t.Errorf("the plan of a job of before plans: %v", err)
		}
		m2, err := r.Machine("m2")
		if err != nil {
			return err
		}
		if m2.GetLock().GetTeam() != "anti-ddos" || m2.GetLock().GetReason() != "under attack" {
			t.Errorf("m2's lock is %v", m2.GetLock())
		}
		running, err := r.RunningJobs("")
		if err != nil {
			return err
		}
		if len(running) != 1 || running[0].ID != m1.GetJobId() {
			t.Fatalf("running jobs %v, want %s", running, m1.GetJobId())
		}
		job, err := r.Job(running[0].ID)
		if err != nil {
			return err
		}
		if job.Current().GetWriteImage() == nil || job.Current().GetProgress().GetResumeFrame() != 7 {
			t.Errorf("the running job stands at %v", job.Current())
		}
		boot, err := r.Boot("m1")
		if err != nil {
			return err
		}
		if boot == nil || boot.JobID != running[0].ID || boot.Enrolled.IsZero() {
			t.Errorf("m1's boot is %+v", boot)
		}
		counts := map[string]int{}
		for table, query := range map[string]string{
			"jobs": "SELECT COUNT(*) FROM jobs", "failed jobs": "SELECT COUNT(*) FROM jobs WHERE status = 3", "leases": "SELECT COUNT(*) FROM leases",
			"addresses": "SELECT COUNT(*) FROM addresses", "requests": "SELECT COUNT(*) FROM requests",
		} {
			var n int
			if err := r.q.QueryRowContext(r.ctx, query).Scan(&n); err != nil {
				return err
			}
			counts[table] = n
		}
		for table, want := range map[string]int{"jobs": 3, "failed jobs": 1, "leases": 1, "addresses": 1, "requests": 1} {
			if counts[table] != want {
				t.Errorf("%d %s, want %d", counts[table], table, want)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// versions is the record of migrations.
func versions(t *testing.T, s *Store) string {
	t.Helper()
	rows, err := s.read.QueryContext(t.Context(), "SELECT version, applied FROM schema_versions ORDER BY version")
	if err != nil {
		t.Fatal(err)
	}
	lines, err := collect(rows, func(rows *sql.Rows) (string, error) {
		var version, applied int64
		err := rows.Scan(&version, &applied)
		return fmt.Sprintf("%d at %d", version, applied), err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

func TestNewerDatabaseIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := openSchema1(t, dir)
	all, err := migrations()
	if err != nil {
		t.Fatal(err)
	}
	newer := len(all) + 1
	if _, err := s.write.ExecContext(t.Context(), "INSERT INTO schema_versions (version, applied) VALUES (?, 1)", newer); err != nil {
		t.Fatal(err)
	}
	closed(t, s)
	s, err = Open(t.Context(), schema1Options(dir))
	if err == nil {
		closed(t, s)
		t.Fatal("a newer database was opened")
	}
	for _, want := range []string{fmt.Sprintf("version %d", newer), fmt.Sprintf("knows %d", len(all)), "newer bloomeryd"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %q", err, want)
		}
	}
}

// childDir makes the test binary a process that opens what is in a folder and waits to be killed; see TestKilledWhileMigrating.
const childDir = "BLOOMERY_TEST_OPEN"

func TestMain(m *testing.M) {
	dir := os.Getenv(childDir)
	if dir == "" {
		os.Exit(m.Run())
	}
	if _, err := Open(context.Background(), schema1Options(dir)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("opened")
	select {}
}

// TestKilledWhileMigrating kills a process at several moments between its start and the end of its migrations.
func TestKilledWhileMigrating(t *testing.T) {
	whole := openAndKill(t, t.TempDir(), 0)
	reached := map[int]int{}
	const rounds = 8
	for i := range rounds {
		dir := t.TempDir()
		// Most of the time goes into starting the process and the node; the migrations are its last part.
		openAndKill(t, dir, whole*time.Duration(50+i*50/rounds)/100)
		killed := time.Now().UnixNano()
		s := openSchema1(t, dir)
		checkSchema1(t, s)
		var done int
		if err := s.read.QueryRowContext(t.Context(), "SELECT COUNT(*) FROM schema_versions WHERE applied < ?", killed).Scan(&done); err != nil {
			t.Fatal(err)
		}
		reached[done]++
		closed(t, s)
	}
	t.Logf("rounds by the number of migrations that were done when the process was killed: %v", reached)
}

// openAndKill unpacks the fixture, has another process open it, kills that one after a while (when opened, for 0) and says how long it lived.
func openAndKill(t *testing.T, dir string, after time.Duration) time.Duration {
	t.Helper()
	storetest.Unpack(t, schema1, dir)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0])
	child.Env = append(os.Environ(), childDir+"="+dir)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if after > 0 {
		time.Sleep(after)
	} else if _, err := io.ReadAtLeast(out, make([]byte, len("opened")), len("opened")); err != nil {
		t.Fatalf("the child ended: %v", errors.Join(err, child.Wait()))
	}
	took := time.Since(begin)
	_ = child.Process.Kill()
	if err := child.Wait(); err == nil {
		t.Error("the child was to be killed")
	}
	return took
}
