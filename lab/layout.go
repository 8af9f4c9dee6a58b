package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	// StateRoot is where racks are kept unless told otherwise: a directory of root's on a real disk,
	// since machines' disks and the image store lie there too.
	StateRoot = "/var/lib/bloomery-lab"
	// maxSocketPath is what fits into sockaddr_un (unix(7)) with its final zero byte.
	maxSocketPath = 107
	// markerFile stands in every state directory, so that Down removes nothing else.
	markerFile = ".bloomery-lab"
	// envMarker is the environment variable that every process of a rack carries, with the state
	// directory as its value.
	envMarker = "BLOOMERY_LAB"
	// envRack carries the rack's name.
	envRack = "BLOOMERY_LAB_RACK"
)

// DefaultStateDir is the state directory of a rack when none is given.
func DefaultStateDir(rack string) string { return filepath.Join(StateRoot, rack) }

// layout names the files of a state directory.
type layout struct{ dir string }

func (l layout) marker() string       { return filepath.Join(l.dir, markerFile) }
func (l layout) config() string       { return filepath.Join(l.dir, "rack.yaml") }
func (l layout) state() string        { return filepath.Join(l.dir, "state.json") }
func (l layout) control() string      { return filepath.Join(l.dir, "control.sock") }
func (l layout) rack() string         { return filepath.Join(l.dir, "rack") }
func (l layout) clientConfig() string { return filepath.Join(l.rack(), "config.yaml") }
func (l layout) agentImage() string   { return filepath.Join(l.dir, "agent-image") }

// Each coordinator has a socket, a folder, keys, a configuration and a log of its own.
func (l layout) api(p place) string { return filepath.Join(l.dir, "api"+p.suffix()+".sock") }
func (l layout) coordinator(p place) string {
	return filepath.Join(l.dir, "coordinator"+p.suffix())
}
func (l layout) keys(p place) string {
	if p.number == 1 {
		return l.rack()
	}
	return filepath.Join(l.coordinator(p), "pki")
}
func (l layout) joinToken(p place) string { return filepath.Join(l.coordinator(p), "token") }
func (l layout) coordinatorConfig(p place) string {
	return filepath.Join(l.dir, "bloomeryd"+p.suffix()+".yaml")
}
func (l layout) coordinatorLog(p place) string { return "bloomeryd" + p.suffix() }

func (l layout) switchDir() string      { return filepath.Join(l.dir, "switch") }
func (l layout) switchCA() string       { return filepath.Join(l.switchDir(), "ca.crt") }
func (l layout) switchPassword() string { return filepath.Join(l.switchDir(), "password") }
func (l layout) logs() string           { return filepath.Join(l.dir, "log") }
func (l layout) log(name string) string { return filepath.Join(l.logs(), name+".log") }

func (l layout) machine(name string) string       { return filepath.Join(l.dir, "m", name) }
func (l layout) consoleSocket(name string) string { return filepath.Join(l.machine(name), "con.sock") }
func (l layout) qmpSocket(name string) string     { return filepath.Join(l.machine(name), "qmp.sock") }
func (l layout) bmcSocket(name string) string     { return filepath.Join(l.machine(name), "bmc.sock") }
func (l layout) tpm(name string) string           { return filepath.Join(l.machine(name), "tpm") }
func (l layout) tpmSocket(name string) string     { return filepath.Join(l.machine(name), "tpm.sock") }
func (l layout) nicSocket(name string, i int) string {
	return filepath.Join(l.machine(name), fmt.Sprintf("net%d.sock", i))
}
func (l layout) vars(name string) string { return filepath.Join(l.machine(name), "vars.fd") }
func (l layout) disk(name string, i int) string {
	return filepath.Join(l.machine(name), fmt.Sprintf("disk%d.raw", i))
}

// newLayout cleans the directory's name and sees that all sockets fit and that QEMU can be given the paths.
func newLayout(dir string, c Config) (layout, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return layout{}, fmt.Errorf("state directory %q: %w", dir, err)
	}
	if dir == "" || abs == "/" || strings.ContainsAny(abs, ",=\n\x00") {
		return layout{}, fmt.Errorf("state directory %q: must be a directory of its own, without comma or equals sign", dir)
	}
	l := layout{dir: abs}
	longest := l.control()
	for _, m := range c.Machines {
		for _, s := range []string{l.consoleSocket(m.Name), l.nicSocket(m.Name, maxNICs)} {
			if len(s) > len(longest) {
				longest = s
			}
		}
	}
	if len(longest) > maxSocketPath {
		return layout{}, fmt.Errorf("state directory %s is too long by %d characters: unix sockets in it (%s) may have %d bytes; choose a shorter one",
			abs, len(longest)-maxSocketPath, longest, maxSocketPath)
	}
	return l, nil
}

// create makes the directories. It refuses a directory that holds something else.
func (l layout) create(c Config) error {
	entries, err := os.ReadDir(l.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("state directory: %w", err)
	}
	if len(entries) > 0 {
		if _, err := os.Stat(l.marker()); err != nil {
			return fmt.Errorf("state directory %s is not empty and not a rack's; choose another", l.dir)
		}
		for _, e := range entries {
			if e.Name() != markerFile && e.Name() != filepath.Base(l.logs()) { // those are what Down with KeepLogs leaves
				return fmt.Errorf("state directory %s holds a rack already; `bloomery lab down` removes it", l.dir)
			}
		}
	}
	dirs := []string{l.dir, l.logs(), l.switchDir()}
	for _, p := range c.places() {
		dirs = append(dirs, l.coordinator(p))
	}
	for _, m := range c.Machines {
		dirs = append(dirs, l.machine(m.Name))
	}
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("state directory: %w", err)
		}
		if d == l.dir {
			if err := os.Chmod(d, 0o700); err != nil {
				return fmt.Errorf("state directory: %w", err)
			}
			if err := os.WriteFile(l.marker(), []byte(c.Name+"\n"), 0o600); err != nil {
				return fmt.Errorf("state directory: %w", err)
			}
		}
	}
	return nil
}

// coordinatorNamespace is where the first coordinator is.
func coordinatorNamespace(rack string) string { return "bloomery-" + rack }

// customerNamespace is where a customer's own machine is.
func customerNamespace(rack, network string) string { return "bloomery-" + rack + "-" + network }
