package kmod

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	// maxPasses bounds the rounds of new devices that show up behind new drivers (PCI, then virtio or USB, then SCSI).
	maxPasses = 6
	// parallel drivers: while one waits for its hardware's firmware, others can start.
	parallel    = 4
	maxModalias = 4096 // the kernel writes at most a page
	maxDepth    = 24   // of directories below /sys/devices
)

// Report says what LoadDrivers did. Modules that were in the kernel before are in neither list.
type Report struct {
	Loaded []string         // names, sorted
	Failed map[string]error // by the name of the driver that a device asked for; drivers without hardware (ENODEV) are in neither
	Passes int
}

// LoadDrivers loads the drivers of all devices that the kernel shows, and goes on while that makes new devices appear.
// It may be called again at any time. A driver that fails is in the report and does not stop the others; the error is for
// an unreadable device tree or a context that ended.
//
// SCSI hosts and USB ports look for their devices in the background and may show nothing yet, so the drivers of what
// may come are loaded as soon as there is such a bus.
func (m *Modules) LoadDrivers(ctx context.Context) (Report, error) {
	report := Report{Failed: map[string]error{}}
	tried := map[string]bool{}
	for report.Passes < maxPasses {
		report.Passes++
		wanted, err := m.wanted()
		if err != nil {
			return report, err
		}
		wanted = slices.DeleteFunc(wanted, func(name string) bool { return tried[name] })
		if len(wanted) == 0 {
			break
		}
		for _, name := range wanted {
			tried[name] = true
		}
		if err := m.loadAll(ctx, wanted, &report); err != nil {
			return report, err
		}
	}
	slices.Sort(report.Loaded)
	return report, nil
}

func (m *Modules) loadAll(ctx context.Context, names []string, report *Report) error {
	var mu sync.Mutex
	var g errgroup.Group
	g.SetLimit(parallel)
	for _, name := range names {
		g.Go(func() error {
			inserted, err := m.load(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			report.Loaded = append(report.Loaded, inserted...)
			if err != nil {
				report.Failed[name] = err
				m.log.Warn("driver not loaded", "module", name, "error", err)
			}
			return ctx.Err()
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("load drivers: %w", err)
	}
	return nil
}

// wanted lists the modules that the devices of now ask for, sorted, built-in ones left out.
func (m *Modules) wanted() ([]string, error) {
	aliases := map[string]bool{}
	if err := collect(filepath.Join(m.root.Sys, "devices"), 0, aliases); err != nil {
		return nil, fmt.Errorf("walk the kernel's devices: %w", err)
	}
	names := map[string]bool{}
	for a := range aliases {
		for _, name := range m.index.match(a) {
			names[name] = true
		}
	}
	for _, bus := range []struct{ dir, prefix, modules string }{
		{"class/scsi_host", "host", "sd_mod"},
		{"bus/usb/devices", "usb", "usb_storage uas"},
	} {
		if hasEntry(filepath.Join(m.root.Sys, bus.dir), bus.prefix) {
			for _, name := range strings.Fields(bus.modules) {
				names[name] = true
			}
		}
	}
	var wanted []string
	for name := range names {
		if _, ok := m.index.path[name]; ok {
			wanted = append(wanted, name)
		}
	}
	slices.Sort(wanted)
	return wanted, nil
}

// collect gathers the modalias files below dir. Only directories are entered, so links do not lead in circles; those
// that never lead to a device are left out because the walk costs real time on a slow machine.
func collect(dir string, depth int, into map[string]bool) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		if depth > 0 {
			return nil // the device went away
		}
		return err
	}
	for _, e := range entries {
		switch name := e.Name(); {
		case e.IsDir():
			if depth < maxDepth && !barren(name) {
				if err := collect(filepath.Join(dir, name), depth+1, into); err != nil {
					return err
				}
			}
		case name == "modalias":
			if s := readModalias(filepath.Join(dir, name)); s != "" {
				into[s] = true
			}
		}
	}
	return nil
}

func barren(dir string) bool {
	switch dir {
	case "power", "msi_irqs", "queue", "mq", "tty", "vc", "mem", "workqueue", "bdi", "statistics", "queues", "hwmon", "link", "integrity":
		return true
	}
	return false
}

func readModalias(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxModalias))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func hasEntry(dir, prefix string) bool {
	entries, err := os.ReadDir(dir)
	return err == nil && slices.ContainsFunc(entries, func(e os.DirEntry) bool { return strings.HasPrefix(e.Name(), prefix) })
}
