package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// state is what Up writes down so that later commands find the rack's processes (state.json).
type state struct {
	Rack       string  `json:"rack"`
	Supervisor process `json:"supervisor"`
	// Coordinators are their processes by name.
	Coordinators map[string]process `json:"coordinators"`
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
	// SupervisorUp tells whether its process lives.
	SupervisorUp bool                `json:"supervisor_up"`
	Coordinators []CoordinatorStatus `json:"coordinators"`
	// ClientConfig is the file for BLOOMERY_CONFIG.
	ClientConfig string `json:"client_config"`
	// Supervisor is nil when the supervisor does not answer.
	Supervisor *SupervisorStatus `json:"supervisor,omitempty"`
}

// CoordinatorStatus is one of the rack's coordinators.
type CoordinatorStatus struct {
	Name string `json:"name"`
	Up   bool   `json:"up"`
	// PID is 0 when it does not run.
	PID int `json:"pid,omitempty"`
	// Port is the switch port of its link to the provisioning network, OOBPort that of its link to the out-of-band network.
	Port      string `json:"port"`
	OOBPort   string `json:"oob_port"`
	Namespace string `json:"namespace"`
	// Address is on the provisioning network, APISocket its unix socket, Data its folder.
	Address   string `json:"address"`
	APISocket string `json:"api_socket"`
	Data      string `json:"data"`
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

// GetStatus tells how the rack in a state directory is. A rack whose supervisor has died is no error.
func GetStatus(ctx context.Context, stateDir string) (Status, error) {
	l, c, err := openRack(stateDir)
	if err != nil {
		return Status{}, err
	}
	s := Status{Rack: c.Name, StateDir: l.dir, Accel: c.Accel, ClientConfig: l.clientConfig()}
	st, err := l.load()
	if err != nil {
		st = state{} // damaged or not written yet: nothing is known to run
	}
	s.SupervisorUp = st.Supervisor.alive()
	for _, p := range c.places() {
		one := CoordinatorStatus{
			Name: p.name(), Port: p.port(), OOBPort: p.oobPort(), Namespace: p.namespace(),
			Address: p.provisioning().Addr().String(), APISocket: l.api(p), Data: l.coordinator(p),
		}
		if process := st.Coordinators[p.name()]; process.alive() {
			one.Up, one.PID = true, process.PID
		}
		s.Coordinators = append(s.Coordinators, one)
	}
	if s.SupervisorUp {
		sup, err := NewClient(l.dir).Status(ctx)
		if err != nil {
			return s, err
		}
		s.Supervisor = &sup
	}
	return s, nil
}
