package system

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"bloomery/internal/run"
	"bloomery/partition/layout"
)

// emulator starts a TPM 2.0 of its own (Debian package swtpm) and gives what opens it.
func emulator(t *testing.T) func() (transport.TPMCloser, error) {
	t.Helper()
	if _, err := exec.LookPath("swtpm"); err != nil {
		t.Skipf("needs swtpm, which tools/setup.sh installs: %v", err)
	}
	dir, err := os.MkdirTemp("", "tpm") // a test's own folder has too long a name for a socket
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "tpm.sock")
	cmd := exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	})
	open := func() (transport.TPMCloser, error) { return linuxudstpm.Open(socket) }
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if tpm, err := open(); err == nil {
			if _, err := (tpm2.GetRandom{BytesRequested: 1}).Execute(tpm); err == nil {
				return open
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("swtpm does not answer: %s", &said)
		}
	}
}

func TestClevisSealIsForOneTPM(t *testing.T) {
	one, err := emulator(t)()
	if err != nil {
		t.Fatal(err)
	}
	bound, err := clevisSeal(one, []byte("the passphrase"), clevisSlot)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := json.Marshal(bound); err != nil || bytes.Contains(text, []byte("passphrase")) {
		t.Errorf("the token is %s, %v", text, err)
	}
	// Again and again: the keys in the TPM are flushed.
	for range 5 {
		got, err := clevisOpen(one, bound)
		if err != nil || string(got) != "the passphrase" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	other, err := emulator(t)()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := clevisOpen(other, bound); err == nil {
		t.Errorf("another TPM gave %q", got)
	}
	spoilt := bound
	spoilt.JWE.Tag = encode(make([]byte, 16))
	if got, err := clevisOpen(one, spoilt); err == nil {
		t.Errorf("with a wrong tag: %q", got)
	}
}

// volume is a LUKS2 volume as far as cryptsetup is asked of it.
type volume struct {
	slots  map[string]string
	tokens map[string]json.RawMessage
	// failAt ends the run at that call, before it has done anything.
	failAt int
	calls  []string
}

var errPower = errors.New("the power is gone")

func (v *volume) Run(_ context.Context, argv []string, opts ...run.Option) (run.Result, error) {
	var stdin bytes.Buffer
	if in := run.Collect(opts).Stdin; in != nil {
		if _, err := stdin.ReadFrom(in); err != nil {
			return run.Result{}, err
		}
	}
	if len(v.calls)+1 == v.failAt {
		v.failAt = 0
		return run.Result{}, errPower
	}
	line := strings.Join(argv, " ")
	v.calls = append(v.calls, strings.ReplaceAll(line, fmt.Sprint("/proc/", os.Getpid(), "/fd/"), "/proc/PID/fd/"))
	opens := func(key string) bool {
		for _, have := range v.slots {
			if have == key {
				return true
			}
		}
		return false
	}
	refused := run.Result{ExitCode: 2}
	switch {
	case strings.Contains(line, "luksDump"):
		header := map[string]any{"keyslots": v.slots, "tokens": v.tokens}
		text, err := json.Marshal(header)
		return run.Result{Stdout: text}, err
	case strings.Contains(line, "--test-passphrase"):
		if !opens(stdin.String()) {
			return refused, nil
		}
	case strings.Contains(line, "token remove"):
		delete(v.tokens, argv[slices.Index(argv, "--token-id")+1])
	case strings.Contains(line, "token import"):
		v.tokens["0"] = stdin.Bytes()
	case strings.Contains(line, "luksKillSlot"):
		if !opens(stdin.String()) {
			return refused, nil
		}
		delete(v.slots, argv[len(argv)-1])
	case strings.Contains(line, "luksAddKey"):
		key, err := os.ReadFile(argv[slices.Index(argv, "--key-file")+1])
		slot := argv[slices.Index(argv, "--key-slot")+1]
		if _, used := v.slots[slot]; err != nil || used || !opens(string(key)) {
			return refused, err
		}
		v.slots[slot] = stdin.String()
	default:
		return run.Result{}, fmt.Errorf("unexpected %s", line)
	}
	return run.Result{}, nil
}

func bindOptions(t *testing.T, v *volume, open func() (transport.TPMCloser, error)) Options {
	return Options{
		Plan: planOf(t, "luks-tpm2"), Secrets: map[string][]byte{"luks/cryptroot": []byte("generated\x00key\n")}, Runner: v, OpenTPM: open,
		Device: func(r layout.Ref) (string, error) { return "/dev/" + string(r), nil },
	}
}

func TestBindVolumes(t *testing.T) {
	open := emulator(t)
	v := &volume{slots: map[string]string{"0": "generated\x00key\n"}, tokens: map[string]json.RawMessage{}}
	o := bindOptions(t, v, open)
	if err := bindVolumes(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"cryptsetup luksDump --dump-json-metadata /dev/part/system/3",
		"cryptsetup luksAddKey --batch-mode --type luks2 --key-slot 16 --pbkdf pbkdf2 --hash sha512 --pbkdf-force-iterations 1000 --key-file /proc/PID/fd/N /dev/part/system/3 -",
		"cryptsetup token import --json-file - /dev/part/system/3",
		"cryptsetup open --type luks2 --test-passphrase --key-file - /dev/part/system/3",
	}
	for i, line := range v.calls {
		if before, after, ok := strings.Cut(line, "/proc/PID/fd/"); ok {
			_, after, _ = strings.Cut(after, " ")
			v.calls[i] = before + "/proc/PID/fd/N " + after
		}
	}
	if diff := cmp.Diff(want, v.calls); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	passphrase := v.slots["16"]
	if len(passphrase) != 43 || strings.ContainsAny(passphrase, "\n\x00 ") {
		t.Errorf("passphrase of %d characters", len(passphrase))
	}
	if strings.Contains(strings.Join(v.calls, "\n"), passphrase) {
		t.Error("the passphrase is in a command line")
	}
	// What clevis reads of the token (clevis-decrypt-tpm2, clevis-luks-common-functions).
	var read struct {
		Type     string
		Keyslots []string
		JWE      struct{ Protected string }
	}
	if err := json.Unmarshal(v.tokens["0"], &read); err != nil || read.Type != "clevis" || !slices.Equal(read.Keyslots, []string{"16"}) || read.JWE.Protected == "" {
		t.Errorf("token %s, %v", v.tokens["0"], err)
	}

	v.calls = nil
	if err := bindVolumes(t.Context(), o); err != nil || len(v.calls) != 2 || v.slots["16"] != passphrase {
		t.Errorf("a second time: %v, %q", err, v.calls)
	}
	o.OpenTPM = emulator(t)
	if err := bindVolumes(t.Context(), o); err != nil || v.slots["16"] == passphrase || len(v.tokens) != 1 || len(v.slots) != 2 {
		t.Errorf("with another TPM: %v, %d tokens, %d slots", err, len(v.tokens), len(v.slots))
	}
	o.OpenTPM = nil
	if err := bindVolumes(t.Context(), o); err == nil {
		t.Error("without a TPM: no error")
	}
}

// TestBindVolumesAfterPowerCut ends the first run at each of its calls.
func TestBindVolumesAfterPowerCut(t *testing.T) {
	open := emulator(t)
	for at := 1; at <= 4; at++ {
		v := &volume{slots: map[string]string{"0": "generated\x00key\n"}, tokens: map[string]json.RawMessage{}, failAt: at}
		o := bindOptions(t, v, open)
		// The last call asks only whether it opens: what cannot be asked counts as no.
		if err := bindVolumes(t.Context(), o); err == nil {
			t.Fatalf("cut at call %d: no error", at)
		}
		if err := bindVolumes(t.Context(), o); err != nil {
			t.Errorf("after a cut at call %d: %v", at, err)
		}
		if len(v.slots) != 2 || len(v.tokens) != 1 {
			t.Errorf("after a cut at call %d: %d slots, %d tokens", at, len(v.slots), len(v.tokens))
		}
	}
}
