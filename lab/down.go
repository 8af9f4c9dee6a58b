package lab

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"bloomery/lab/netns"
)

// DownOptions say what to take down.
type DownOptions struct {
	// StateDir is DefaultStateDir(Rack) when empty.
	StateDir string
	// Rack is the rack's name, for a state directory that has lost it. When empty it is read from the state
	// directory, whose own name is the last resort.
	Rack string
	// KeepLogs leaves the directory "log" with the consoles' and processes' logs.
	KeepLogs bool
	// Progress gets one line for each thing done. nil discards them.
	Progress func(line string)
}

// Down takes a rack down and leaves no process, namespace, tap, socket or file of it. It works on a rack
// that is half up, whose processes were killed or whose state was damaged, and on one that is not there.
func Down(ctx context.Context, o DownOptions) error {
	if o.StateDir == "" {
		if o.Rack == "" {
			return errors.New("taking a rack down: neither its name nor its state directory is given")
		}
		o.StateDir = DefaultStateDir(o.Rack)
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	abs, err := filepath.Abs(o.StateDir)
	if err != nil || abs == "/" {
		return fmt.Errorf("state directory %q is none", o.StateDir)
	}
	l := layout{abs}
	if err := l.removable(); err != nil {
		return err
	}
	names, nsErr := rackNamespaces(l, o.Rack)
	stopErr := stopRack(ctx, l, o.Progress)
	killed, killErr := killMarked(ctx, l.dir)
	if killed > 0 {
		o.Progress(fmt.Sprintf("killed %d processes", killed))
	}
	if err := errors.Join(nsErr, killErr); err != nil {
		return errors.Join(err, stopErr)
	}
	for _, name := range names {
		if err := netns.Delete(name); err != nil {
			return err
		}
		o.Progress("removed network namespace " + name)
	}
	if err := l.remove(o.KeepLogs); err != nil {
		return err
	}
	o.Progress("removed " + l.dir)
	return nil
}

// removable refuses a directory that was not made by Up.
func (l layout) removable() error {
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	if _, err := os.Lstat(l.marker()); err != nil && len(entries) > 0 {
		return fmt.Errorf("%s is not a rack's state directory (it has no file %s); nothing was touched", l.dir, markerFile)
	}
	return nil
}

// stopRack ends coordinators and supervisor in good order if the state says where they are. What it
// cannot end is left to killMarked.
func stopRack(ctx context.Context, l layout, progress func(string)) error {
	st, err := l.load()
	if err != nil {
		return nil // never up, or damaged: the marker in the environment finds the processes
	}
	var errs []error
	stop := func(name string, p process) {
		if !p.alive() {
			return
		}
		if err := stopProcess(ctx, p); err != nil {
			errs = append(errs, fmt.Errorf("ending %s: %w", name, err))
			return
		}
		progress("ended " + name)
	}
	// Of three coordinators the last two end by being killed: one that has lost the majority cannot leave in good order.
	names := slices.Sorted(maps.Keys(st.Coordinators))
	for i, name := range names {
		if i == 0 {
			stop("coordinator "+name, st.Coordinators[name])
		} else if err := st.Coordinators[name].kill(ctx); err != nil {
			errs = append(errs, fmt.Errorf("ending coordinator %s: %w", name, err))
		}
	}
	stop("the supervisor", st.Supervisor)
	return errors.Join(errs...)
}

// rackNamespaces are those that exist of the rack. A description that can be read names them; else its
// name does, with the prefix that all of them have.
func rackNamespaces(l layout, rack string) ([]string, error) {
	if c, err := LoadConfig(l.config()); err == nil {
		return existing(namespaces(c)), nil
	}
	if text, err := os.ReadFile(l.marker()); rack == "" && err == nil && nameRE.MatchString(strings.TrimSpace(string(text))) {
		rack = strings.TrimSpace(string(text))
	}
	if rack == "" {
		rack = filepath.Base(l.dir)
	}
	if !nameRE.MatchString(rack) {
		return nil, nil // no rack could have that name, so it has no namespaces
	}
	entries, err := os.ReadDir(netns.Dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("looking for the rack's namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		own := coordinatorNamespace(rack)
		// Of racks "a" and "a-b" the second's namespaces begin like the first's; no rack's name ends as the first's other coordinators' do.
		rest, ours := strings.CutPrefix(e.Name(), own)
		if ours && (slices.Contains([]string{"", "-c2", "-c3", "-oob"}, rest) || strings.HasPrefix(rest, "-customer-")) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func existing(names []string) []string {
	var out []string
	for _, n := range names {
		if _, err := os.Lstat(filepath.Join(netns.Dir, n)); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// remove deletes the directory, but for the logs if they are to be kept. The marker goes last, so that
// a second Down can go on where this one was stopped.
func (l layout) remove(keepLogs bool) error {
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the rack's files: %w", err)
	}
	for _, e := range entries {
		if e.Name() == markerFile || keepLogs && e.Name() == filepath.Base(l.logs()) {
			continue
		}
		if err := os.RemoveAll(filepath.Join(l.dir, e.Name())); err != nil {
			return fmt.Errorf("removing the rack's files: %w", err)
		}
	}
	if keepLogs {
		return nil // the marker stays, so that the next Down removes the logs
	}
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("removing the rack's files: %w", err)
	}
	return nil
}
