package coordinator

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"connectrpc.com/connect"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/api/bloomery/v1/bloomeryv1connect"
	"bloomery/coordinator/backup"
	"bloomery/coordinator/store"
	"bloomery/internal/pki"
)

const testPassphrase = "correct horse battery"

// backup takes one as an operator does.
func (r *rack) backup(passphrase string) ([]byte, error) {
	client := bloomeryv1connect.NewRackServiceClient(r.operator().http, "https://"+r.api)
	stream, err := client.BackupRack(r.life, connect.NewRequest(&bloomeryv1.BackupRackRequest{Passphrase: passphrase}))
	if err != nil {
		return nil, err
	}
	var data []byte
	for stream.Receive() {
		data = append(data, stream.Msg().GetData()...)
	}
	return data, errors.Join(stream.Err(), stream.Close())
}

// elsewhere is the configuration of an empty node.
func (r *rack) elsewhere(t *testing.T) Config {
	c := r.config
	c.Data, c.Node = t.TempDir(), DefaultNode
	c.PKI = filepath.Join(c.Data, "pki")
	return c
}

func restoreOptions(jobs RunningJobs) RestoreOptions {
	return RestoreOptions{Passphrase: testPassphrase, RunningJobs: jobs, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
}

// inTheMiddle is a rack whose machine is being installed and waits, until release is closed, before its image is written.
func inTheMiddle(t *testing.T) (r *rack, job string, release chan struct{}) {
	r = newRack(t)
	op := r.operator()
	r.createMachine(op)
	r.inspect(op)
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.setAct(func(_ *agent, s *bloomeryv1.Step) *bloomeryv1.StepFinished {
		if s.GetWriteImage() != nil {
			once.Do(func() { close(reached); <-release })
		}
		return &bloomeryv1.StepFinished{Ok: true}
	})
	job = r.install(op)
	<-reached
	return r, job, release
}

func TestRestoreGoesOnWithAnInstall(t *testing.T) {
	r, job, release := inTheMiddle(t)
	data, err := r.backup(testPassphrase)
	must(t, err)
	if bytes.Contains(data, []byte("top-secret")) || bytes.Contains(data, []byte("hunter2")) || bytes.Contains(data, []byte("PRIVATE KEY")) {
		t.Error("the backup is not encrypted")
	}
	if n := r.eventTypes()["rack.backup"]; n != 1 {
		t.Errorf("%d events rack.backup, want 1", n)
	}
	events, err := r.c.events(t.Context(), store.EventFilter{Limit: 10000})
	must(t, err)
	r.halt()

	// The first coordinator and its disk are gone. Another node takes its place; the machine's agent still waits with its step done.
	r.config = r.elsewhere(t)
	r.config.Node = "c9"
	r.config.Cluster = netip.MustParseAddrPort("127.0.0.9:9000")
	r.config.Listen.API = []string{"192.0.2.9:8443"}
	must(t, os.CopyFS(filepath.Join(r.config.Data, imagesFolder, "huge"), os.DirFS(filepath.Join(r.dir, imagesFolder, "huge"))))
	restored, err := Restore(t.Context(), r.config, bytes.NewReader(data), restoreOptions(ContinueJobs))
	must(t, err)
	if strings.Join(restored.Images, " ") != "tiny" || len(restored.Jobs) != 1 || restored.Jobs[0] != job || restored.Header.GetRack() != "test" {
		t.Errorf("restored %+v", restored)
	}
	if _, err := os.Stat(filepath.Join(r.config.Data, restoreFolder)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of the work is left: %v", err)
	}
	r.dir = r.config.Data
	r.auth, err = pki.LoadAuthority(r.config.PKI)
	must(t, err)
	leaf, err := x509.ParseCertificate(r.auth.Server().Certificate[0])
	must(t, err)
	for _, address := range []string{"192.0.2.9", "127.0.0.1"} {
		if err := leaf.VerifyHostname(address); err != nil || leaf.Subject.CommonName != "c9" {
			t.Errorf("certificate of %s: %v", leaf.Subject.CommonName, err)
		}
	}
	r.start()
	close(release)
	if j := r.end(job); j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_DONE {
		t.Fatalf("install: %s %s", j.GetErrorReason(), j.GetError())
	}
	if r.ran["wipe"] != 1 || r.ran["write-image"] != 1 {
		t.Errorf("steps were run more than once: %v", r.ran)
	}
	if m := r.m1(); m.GetStatus() != running || m.GetImage() != "tiny" {
		t.Errorf("machine: %v", m)
	}
	after, err := r.c.events(t.Context(), store.EventFilter{Limit: 10000})
	must(t, err)
	for i, e := range events {
		if after[i].GetSequence() != e.GetSequence() || after[i].GetType() != e.GetType() {
			t.Fatalf("event %d is %v, was %v", i, after[i], e)
		}
	}
	if r.eventTypes()["rack.restored"] != 1 {
		t.Error("the restore is not on record")
	}
}

func TestRestoreDecidesAboutRunningJobs(t *testing.T) {
	r, job, release := inTheMiddle(t)
	defer close(release)
	data, err := r.backup(testPassphrase)
	must(t, err)
	config := r.elsewhere(t)
	_, err = Restore(t.Context(), config, bytes.NewReader(data), restoreOptions(""))
	if err == nil || !strings.Contains(err.Error(), job) || !strings.Contains(err.Error(), "continue them") {
		t.Errorf("nothing was said about running jobs: %v", err)
	}
	mustHold(t, config.Data)

	_, err = Restore(t.Context(), config, bytes.NewReader(data), restoreOptions(FailJobs))
	must(t, err)
	db, err := store.Open(t.Context(), store.Options{Dir: filepath.Join(config.Data, databaseFolder), SecretFile: filepath.Join(config.Data, secretFile), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	must(t, err)
	err = db.View(t.Context(), func(s *store.Reader) error {
		m, err := s.Machine("m1")
		if err != nil {
			return err
		}
		j, err := s.Job(job)
		if err != nil {
			return err
		}
		if m.GetStatus() != faulty || m.GetFaultCode() != restoredFault || m.GetJobId() != "" || j.GetStatus() != bloomeryv1.JobStatus_JOB_STATUS_FAILED || j.GetErrorReason() != restoredFault {
			t.Errorf("machine %v, job %v %s", m, j.GetStatus(), j.GetErrorReason())
		}
		return nil
	})
	must(t, errors.Join(err, db.Close()))
	_, err = Restore(t.Context(), config, bytes.NewReader(data), restoreOptions(FailJobs))
	if err == nil || !strings.Contains(err.Error(), "empty node only") {
		t.Errorf("a node with a rack on it was restored: %v", err)
	}
	key, err := os.ReadFile(filepath.Join(config.Data, secretFile))
	must(t, err)
	if want, err := os.ReadFile(filepath.Join(r.dir, secretFile)); err != nil || !bytes.Equal(key, want) {
		t.Errorf("the sealing key differs (%v)", err)
	}
}

// mustHold checks what a folder holds.
func mustHold(t *testing.T, dir string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var got []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("%s holds %v, want %v", dir, got, want)
	}
}

func TestRestoreRefusesWhatIsNotWhole(t *testing.T) {
	r := newRack(t)
	r.createMachine(r.operator())
	data, err := r.backup(testPassphrase)
	must(t, err)
	config := r.elsewhere(t)
	try := func(data []byte, passphrase string) error {
		t.Helper()
		o := restoreOptions("")
		o.Passphrase = passphrase
		_, err := Restore(t.Context(), config, bytes.NewReader(data), o)
		mustHold(t, config.Data)
		return err
	}
	if err := try(data, testPassphrase+"?"); !errors.Is(err, backup.ErrPassphrase) {
		t.Errorf("wrong passphrase: %v", err)
	}
	for _, n := range []int{10, len(data) / 2, len(data) - 1} {
		if err := try(data[:n], testPassphrase); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("cut after %d of %d bytes: %v", n, len(data), err)
		}
	}
	for _, at := range []int{len(data) / 4, len(data) - 20} {
		flipped := bytes.Clone(data)
		flipped[at] ^= 4
		if err := try(flipped, testPassphrase); !errors.Is(err, backup.ErrDamaged) {
			t.Errorf("bit flipped at %d of %d: %v", at, len(data), err)
		}
	}
	if err := try(append(bytes.Clone(data), 'x'), testPassphrase); !errors.Is(err, backup.ErrDamaged) {
		t.Errorf("a byte more: %v", err)
	}
	if _, err := r.backup("short"); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("a short passphrase: %v", err)
	}
	r.c.backingUp.Lock()
	defer r.c.backingUp.Unlock()
	if _, err := r.backup(testPassphrase); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("two backups at once: %v", err)
	}
}

