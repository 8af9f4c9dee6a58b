package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// state is what Up writes down so that later commands find the rack's processes (state.json).
type state struct {
	Rack        string  `json:"rack"`
	Supervisor  process `json:"supervisor"`
	Coordinator process `json:"coordinator"`
	// Bloomeryd is the coordinator's executable, for RestartCoordinator.
	Bloomeryd string `json:"bloomeryd"`
}

// save replaces the file in one step, so that a crash leaves the old or the new one.
func (l layout) save(s state) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("writing the rack's state: %w", err)
	}
	tmp := l.state() + ".new"
	if err := os.WriteFile(tmp, text, 0o600); err != nil {
		return fmt.Errorf("writing the rack's state: %w", err)
	}
	if err := os.Rename(tmp, l.state()); err != nil {
		return fmt.Errorf("writing the rack's state: %w", err)
	}
	return nil
}

func (l layout) load() (state, error) {
	var s state
	text, err := os.ReadFile(l.state())
	if err != nil {
		return s, fmt.Errorf("reading the rack's state: %w", err)
	}
	if err := json.Unmarshal(text, &s); err != nil {
		return state{}, fmt.Errorf("reading the rack's state %s: %w", l.state(), err)
	}
	return s, nil
}

// Status is a rack as `bloomery lab status` shows it.
type Status struct {
	Rack     string `json:"rack"`
	StateDir string `json:"state_dir"`
	// Accel is QEMU's accelerator, "tcg" or "kvm".
	Accel string `json:"accel"`
	// SupervisorUp and CoordinatorUp tell whether those processes live.
	SupervisorUp  bool `json:"supervisor_up"`
	CoordinatorUp bool `json:"coordinator_up"`
	// CoordinatorPID is 0 when it does not run.
	CoordinatorPID int `json:"coordinator_pid,omitempty"`
	// ClientConfig is the file for BLOOMERY_CONFIG, APISocket the coordinator's unix socket.
	ClientConfig string `json:"client_config"`
	APISocket    string `json:"api_socket"`
	// Supervisor is nil when the supervisor does not answer.
	Supervisor *SupervisorStatus `json:"supervisor,omitempty"`
}

// LoadEffective returns the description of the rack in a state directory, with the passwords that Up made up.
func LoadEffective(stateDir string) (Config, error) {
	abs, err := filepath.Abs(stateDir)
	if err != nil {
		return Config{}, fmt.Errorf("state directory %q: %w", stateDir, err)
	}
	c, err := LoadConfig(layout{abs}.config())
	if errors.Is(err, os.ErrNotExist) {
		return Config{}, fmt.Errorf("no rack in %s; `bloomery lab up` makes one", abs)
	}
	return c, err
}

// openRack finds the files of a rack that is up.
func openRack(stateDir string) (layout, Config, error) {
	c, err := LoadEffective(stateDir)
	if err != nil {
		return layout{}, Config{}, err
	}
	l, err := newLayout(stateDir, c)
	return l, c, err
}
