// Package kmod loads kernel modules in a system without udev or modprobe: by name, and for every device that the kernel
// shows, by its modalias. It reads depmod's text files (modules.alias, .dep, .softdep, .builtin; see modules.dep(5)).
package kmod

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxIndexSize bounds each of depmod's files; a full Debian kernel's modules.alias has 1.5 MB.
const maxIndexSize = 32 << 20

// ErrUnknown is wrapped by the error for a name that is neither a module, nor built in, nor an alias.
var ErrUnknown = errors.New("no such kernel module")

// Root says where the kernel's own view and its modules are.
type Root struct {
	Sys     string // "/sys"
	Modules string // "/lib/modules/<release>"
}

// DefaultRoot is the running kernel's.
func DefaultRoot() (Root, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Root{}, fmt.Errorf("read the kernel's release: %w", err)
	}
	return Root{Sys: "/sys", Modules: filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]))}, nil
}

// Loader inserts one module file into the kernel. Errors that wrap fs.ErrExist count as success.
type Loader interface {
	Insert(path string) error
}

// Modules is what depmod knows, and what was loaded through it so far. It is safe for concurrent use.
type Modules struct {
	root    Root
	loader  Loader
	log     *slog.Logger
	index   index
	mu      sync.Mutex
	entries map[string]*entry
}

// entry makes sure that one module is inserted once, however many others need it.
type entry struct {
	once sync.Once
	err  error
	did  bool
}

// Open reads depmod's files under root.Modules. Only modules.dep must exist.
func Open(root Root, loader Loader, log *slog.Logger) (*Modules, error) {
	m := &Modules{root: root, loader: loader, log: log, entries: map[string]*entry{}}
	for _, file := range []struct {
		name  string
		parse func(io.Reader) error
		must  bool
	}{
		{"modules.dep", m.index.readDep, true},
		{"modules.softdep", m.index.readSoftdep, false},
		{"modules.builtin", m.index.readBuiltin, false},
		{"modules.alias", m.index.readAlias, false},
	} {
		path := filepath.Join(root.Modules, file.name)
		data, err := readLimited(path)
		if errors.Is(err, fs.ErrNotExist) && !file.must {
			continue
		}
		if err == nil {
			err = file.parse(bytes.NewReader(data))
		}
		if err != nil {
			return nil, fmt.Errorf("read the module index %s: %w", path, err)
		}
	}
	return m, nil
}

// Load loads the named modules (or exact aliases such as "fs-ext4") with everything they need, one after the other.
// Every name is tried; the error joins what failed. A module that finds none of its hardware (ENODEV) is not loaded and has not failed.
func (m *Modules) Load(ctx context.Context, names ...string) error {
	var errs []error
	for _, name := range names {
		targets := []string{normal(name)}
		if !m.index.known(targets[0]) {
			if targets = m.index.match(name); len(targets) == 0 {
				errs = append(errs, fmt.Errorf("load module %s: %w in %s", name, ErrUnknown, m.root.Modules))
				continue
			}
		}
		for _, target := range targets {
			if _, err := m.load(ctx, target); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// load inserts a module after what it needs and reports the names that were newly inserted.
func (m *Modules) load(ctx context.Context, name string) (inserted []string, err error) {
	for _, step := range m.index.order(name) {
		if err := ctx.Err(); err != nil {
			return inserted, fmt.Errorf("load module %s: %w", name, err)
		}
		did, err := m.insert(step.name)
		if did {
			inserted = append(inserted, step.name)
		}
		if errors.Is(err, unix.ENODEV) && !step.soft {
			// The module looked for its hardware and found none, which udev forgives too; what needs the module would only fail for lack of it.
			m.log.Debug("no hardware for the module", "module", step.name, "for", name)
			return inserted, nil
		}
		if err != nil && !step.soft {
			return inserted, fmt.Errorf("load module %s: %w", name, err)
		}
	}
	return inserted, nil
}

// insert puts one module into the kernel; did tells whether this call did it.
func (m *Modules) insert(name string) (did bool, err error) {
	m.mu.Lock()
	e := m.entries[name]
	if e == nil {
		e = &entry{}
		m.entries[name] = e
	}
	m.mu.Unlock()
	e.once.Do(func() {
		path, ok := m.index.path[name]
		if !ok || m.loaded(name) {
			return
		}
		err := m.loader.Insert(filepath.Join(m.root.Modules, path))
		switch {
		case err == nil:
			e.did, did = true, true
			m.log.Debug("module loaded", "module", name)
		case !errors.Is(err, fs.ErrExist):
			e.err = fmt.Errorf("insert %s: %w", path, err)
		}
	})
	return did, e.err
}

func (m *Modules) loaded(name string) bool {
	_, err := os.Stat(filepath.Join(m.root.Sys, "module", name, "initstate"))
	return err == nil
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIndexSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxIndexSize {
		return nil, fmt.Errorf("larger than %d bytes", maxIndexSize)
	}
	return data, nil
}

// eachLine calls f with the fields of every line that is neither empty nor a comment.
func eachLine(r io.Reader, f func(fields []string)) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if fields := strings.Fields(sc.Text()); len(fields) > 0 && !strings.HasPrefix(fields[0], "#") {
			f(fields)
		}
	}
	return sc.Err()
}
