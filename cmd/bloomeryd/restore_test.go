package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	bloomeryv1 "bloomery/api/bloomery/v1"
	"bloomery/coordinator/backup"
	"bloomery/internal/pki"
)

// newBackup makes a file that holds a rack without machines.
func newBackup(t *testing.T, path, passphrase string) {
	t.Helper()
	keys := t.TempDir()
	newKeys(t, keys)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := backup.Create(f, passphrase, &bloomeryv1.BackupHeader{Rack: "r1", Node: "c1", SchemaVersion: 1, CreatedAt: timestamppb.Now()})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*bloomeryv1.BackupRecord{
		{Body: &bloomeryv1.BackupRecord_File{File: &bloomeryv1.BackupFile{Place: bloomeryv1.BackupFile_PLACE_DATA, Name: "secret.key", Content: make([]byte, 32)}}},
		pkiFile(t, keys, pki.CACert), pkiFile(t, keys, pki.CAKey), pkiFile(t, keys, pki.AgentCert), pkiFile(t, keys, pki.AgentKey), pkiFile(t, keys, pki.ServerCert), pkiFile(t, keys, pki.ServerKey),
		{Body: &bloomeryv1.BackupRecord_Table{Table: &bloomeryv1.BackupTable{Name: "requests", Columns: []string{"id", "job_id", "created"}}}},
	} {
		if err := w.Write(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestRestoreCommand(t *testing.T) {
	const passphrase = "correct horse battery"
	dir := t.TempDir()
	data, file := filepath.Join(dir, "data"), filepath.Join(dir, "rack.backup")
	config := writeConfig(t, dir, data)
	newBackup(t, file, passphrase)
	for name, tc := range map[string]struct {
		stdin string
		args  []string
		code  int
		says  string
	}{
		"no passphrase":    {"", []string{"restore", "--config", config, file}, exitUsage, "--passphrase-file is missing"},
		"no backup":        {"", []string{"restore", "--config", config, "--passphrase-file", "-"}, exitUsage, "want 1"},
		"wrong choice":     {"", []string{"restore", "--config", config, "--passphrase-file", "-", "--running-jobs", "x", file}, exitUsage, "continue or fail"},
		"wrong passphrase": {passphrase + "!", []string{"restore", "--config", config, "--passphrase-file", "-", file}, exitFailed, "the passphrase is wrong; nothing was changed"},
		"not there":        {passphrase, []string{"restore", "--config", config, "--passphrase-file", "-", file + "x"}, exitFailed, "no such file"},
	} {
		code, out, errs := call(t.Context(), tc.stdin, tc.args...)
		if code != tc.code || !strings.Contains(out+errs, tc.says) {
			t.Errorf("%s: exit %d, want %d and %q in:\n%s%s", name, code, tc.code, tc.says, out, errs)
		}
	}
	code, out, errs := call(t.Context(), passphrase+"\n", "restore", "--config", config, "--passphrase-file", "-", file)
	if code != exitDone || !strings.Contains(out, "Rack r1 is restored into "+data) {
		t.Fatalf("exit %d:\n%s%s", code, out, errs)
	}
	for path, mode := range map[string]os.FileMode{"secret.key": 0o600, "pki": 0o700, "pki/ca.crt": 0o644, "dqlite": 0o700} {
		info, err := os.Stat(filepath.Join(data, path))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != mode {
			t.Errorf("%s has mode %04o, want %04o", path, info.Mode().Perm(), mode)
		}
	}
	code, _, errs = call(t.Context(), passphrase, "restore", "--config", config, "--passphrase-file", "-", file)
	if code != exitFailed || !strings.Contains(errs, "empty node only") {
		t.Errorf("again: exit %d: %s", code, errs)
	}
}

func pkiFile(t *testing.T, dir, name string) *bloomeryv1.BackupRecord {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "pki", name))
	if err != nil {
		t.Fatal(err)
	}
	return &bloomeryv1.BackupRecord{Body: &bloomeryv1.BackupRecord_File{File: &bloomeryv1.BackupFile{Place: bloomeryv1.BackupFile_PLACE_PKI, Name: name, Content: content}}}
}
