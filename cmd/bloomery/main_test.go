package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"bloomery": main})
}

// TestScripts runs each script with a fake coordinator of its own; "exits N COMMAND..." checks the exit code.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			sockets, err := os.MkdirTemp("", "bl") // a script's own folder has too long a name for a socket
			if err != nil {
				return err
			}
			t.Cleanup(func() { os.RemoveAll(sockets) })
			socket, keys := filepath.Join(sockets, "api.sock"), filepath.Join(env.WorkDir, ".rack")
			var out bytes.Buffer
			if code := run(context.Background(), []string{"rack", "init", "--dir", keys, "--name", "rack1", "--server-address", "127.0.0.1", "--socket", socket}, nil, &out, &out); code != exitDone {
				return errors.New(out.String())
			}
			if err := serveFake(t, keys, socket); err != nil {
				return err
			}
			env.Setenv("BLOOMERY_CONFIG", filepath.Join(keys, clientConfigFile))
			switch filepath.Base(env.WorkDir) {
			case "script-fleet":
				return secondRack(t, env.WorkDir, sockets)
			case "script-imageurl":
				return publish(t, env)
			}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				got := 0
				err = ts.Exec(args[1], args[2:]...)
				var exit *exec.ExitError
				if errors.As(err, &exit) {
					got = exit.ExitCode()
				} else if err != nil {
					ts.Fatalf("%v", err)
				}
				if got != want {
					ts.Fatalf("exit code %d, want %d", got, want)
				}
			},
			"mode": func(ts *testscript.TestScript, _ bool, args []string) {
				info, err := os.Stat(ts.MkAbs(args[1]))
				ts.Check(err)
				if got := "0" + strconv.FormatUint(uint64(info.Mode().Perm()), 8); got != args[0] {
					ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
				}
			},
		},
	})
}

// secondRack adds a rack that answers, .rack2, and one that nobody serves, .dead.
func secondRack(t *testing.T, dir, sockets string) error {
	var out bytes.Buffer
	for _, name := range []string{"rack2", "dead"} {
		socket, keys := filepath.Join(sockets, name+".sock"), filepath.Join(dir, "."+name)
		if code := run(context.Background(), []string{"rack", "init", "--dir", keys, "--name", name, "--server-address", "127.0.0.1", "--socket", socket}, nil, &out, &out); code != exitDone {
			return errors.New(out.String())
		}
	}
	return serveFake(t, filepath.Join(dir, ".rack2"), filepath.Join(sockets, "rack2.sock"))
}

// publish serves the script's folder "published" over HTTPS at $URL, by a certificate that the script's commands trust.
func publish(t *testing.T, env *testscript.Env) error {
	server := httptest.NewTLSServer(http.FileServer(http.Dir(filepath.Join(env.WorkDir, "published"))))
	t.Cleanup(server.Close)
	certificate := filepath.Join(env.WorkDir, "maker.crt")
	env.Setenv("SSL_CERT_FILE", certificate)
	env.Setenv("URL", server.URL)
	env.Setenv("XDG_CACHE_HOME", filepath.Join(env.WorkDir, "cache"))
	return os.WriteFile(certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600)
}

// TestHelp asks every command for help and gives it arguments that none takes.
func TestHelp(t *testing.T) {
	t.Setenv("BLOOMERY_CONFIG", filepath.Join(t.TempDir(), "none.yaml"))
	var walk func(cmd *cobra.Command)
	walk = func(cmd *cobra.Command) {
		path := strings.Fields(cmd.CommandPath())[1:]
		var out, errs bytes.Buffer
		if code := run(t.Context(), append(path, "--help"), nil, &out, &errs); code != exitDone {
			t.Errorf("%s --help: exit %d: %s", cmd.CommandPath(), code, errs.String())
		}
		if !cmd.Hidden && (!strings.Contains(out.String(), "Examples:") || !strings.Contains(cmd.Example, cmd.CommandPath())) {
			t.Errorf("%s: its help has no example of it", cmd.CommandPath())
		}
		out.Reset()
		if code := run(t.Context(), append(path, "a", "b", "c", "d"), nil, &out, &errs); code != exitUsage {
			t.Errorf("%s a b c d: exit %d, want %d: %s", cmd.CommandPath(), code, exitUsage, errs.String())
		}
		if code := run(t.Context(), append(path, "--no-such-flag"), nil, &out, &errs); code != exitUsage {
			t.Errorf("%s --no-such-flag: exit %d, want %d", cmd.CommandPath(), code, exitUsage)
		}
		for _, child := range cmd.Commands() {
			walk(child)
		}
	}
	walk(newRoot())
}
