package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"
)

const (
	releasePath = "/etc/bloomery/release.json"
	ringBytes   = 512 << 10
)

// Main runs the agent on this machine and never returns: where nobody can log in, an agent that ended would leave a dead machine, so whatever
// goes wrong is said on the console and followed by a restart.
func Main() {
	// The console's Ctrl-C and hang-ups are not for the agent.
	signal.Ignore(syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM, syscall.SIGPIPE)
	out := openConsole("/sys", "/dev")
	kept := &ring{limit: ringBytes}
	machine := newLive(slog.New(slog.NewJSONHandler(kept, &slog.HandlerOptions{Level: slog.LevelDebug})))
	err := runOn(machine, out, kept)
	for {
		fmt.Fprintf(out, "bloomery: the agent cannot go on: %s\r\nbloomery: restarting in %.0f s\r\n", oneLine(err.Error()), rebootDelay.Seconds())
		time.Sleep(rebootDelay)
		err = machine.Reboot()
	}
}

func runOn(machine *live, out, log io.Writer) (err error) {
	defer func() {
		if panicked := recover(); panicked != nil {
			err = fmt.Errorf("panic: %v", panicked)
		}
	}()
	data, err := os.ReadFile(ConfigPath)
	if err != nil {
		return err
	}
	config, err := ParseConfig(data)
	if err != nil {
		return err
	}
	a, err := New(Options{
		Config: config, Version: version(), System: machine, Hardware: machine, Installer: machine,
		Watchdog: &hardwareWatchdog{path: "/dev/watchdog"}, Console: out, Log: log,
	})
	if err != nil {
		return err
	}
	return a.Run(context.Background())
}

// version is the image's, as package initramfs wrote it.
func version() string {
	var release struct {
		Version string `json:"version"`
	}
	data, err := os.ReadFile(releasePath)
	if err != nil || json.Unmarshal(data, &release) != nil || release.Version == "" {
		return "unknown"
	}
	return oneLine(release.Version)
}