// TestRestoreWithoutTheArchive restores events of which the oldest were in files only.
func TestRestoreWithoutTheArchive(t *testing.T) {
	r := newRack(t)
	r.createMachine(r.operator())
	for range 8 {
		must(t, r.c.update(t.Context(), func(ch *change) error {
			return ch.note(&bloomeryv1.Event{Type: "machine.locked", Machine: "m1", Message: "x"}, nil)
		}))
	}
	archived := func(first int64) *store.Segment {
		sum := sha256.Sum256([]byte{byte(first)})
		return &store.Segment{First: first, Last: first + 1, Events: 2, SHA256: sum[:], Chain: sum[:]}
	}
	must(t, r.db.Update(t.Context(), func(tx *store.Tx) error {
		for _, first := range []int64{1, 3, 5} {
			if err := tx.AddSegment(archived(first), "c1"); err != nil {
				return err
			}
		}
		// Events 5 and 6 are in a file and in the database still.
		_, err := tx.DeleteEvents(4)
		return err
	}))
	data, err := r.backup(testPassphrase)
	must(t, err)
	config := r.elsewhere(t)
	restored, err := Restore(t.Context(), config, bytes.NewReader(data), restoreOptions(""))
	must(t, err)
	if restored.EventsLost != 4 {
		t.Errorf("events up to %d are said to be lost, want 4", restored.EventsLost)
	}
	db, err := store.Open(t.Context(), store.Options{Dir: filepath.Join(config.Data, databaseFolder), SecretFile: filepath.Join(config.Data, secretFile), Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	must(t, err)
	err = db.View(t.Context(), func(s *store.Reader) error {
		segments, err := s.Segments(0)
		if err == nil && (len(segments) != 2 || !segments[0].Dropped || segments[1].Dropped || segments[1].First != 5 || len(segments[1].Copies) != 0) {
			t.Errorf("segments on record: %+v", segments)
		}
		return err
	})
	must(t, errors.Join(err, db.Close()))
}
